"""Declare a method's options, with their limits, and its state, in the body of its class.

::

    alpha: float = option(1.5, at_least=0, tune=Range(0.0, 3.0))
    next_weights: Tensor = state(1.0)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ..loss_input import entries

if TYPE_CHECKING:
    from .declared_state import DeclaredState

Initial = float | Sequence[float] | Callable[[Any], float | Sequence[float]]
"""A number, one for each task, or a function of the balancer that returns either."""


class Range(NamedTuple):
    """The values of a hyper-parameter that are worth trying.

    Example::

        temperature: float = option(1.0, above=0, tune=Range(0.1, 100.0, log=True))
    """

    low: float
    high: float
    log: bool = False
    """Whether to try them evenly by their logarithm."""


@dataclass(frozen=True)
class Option:
    """An option of a method, which is an argument of its constructor and an attribute.

    Example::

        alpha: float = option(1.5, at_least=0)
        preferences: list[float] = option(1.0, at_least=0, per_task=True)
        reference: int | str = option(0, task=True)
    """

    default: object
    """Its default, or a function of the balancer that returns it. Where it is None, None is accepted."""
    _: KW_ONLY
    above: float = -math.inf
    """A number must be above this. Limits can be combined; a value outside raises a ValueError that states them."""
    at_least: float = -math.inf
    """A number must be this or more."""
    at_most: float = math.inf
    """A number must be this or less."""
    below: float = math.inf
    """A number must be below this. Without limits, any finite number will do."""
    whole: bool = False
    """Whether it is a whole number. An option whose default is True or False is one of these two."""
    one_of: tuple[str, ...] = ()
    """The strings that it may be; empty if it is a number."""
    per_task: bool = False
    """Whether it is one value for all tasks, one per task, or a dict by task name. The attribute is a list in task
    order, and each value keeps the limits. Numbers are in ``state`` as well."""
    task: bool = False
    """Whether it is one task, by its index from 0 or by its name. The attribute is the index, and ``state`` has
    ``is_<option>``, which is 1 for this task and 0 for the others."""
    combining: bool = False
    """Whether only methods that combine gradients have it."""
    free: bool = False
    """Whether it may be anything; the method checks it in ``prepare``."""
    fixed: bool = False
    """Whether it can't be set later, as the state or other options follow from it. Options that are ``free``, per task
    or a task are fixed."""
    tune: Range | None = None
    """The values that ``lossbench tune`` and searches draw from; None: they leave the option alone. Not a limit."""

    @property
    def can_be_set(self) -> bool:
        """Whether it can be set later."""
        return not (self.fixed or self.free or self.per_task or self.task)

    def read(self, name: str, value: object, balancer: "DeclaredState") -> Any:
        """Return ``value`` as the method uses it: checked, and of an option per task as a list in task order.

        Raises:
            ValueError: it is not within the limits, or not one per task; the message names the option.
        """
        if self.free or (self.default is None and value is None):
            return value
        if isinstance(self.default, bool):
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}; expected True or False")
            return value
        value = _plain(value)
        if self.task:
            return _place(name, value, balancer)
        found = [_plain(each) for each in _each(name, value, balancer)] if self.per_task else [value]
        if any(not self._holds(each) for each in found):
            kind = ("positive, " if self.above == 0 else "") + ("whole number" if self.whole else "finite number")
            kind = f"{kind}s" if self.per_task else f"a {kind}"
            limits = [f"above {self.above:g}"] * (self.above > 0)
            limits += [f"{self.at_least:g} or more"] * (self.at_least > -math.inf)
            limits += [f"{self.at_most:g} or less"] * (self.at_most < math.inf)
            limits += [f"below {self.below:g}"] * (self.below < math.inf)
            wanted = " or ".join(map(repr, self.one_of)) or kind + ", " * bool(limits) + " and ".join(limits)
            raise ValueError(f"{name} is {value!r}; expected {wanted}")
        return found if self.per_task else value

    def _holds(self, value: object) -> bool:
        if self.one_of:
            return value in self.one_of
        if not isinstance(value, int if self.whole else int | float) or isinstance(value, bool):
            return False
        return math.isfinite(value) and self.above < value < self.below and self.at_least <= value <= self.at_most


class Declared(NamedTuple):
    """A tensor of state, which is saved.

    Example::

        averages: Tensor = state()
        next_weights: Tensor = state(lambda balancer: 1 / balancer.num_tasks)
        steps: Tensor = state(shape="")
    """

    initial: Initial = 0.0
    """The value of all entries, one for each task, or a function of the balancer that returns either."""
    shape: str | tuple[int, ...] = "T"
    """``"T"`` for one number a task, ``"TT"`` for each pair of tasks, ``""`` for a scalar."""
    float32: bool = False
    """Whether it stays float32 where losses are float64."""
    option: Option | None = None
    """An option of the same name that gives the initial values."""


# A class has the declaration as an attribute, and a balancer the value. `Any` hides the former from type checkers.
option = cast(Callable[..., Any], Option)
state = cast(Callable[..., Any], Declared)


def _plain(value: object) -> object:
    """Return a tensor, an array or a number of NumPy as Python's own list or number; anything else as it is."""
    return cast(Any, value).tolist() if hasattr(value, "__array__") else value


def _place(name: str, value: object, balancer: "DeclaredState") -> int:
    """Return the index of the task that ``value`` names."""
    places = range(balancer.num_tasks) if isinstance(value, int) else balancer.tasks or ()
    if value not in places or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, but {balancer.made_for()}")
    return list(places).index(cast(Any, value))


def _each(name: str, values: Any, balancer: "DeclaredState") -> list[Any]:
    """Return one value per task, from one for all, a sequence, or a dict by task name."""
    if isinstance(values, Mapping):
        if balancer.tasks is None:
            raise ValueError(f"{name} goes by names, but {balancer.made_for()} without names: tasks=[...] names them")
        if set(values) != set(balancer.tasks):
            raise ValueError(f"{name} names ({', '.join(map(str, values))}), but {balancer.made_for()}")
        return [values[task] for task in balancer.tasks]
    if isinstance(values, str) or not isinstance(values, Sequence):
        return [values] * balancer.num_tasks
    if len(values) != balancer.num_tasks:
        raise ValueError(f"{name} has {entries(values)}, but {balancer.made_for()}")
    return list(values)
