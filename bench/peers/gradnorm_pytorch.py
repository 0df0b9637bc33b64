"""The package gradnorm-pytorch: its ``GradNormLossWeighter``, used as its documentation's first example does."""

from importlib import import_module
from typing import Any

from torch import Tensor, nn

from tasks import Problem

from .peer import GradNormSetting, Peer

LEARNING_RATE = 1e-4
"""The documentation's."""


class GradNormPytorch(Peer):
    """``GradNormLossWeighter``.

    Raises:
        ImportError: the package can't be imported.
    """

    name = "gradnorm-pytorch"
    package = "gradnorm_pytorch"
    differs = (
        "Takes one parameter: the layer's weight, without its bias. Steps by SGD on the mean of the tasks' terms: by "
        "1/T of its learning rate (ours is set so). Targets are Gbar r_i^-alpha, where the paper has r_i^alpha. The "
        "weights have no lower bound, their absolute values sum to T, and they hold on to the autograd graph of every "
        "step so far. The objective's backward pass adds its gradient to the network's."
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
