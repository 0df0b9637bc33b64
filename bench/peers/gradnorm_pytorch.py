"""The package gradnorm-pytorch: its ``GradNormLossWeighter``, used as in its documentation's first example."""

from importlib import import_module
from typing import Any

from torch import Tensor, nn

from tasks import Problem

from .peer import GradNormSetting, Peer

LEARNING_RATE = 1e-4
"""Learning rate of the weights in the documentation's example."""


class GradNormPytorch(Peer):
    """The peer that weighs by ``GradNormLossWeighter``.

    Raises:
        ImportError: the package can't be imported.
    """

    name = "gradnorm-pytorch"
    package = "gradnorm_pytorch"
    differs = (
        "Accepts one parameter: the layer's weight, without its bias. Uses SGD on the mean of the tasks' terms, and so "
        "1/T of its learning rate (ours is set to the same). Its targets are Gbar r_i^-alpha, the paper's are "
        "Gbar r_i^alpha. The weights have no lower bound, their absolute values sum to T, and they keep the autograd "
        "graph of every step so far. The objective's backward pass adds its gradient to the network's."
    )

    def __init__(self, problem: Problem[Any], model: nn.Module, setting: GradNormSetting | None = None) -> None:
        super().__init__(problem, model, setting)
        [parameter] = self.setting.parameters(problem, model)
        num_tasks = len(problem.tasks)
        self._weighter = import_module(self.package).GradNormLossWeighter(
            num_losses=num_tasks,
            learning_rate=self.setting.lr * num_tasks,
            restoring_force_alpha=self.setting.alpha,
            grad_norm_parameters=parameter,
        )

    @classmethod
    def usual_setting(cls, problem: Problem[Any]) -> GradNormSetting:
        return GradNormSetting("its weight alone", lr=LEARNING_RATE / len(problem.tasks), optimizer="sgd")

    @property
    def weights(self) -> Tensor:
        weights: Tensor = self._weighter.loss_weights
        return weights.detach().clone()

    def backward(self, losses: list[Tensor]) -> None:
        self._weighter.backward(losses)
