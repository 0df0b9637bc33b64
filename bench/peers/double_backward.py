"""GradNorm with its objective differentiated by autograd, as the paper's algorithm reads; the losses are kept apart."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from balancers import LossBalancer
from balancers.engine.loss_input import Losses
from tasks import Problem

from .peer import GradNormSetting, Peer

LOWEST_WEIGHT = 1e-4
"""As ours."""


class DoubleBackwardGradNorm(LossBalancer):
    r"""Each :math:`G_i = \lVert \nabla_W w_i L_i \rVert` is recorded (``create_graph``), to be differentiated itself.

    With respect to the weights alone: unlike ``objective.backward()``, that leaves the network's gradients as they are.

    Args:
        tasks: how many.
        wrt: the parameters :math:`W`.
        setting: how the weights are learned; its own ``wrt`` isn't read.
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
        """``(T,)``: the weights that the next step will use."""
        return self._learned.detach().clone()

    def forward(self, losses: Losses) -> Tensor:
        """The weighted sum of the losses; updates the weights for the next step."""
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
    """`DoubleBackwardGradNorm`."""

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
