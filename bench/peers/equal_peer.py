"""Equal weighting, against which every peer is timed, equal weighting itself included."""

from typing import Any

from torch import Tensor, nn

from balancers import EqualWeighting
from tasks import Problem

from .peer import Peer


class Equal(Peer):
    """The peer that minimises the sum of the losses."""

    name = "equal weighting"
    differs = "No GradNorm: its weights stay at 1."

    def __init__(self, problem: Problem[Any], model: nn.Module) -> None:
        super().__init__(problem, model)
        self._balancer = EqualWeighting(problem.tasks)

    @property
    def weights(self) -> Tensor:
        return self._balancer.weights

    def backward(self, losses: list[Tensor]) -> None:
        self._balancer(losses).backward()
