"""Make steps with LibMTL, whose methods combine the gradients of all shared parameters; see `libmtl` for its patches.

LibMTL's MGDA and IMTL can also combine gradients of features, but sum these over the batch first, and its GradDrop does
so too: these are other methods than ours, and are left out. So is its CAGrad, which is written for three tasks.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from balancers.engine.method.declared_method import Wrt
from bench.cost.subject import MakeStep

from .contender import PeerContender
from .libmtl import assemble, stack

WEIGHTINGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "gradvac": ("GradVac", {"beta": 0.01}),
    "mgda": ("MGDA", {"mgda_gn": "none"}),
    "pcgrad": ("PCGrad", {}),
}
"""By the name of our method, the name of LibMTL's and the options with which it is the same."""


class LibMTLSteps(PeerContender):
    """Combines gradients with one of `WEIGHTINGS`."""

    name = "LibMTL"

    def __init__(self, make_step: MakeStep, num_tasks: int, method: str) -> None:
        super().__init__(make_step, num_tasks)
        weighting, self._options = WEIGHTINGS[method]
        self._model = assemble(weighting, self.trunk, self.subject.model.get_submodule("heads").children())

    def backward(self, losses: list[Tensor]) -> None:
        self.features.take()
        self._model.backward(stack(losses), **self._options)


def has(method: str, place: Wrt) -> bool:
    """Return whether LibMTL has our method at this place."""
    return place == "parameters" and method in WEIGHTINGS


def ways(method: str, make_step: MakeStep, num_tasks: int) -> dict[str, Callable[[], LibMTLSteps]]:
    """Return, by name, what makes a contender for the method."""
    return {"one by one": partial(LibMTLSteps, make_step, num_tasks, method)}
