"""Our GradNorm, used as README shows."""

from typing import Any

from torch import Tensor, nn

from balancers import GradNorm
from tasks import Problem

from .peer import GradNormSetting, Peer


class Ours(Peer):
    """The peer that weighs by our `GradNorm`, at the model's fork.

    Raises:
        ValueError: the model has no fork.
    """

    name = "our GradNorm"

    def __init__(self, problem: Problem[Any], model: nn.Module, setting: GradNormSetting | None = None) -> None:
        super().__init__(problem, model, setting)
        _, alpha, lr, optimizer = self.setting
        wrt = self.setting.parameters(problem, model)
        self._balancer = GradNorm(problem.shared(model).fork, wrt, alpha=alpha, lr=lr, optimizer=optimizer)

    @property
    def weights(self) -> Tensor:
        return self._balancer.state()["next_weights"].clone()

    def backward(self, losses: list[Tensor]) -> None:
        self._balancer(losses).backward()
