"""GradNorm with its objective differentiated by autograd, as the paper's algorithm reads; the losses are kept apart."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from tasks import Problem

from .contender import Contender, Setting, new_weights

LOWEST_WEIGHT = 1e-4
"""As ours."""


class DoubleBackward(Contender):
    r"""Each :math:`G_i = \lVert \nabla_W w_i L_i \rVert` is recorded (``create_graph``), to be differentiated itself.

    With respect to the weights alone: unlike ``objective.backward()``, that leaves the network's gradients as they are.
    """

    name = "double backward (apart)"

    def __init__(self, problem: Problem[Any], model: nn.Module, setting: Setting | None = None) -> None:
        super().__init__(problem, model, setting)
        self._wrt = self.setting.parameters(problem, model)
        self._weights = new_weights(problem, model)
        make = {"adam": Adam, "sgd": SGD}[self.setting.optimizer]
        self._weights_optimizer = make([self._weights], lr=self.setting.lr, fused=True)
        self._initial_losses: Tensor | None = None

    @property
    def weights(self) -> Tensor:
        return self._weights.detach().clone()

    def backward(self, losses: list[Tensor]) -> None:
        weights = self._weights
        norms = torch.stack([self._norm(w * loss) for w, loss in zip(weights.unbind(), losses, strict=True)])
        stacked = torch.stack(losses)
        targets = (norms.mean() * self._rates(stacked.detach()) ** self.setting.alpha).detach()
        objective = (norms - targets).abs().sum()
        [weights.grad] = torch.autograd.grad(objective, weights, retain_graph=True)
        torch.dot(weights.detach(), stacked).backward()
        self._weights_optimizer.step()
        with torch.no_grad():
            weights.clamp_(min=LOWEST_WEIGHT).div_(weights.mean())

    def _norm(self, weighted_loss: Tensor) -> Tensor:
        gradients = torch.autograd.grad(weighted_loss, self._wrt, create_graph=True)
        norm: Tensor = torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in gradients]))
        return norm

    def _rates(self, losses: Tensor) -> Tensor:
        if self._initial_losses is None:
            self._initial_losses = losses
        ratios = losses / self._initial_losses
        return ratios / ratios.mean()
