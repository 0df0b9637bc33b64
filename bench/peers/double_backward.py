"""GradNorm by a double backward pass, as in the paper's algorithm: autograd differentiates the objective."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from balancers import LossBalancer, Losses
from tasks import Problem

from .peer import GradNormSetting, Peer

LOWEST_WEIGHT = 1e-4
"""Lower bound of the weights, the same as in our GradNorm."""


class DoubleBackwardGradNorm(LossBalancer):
    r"""GradNorm that records each :math:`G_i = \lVert \nabla_W w_i L_i \rVert` (``create_graph``) to differentiate it.

    The objective is differentiated with respect to the weights only. Unlike ``objective.backward()``, this leaves the
    network's gradients unchanged. The losses are differentiated one by one, not as entries of a stacked tensor.

    Args:
        tasks: number of tasks, T.
        wrt: the parameters :math:`W`.
        setting: how the weights are learned; ``setting.wrt`` is not used.
    """

    name = "double backward"

    def __init__(self, tasks: int, wrt: Sequence[nn.Parameter], setting: GradNormSetting) -> None:
        super().__init__(tasks)
        self._wrt = tuple(wrt)
        self._alpha = setting.alpha
        self._learned = torch.ones(tasks, dtype=self._wrt[0].dtype, device=self._wrt[0].device, requires_grad=True)
        make = {"adam": Adam, "sgd": SGD}[setting.optimizer]
        self._optimizer = make([self._learned], lr=setting.lr, fused=True)
        self._initial_losses: Tensor | None = None

    @property
    def next_weights(self) -> Tensor:
        """Weights that the next step will use, ``(T,)``."""
        return self._learned.detach().clone()

    def forward(self, losses: Losses) -> Tensor:
        """Return the weighted sum of the losses, and update the weights for the next step."""
        apart = list(losses.values() if isinstance(losses, Mapping) else losses)
        weights, stacked = self._learned, torch.stack(apart)
        norms = torch.stack([self._norm(w * loss) for w, loss in zip(weights.unbind(), apart, strict=True)])
        targets = (norms.mean() * self._rates(stacked.detach()) ** self._alpha).detach()
        objective = (norms - targets).abs().sum()
        [weights.grad] = torch.autograd.grad(objective, weights, retain_graph=True)
        total = torch.dot(self.next_weights, stacked)
        self._optimizer.step()
        with torch.no_grad():
            weights.clamp_(min=LOWEST_WEIGHT).div_(weights.mean())
        return total

    def _norm(self, weighted_loss: Tensor) -> Tensor:
        gradients = torch.autograd.grad(weighted_loss, self._wrt, create_graph=True)
        norm: Tensor = torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in gradients]))
        return norm

    def _rates(self, losses: Tensor) -> Tensor:
        if self._initial_losses is None:
            self._initial_losses = losses
        ratios = losses / self._initial_losses
        return ratios / ratios.mean()


class DoubleBackward(Peer):
    """The peer that weighs by `DoubleBackwardGradNorm`."""

    name = "double backward (apart)"

    def __init__(self, problem: Problem[Any], model: nn.Module, setting: GradNormSetting | None = None) -> None:
        super().__init__(problem, model, setting)
        wrt = self.setting.parameters(problem, model)
        self._balancer = DoubleBackwardGradNorm(len(problem.tasks), wrt, self.setting)

    @property
    def weights(self) -> Tensor:
        return self._balancer.next_weights

    def backward(self, losses: list[Tensor]) -> None:
        self._balancer(losses).backward()
