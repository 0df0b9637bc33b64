"""Read the arguments ``fork`` and ``tasks`` of a balancer that measures gradients, and say how one is made."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..loss_input import LossReader
from ..method.declared_method import REQUIRED, Wrt
from .fork import Fork

if TYPE_CHECKING:
    from ..classes.gradients import GradientBalancer

NOT_MEASURED: Mapping[Wrt, str] = {
    "features": "does not measure at the features (wrt=None)",
    "layer": "does not measure at a fork with respect to a layer",
    "parameters": "does not measure without a fork (fork=None)",
}
"""The start of the message that refuses a place which a method is not defined for."""


def tasks_of(
    method: "type[GradientBalancer]", fork: Fork | None, tasks: int | Sequence[str] | None
) -> int | Sequence[str]:
    """Return the tasks, or their number, of a balancer of ``method``.

    Raises:
        TypeError, ValueError: these are not arguments that it can be made with.
    """
    if fork is REQUIRED:
        raise TypeError(
            f"{method.__name__} lacks its first argument, fork, by which it knows the tasks and where their gradients "
            f"are: write {_how_to_make(method)}"
        )
    if fork is None:
        if tasks is None:
            raise ValueError(
                f"fork is None and tasks is not given, so that the number of tasks is not known: write "
                f"{_how_to_make(method)}; tasks is a number or a list of names"
            )
        return tasks
    if not isinstance(fork, Fork):
        raise TypeError(
            f"fork is of type {type(fork).__name__}; expected the model's Fork, or None: write {_how_to_make(method)}"
        )
    return tasks_at(fork, tasks)


def tasks_at(fork: Fork, tasks: int | Sequence[str] | None) -> int | Sequence[str]:
    """Return the ``tasks`` of a balancer that is made for a fork; where they are None, their number.

    Raises:
        TypeError, ValueError: they are no tasks, or not as many as the fork's.
    """
    if tasks is None:
        return fork.num_tasks
    if LossReader(tasks).num_tasks != fork.num_tasks:
        raise ValueError(f"tasks is {tasks!r}, but the fork was made for {fork.num_tasks}")
    return tasks


def _how_to_make(method: "type[GradientBalancer]") -> str:
    """Return how a method is made with a `Fork` and without one, as far as it is defined for them, for messages."""
    features, layer, parameters = (place not in method.undefined_for for place in ("features", "layer", "parameters"))
    ways = []
    if features or layer:
        ways.append(f"{method.__name__}(net.fork{'' if features else ', wrt=net.trunk'}), where net.fork is a Fork")
    if parameters:
        where = " for a model without a Fork" if ways else ""
        ways.append(f"{method.__name__}(None, wrt=net.trunk, tasks=[...]){where}")
    return ", or ".join(ways)
