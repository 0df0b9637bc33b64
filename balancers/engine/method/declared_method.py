"""Declare a method, and call its two functions, `weigh` and `update`.

A method is two pure functions: `weigh`, which returns the weights of a step, and `update`, which learns from what the
step showed. Here each gets the arguments that it names, for the tasks that take part, and what it returns is checked
and written to the state. When that happens, a `LossBalancer` decides.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..loss_input import LossReader
from ..own_precision import own_precision
from ..torch_internals import compiled
from .declared import Option, Range
from .declared_state import DeclaredState
from .method_checks import check_result, check_weights
from .readings import NOTHING, Read, Result, State
from .rng import Draws

Reads = Literal["nothing", "losses", "norms", "gramian", "gradients", "second batch", "residuals"]
Wrt = Literal["features", "layer", "parameters"]
REQUIRED: Any = object()
"""The default of an argument that has none to a caller, where a message says more about it than Python's would."""
SEED = Option(default=0, at_least=0, below=2**63, whole=True)
FOLLOWS = ("combines", "looks_again", "heads", "tunable")
"""Attributes of a class that it can't set itself."""


class DeclaredMethod(DeclaredState):
    """The declarations of a method, and the calls of its functions.

    Args:
        reader: knows the tasks.
        options: values of declared options, by name.
        compile: whether updates are compiled.

    Raises:
        TypeError: an option of this name is not declared, or the method's function takes an unknown argument.
        ValueError: an option's value is not within its limits, or ``compile`` is not a bool.
    """

    # Each method declares these.

    name: ClassVar[str]
    """The method's name in the registry."""
    summary: ClassVar[str]
    """One sentence that says how the method works."""
    use_when: ClassVar[str] = ""
    """One sentence that says when to use it."""
    reads: ClassVar[Reads] = "losses"
    """The input of the weights: nothing, the losses, the gradients' norms, their inner products or all entries, what a
    `second_batch` shows, or the gradients of residuals."""
    when: ClassVar[Literal["forward", "backward", "after_step"]] = "backward"
    """When `update` runs: before the losses are weighed, with the weights that it leads to; after the backward pass; or
    when `LossBalancer.after_step` is called."""
    needs_second_batch: ClassVar[bool] = False
    """Whether it needs `second_batch`."""
    needs_optimizer: ClassVar[bool] = False
    """Whether it needs to `follow` the network's optimiser, whose step it foresees."""
    needs_positive_losses: ClassVar[bool] = False
    """Whether it is defined for positive losses alone. In a step where one is not, the weights stay as they were."""
    needs_nonnegative_losses: bool = False
    """The same for losses of zero or more."""
    expects_nonnegative_losses: ClassVar[bool] = False
    """Whether it accepts losses below zero, but goes astray where they stay there: a warning says so."""
    out_of_domain: ClassVar[str] = "the weights may go astray"
    """The effect of such losses, in the words of that warning."""
    compares_tasks: ClassVar[bool] = True
    """Whether it compares the tasks of a step or window. Where each has one task alone, a warning says so, unless the
    method reads nothing or `sees_all_tasks`."""
    sees_all_tasks: ClassVar[bool] = False
    """Whether `update` gets all T tasks' losses and state, and ``read.present``; false: those that take part."""
    takes_turns: bool = False
    """Whether a step with the losses of all tasks trains on one of them, in turn."""
    may_ascend: ClassVar[bool] = False
    """Whether weights may be below zero: such a step raises that task's loss."""
    random: ClassVar[bool] = False
    """Whether it draws random numbers: it then takes ``seed``."""
    replaces_gradients: ClassVar[bool] = False
    """Whether shared parameters receive something other than a weighted sum of the tasks' gradients."""
    weigh: Callable[..., Tensor]
    """Returns the weights of a step. Only methods that read the Gramian or the gradients can do without it."""
    update: Callable[..., Result]
    """Learns from a step. Methods that keep state write it, and those that read the Gramian or the gradients."""
    solve: Callable[[Tensor], Tensor]
    """Returns weights for a Gramian: a method that reads it and keeps no state may write this in place of `update`."""

    # The engine derives these from the declarations.

    combines: ClassVar[bool] = False
    """Whether it decides in each backward pass what that pass's gradients are multiplied by."""
    looks_again: bool = False
    """Whether it needs `LossBalancer.after_step`."""
    heads: Literal["weighted", "plain"] = "weighted"
    """Whether heads are trained on the losses as `weigh` multiplies them, or as they are."""
    tunable: ClassVar[Mapping[str, Range]] = MappingProxyType({})
    """Its hyper-parameters, as its arguments name them, and the ranges worth tuning."""
    __signature__: ClassVar[inspect.Signature]
    _weigh_takes: ClassVar[tuple[str, ...] | None] = None
    """The arguments of `weigh`; None: the class has no such function."""
    _update_takes: ClassVar[tuple[str, ...] | None] = None
    _weighs_by_losses: ClassVar[bool] = False

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        if wrong := [name for name in FOLLOWS if name in vars(cls)]:
            raise TypeError(f"{cls.__name__} sets {wrong[0]}, which follows from what it reads and when it learns")
        cls._weigh_takes = _arguments(cls, "weigh", ("losses", "state", "draws"))
        cls._update_takes = _arguments(cls, "update", ("read", "state", "draws"))
        cls._weighs_by_losses = "losses" in (cls._weigh_takes or ())
        cls.random = vars(cls).get("random", False) or "draws" in (
            *(cls._weigh_takes or ()),
            *(cls._update_takes or ()),
        )
        if cls.random:
            cls._options = cls._options | {"seed": SEED}
        cls.combines = cls.reads in ("gramian", "gradients")
        cls._options = {name: each for name, each in cls._options.items() if cls.combines or not each.combining}
        cls.__signature__ = _signature(cls)
        cls.looks_again = cls.when == "after_step"
        cls.heads = "plain" if cls.combines and cls._weigh_takes is None else "weighted"
        cls.tunable = {name: each.tune for name, each in cls._options.items() if each.tune is not None}

    def __init__(self, reader: LossReader, options: Mapping[str, object], compile: bool) -> None:
        if not isinstance(compile, bool):
            raise ValueError(f"compile is {compile!r}; expected True or False")
        super().__init__(reader, options)
        self.compiles = compile
        """Whether updates are compiled."""
        self._compiled: dict[str, Callable[..., Any]] = {}
        self._checked: set[bool] = set()
        """Kinds of steps whose first result was checked: True for steps with all tasks, False for those with some."""
        self._settles = self.settled(self.state()) is not None

    def option_changed(self) -> None:
        self._settles = self.settled(self.state()) is not None

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_compiled": {}}

    def extra_repr(self) -> str:
        return super().extra_repr() + ", compile=True" * self.compiles

    @property
    def weighs(self) -> bool:
        """Whether losses are multiplied before the backward pass."""
        return self._weigh_takes is not None or not self.combines

    @property
    def loss_domain(self) -> str:
        """The kind of losses that the method is made for, for messages; empty if it takes any."""
        if self.needs_positive_losses:
            return "positive"
        return "nonnegative" if self.needs_nonnegative_losses or self.expects_nonnegative_losses else ""

    @property
    def checks_losses(self) -> bool:
        """Whether a step is not valid where a loss is out of the domain."""
        return self.needs_positive_losses or self.needs_nonnegative_losses

    def label(self, i: int) -> str:
        """Return the name of task ``i``, for messages."""
        return self._reader.label(i)

    def _weights_by(self, index: Tensor | None = None, new: State | None = None, **more: object) -> Tensor:
        """Call `weigh` for the tasks at ``index``, or for all; return their weights, ``(T',)``; see `_arguments`."""
        with own_precision(self.last_weights):
            weights = self.weigh(**self._arguments(self._weigh_takes, index, new, **more))
        check_weights(self, weights, self.num_tasks if index is None else len(index))
        return weights

    def _arguments(
        self, takes: Sequence[str] | None, index: Tensor | None = None, new: State | None = None, **more: object
    ) -> dict[str, Any]:
        """Return the arguments that a method's function takes, with state of the tasks at ``index``, or ``new``."""
        takes = takes or ()
        if "state" in takes:
            more["state"] = self.state(index, new)
        if "draws" in takes:
            more["draws"] = Draws(self.seed, self.drawn, self.last_weights)
        return {name: more[name] for name in takes}

    def _select(self, read: Read, given: tuple[bool, ...] | None) -> Tensor | None:
        """Reduce ``read`` to the tasks that took part; return their indices, or None if ``update`` gets all tasks."""
        if self.sees_all_tasks:
            read.present = None if given is None else self.mask(given)
            return None
        index = self.index(given)
        if index is not None:
            read.rest = (read.weights * ~self.mask(given)).sum()
            for name in ("losses", "weights", "norms", "losses_before", "second_losses", "products"):
                rows = getattr(read, name)
                if rows is not NOTHING:
                    setattr(read, name, rows[index])
            if read.products.ndim == 2:
                read.products = read.products[:, index]
        return index

    def compiled(self, function: Literal["_new_state", "_updated"]) -> Callable[..., Any]:
        """Return one of this balancer's functions, which is compiled when it is called for the first time."""
        if function not in self._compiled:
            self._compiled[function] = compiled(getattr(type(self), function))
        return partial(self._compiled[function], self)

    def _new_state(
        self, read: Read, arguments: Mapping[str, Any], also_valid: Tensor | None
    ) -> tuple[Tensor, State, State]:
        """Return whether everything is valid (a bool scalar), the new state, and the statistics: see `_updated`.

        A compiled function writes no state itself: PyTorch loses what it writes to a scalar of double precision.
        """
        valid, result = self._updated(read, arguments, None, also_valid)
        new = dict(result.state)
        if result.gradient is not None:
            new |= self._stepped(result.gradient, read, None)
        return valid, self.merged(new, valid, None), result.statistics

    def _updated(
        self, read: Read, arguments: Mapping[str, Any], index: Tensor | None, also_valid: Tensor | None = None
    ) -> tuple[Tensor, Result]:
        """Call `update`; return whether everything is valid (a bool scalar), and the result.

        Args:
            read: what the step showed.
            arguments: those of `update`.
            index: the tasks that took part.
            also_valid: a bool scalar: whether all that ``read`` does not hold was valid; None if that is known.
        """
        settled = self.settled(self.state(index)) if self._settles else None
        if self._update_takes is not None:
            result = self.update(**arguments)
        elif hasattr(type(self), "solve"):
            result = Result(self.solve(read.gramian))
        else:
            raise NotImplementedError(f"{type(self).__name__} must override update")
        if not torch.compiler.is_compiling() and (index is None) not in self._checked:
            check_result(self, result, len(read.losses), index)
            self._checked.add(index is None)
        losses = read.losses if read.present is None else torch.where(read.present, read.losses, 1.0)
        others = [read.norms, read.tracked, read.losses_before, read.second_losses, read.products]
        valid = self._valid(losses, *others, result.weights, result.gradient, *result.state.values())
        if also_valid is not None:
            valid = valid & also_valid
        if settled is not None:
            valid = valid & ~settled
        return valid, result

    def _commit(self, result: Result, read: Read, index: Tensor | None, valid: Tensor) -> None:
        """Write the new state, where ``valid``."""
        self.commit(result.state, index, valid)
        if result.gradient is not None:
            self._step_in_place(result.gradient, read, index, valid)

    def _count_draws(self) -> None:
        if "draws" in (self._update_takes or ()):
            self.drawn += 1

    def lowest_losses(self, state: State) -> Tensor | float:
        """Return the bound that losses must exceed or reach, ``(T',)`` or one for all; see `needs_positive_losses`."""
        return 0.0

    def settled(self, state: State) -> Tensor | None:
        """Return a bool scalar: whether the method has stopped learning; None if it does not stop."""
        return None

    def _valid(self, losses: Tensor, *others: Tensor | None) -> Tensor:
        """Return a bool scalar: whether all numbers are finite, and all losses as the method needs them."""
        if self.needs_positive_losses:
            losses = losses.log()
        elif self.needs_nonnegative_losses:
            losses = losses.sqrt()
        given = [part for part in (losses, *others) if part is not None and part is not NOTHING]
        parts = [part if part.ndim == 1 else part.flatten() for part in given]
        valid: Tensor = torch.linalg.vector_norm(torch.cat(parts), math.inf) < math.inf
        return valid

    def _step_in_place(self, gradient: Tensor, read: Read, index: Tensor | None, valid: Tensor) -> None:
        """Make the optimiser's step, where ``valid``, of a method that learns its state by gradients."""
        raise TypeError(f"{type(self).__name__} returned a gradient, so it must be a LearnedState")

    def _stepped(self, gradient: Tensor, read: Read, index: Tensor | None) -> State:
        """Return the state of the tasks at ``index`` after the optimiser's step, as a function that can be compiled."""
        raise NotImplementedError

    def _check_valid(self, valid: Tensor) -> None:
        settled = self.settled(self.state()) if self._settles else None
        if not valid and not (settled is not None and settled):  # what has settled takes no step for valid
            raise FloatingPointError("this step's losses or gradients are not valid; the balancer's state is unchanged")


def _signature(cls: type[DeclaredMethod]) -> inspect.Signature:
    """Return the constructor's signature, with the declared options in place of ``**options``."""
    arguments = dict(list(inspect.signature(cls.__init__).parameters.items())[1:])
    for name, argument in arguments.items():
        if argument.default is REQUIRED:
            arguments[name] = argument.replace(default=inspect.Parameter.empty)
    if arguments.pop("options", None) is not None:
        types = dict(item for base in reversed(cls.__mro__) for item in inspect.get_annotations(base).items())
        for name, option in cls._options.items():
            argument = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option.default)
            arguments.setdefault(name, argument.replace(annotation=types.get(name, int)))
    return inspect.Signature(list(arguments.values()))


def _arguments(cls: type, function: str, known: Sequence[str]) -> tuple[str, ...] | None:
    """Return the names of the arguments that a method's function takes; None if the class has no such function."""
    if not hasattr(cls, function):
        return None
    names = [name for name in inspect.signature(getattr(cls, function)).parameters if name != "self"]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise TypeError(f"{cls.__name__}.{function} takes {unknown[0]!r}; expected some of {', '.join(known)}")
    return tuple(names)
