"""A balancer's state: named tensors with initial values, written in place, and saved as tensors alone.

Besides the declared tensors, the saved state has one float32 vector for what the host knows: the counters, the seed and
the tasks' names, one number for each byte of a name. Numbers like these survive a moving average over checkpoints.
"""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from ..loss_input import LossReader
from ..torch_internals import buffers_of, foreach_copy
from .declared import Declared, Initial, Option
from .readings import State

BYTES_PER_TASK = 32
"""Room for each task's name in the saved state, on average; longer names are not saved."""
DIGIT = 2**8
"""Whole numbers are saved as digits of this base, which float32 and bfloat16 hold exactly."""
MOST_SHOWN = 4
"""Up to this number of tasks, ``repr`` shows their names."""
SEED_DIGITS, COUNTER_DIGITS, CHECKSUM_DIGITS = 8, 6, 4


class _Setting:
    """An option as an attribute of a balancer: what is assigned to it is checked as when the balancer is made.

    It has no ``__get__``, so that Python finds the value itself in the balancer.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __set__(self, balancer: "DeclaredState", value: object) -> None:
        declared = balancer._options.get(self.name)
        if declared is None or not balancer._is_made:
            balancer.__dict__[self.name] = value
            return
        if not declared.can_be_set:
            raise AttributeError(f"{self.name} is fixed when a balancer is made: make a new one, with other values")
        before = balancer.__dict__[self.name]
        balancer.__dict__[self.name] = declared.read(self.name, value, balancer)
        try:
            balancer.option_changed()
        except ValueError:
            balancer.__dict__[self.name] = before
            raise


def _refuse_taken(cls: type["DeclaredState"], name: str) -> None:
    """Raise a TypeError where a class declares the name of a base class's function, property or counter."""
    for base in cls.__mro__[1:]:
        value = vars(base).get(name)
        is_module = base is nn.Module and (name in vars(base) or name in nn.Module.__annotations__)
        if is_module or callable(value) or isinstance(value, property) or type(value) is int:
            raise TypeError(
                f"{cls.__name__} declares {name!r}, which {base.__name__} has for something else: rename it"
            )


class DeclaredState(nn.Module):
    """A module whose class declares options and buffers, so that these can be set anew, and written at once.

    Args:
        reader: knows the tasks.
        options: values of declared options, by name.

    Raises:
        TypeError: an option of this name is not declared.
        ValueError: an option's value is not within its limits.
    """

    _is_made = False
    """Whether the options have their values, so that one which is assigned from now on is changed."""
    seed: int = 0
    """The seed of a method that draws random numbers."""
    drawn = 0
    """The number of updates that drew random numbers."""
    turn = 0
    """With ``update_every``, the number of windows since the last one that was measured; of a method that
    ``takes_turns``, the task whose turn it is."""
    last_weights: Tensor
    _own: ClassVar[dict[str, Option | Declared]] = {}
    _options: ClassVar[dict[str, Option]] = {}
    _states: ClassVar[dict[str, Declared]] = {}

    def __init_subclass__(cls, **options: object) -> None:
        """Take the declarations out of the class, and give its constructor the options as arguments."""
        super().__init_subclass__(**options)
        cls._own = {name: value for name, value in vars(cls).items() if isinstance(value, Option | Declared)}
        for name, value in cls._own.items():
            _refuse_taken(cls, name)
            delattr(cls, name)  # an attribute of the class would hide the buffer
            if isinstance(value, Option) and name != "weighting":  # which is a submodule, and has no such attribute
                setattr(cls, name, _Setting(name))
        declared, seen = dict[str, Option | Declared](), set[str]()
        for base in cls.__mro__:
            own = vars(base).get("_own", {})
            declared |= {name: value for name, value in own.items() if name not in seen}
            seen |= own.keys() | vars(base).keys()
        cls._states = {name: value for name, value in declared.items() if isinstance(value, Declared)}
        given = {name: value.option for name, value in cls._states.items() if value.option is not None}
        cls._options = {name: value for name, value in declared.items() if isinstance(value, Option)} | given

    def __init__(self, reader: LossReader, options: Mapping[str, object]) -> None:
        super().__init__()
        self._reader = reader
        self._declared: dict[str, Declared] = {}
        self._task_dims: dict[str, tuple[int, ...]] = {}
        """The dimensions of each tensor of state that are the tasks; of tracked state it is the first."""
        self._constants: dict[str, list[float]] = {}
        self._made: dict[str, Tensor] = {}
        """The constants as tensors, made on first use where the state is."""
        self._loading: dict[str, Tensor] = {}
        if unknown := [name for name in options if name not in self._options]:
            known = ", ".join(self._options) or "none of its own"
            raise TypeError(f"{type(self).__name__} has no option {unknown[0]!r}; its options are {known}")
        initial = dict[str, Any]()
        for name, declared in self._options.items():
            value = declared.read(name, options[name], self) if name in options else self._default(name)
            if name in self._states:
                initial[name] = value
                continue
            setattr(self, name, value)
            if declared.per_task and not declared.one_of:
                self.constant(name, value)
            if declared.task:
                self.constant(f"is_{name}", [float(i == value) for i in range(self.num_tasks)])
        self.prepare()
        for name, each in self._states.items():
            given = initial.get(name)
            self._register(name, each if given is None else each._replace(initial=given))
        self._is_made = True
        self.register_load_state_dict_pre_hook(_before_loading)
        self.register_load_state_dict_post_hook(_after_loading)

    def _default(self, name: str) -> Any:
        """Return an option's default, as the method uses it."""
        declared = self._options[name]
        return declared.read(name, declared.default(self) if callable(declared.default) else declared.default, self)

    def __repr__(self) -> str:
        """Return one line: the class, the tasks, and the options that differ from their defaults."""
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        named = self.tasks is not None and self.num_tasks <= MOST_SHOWN
        shown = [f"tasks={list(self.tasks or ()) if named else self.num_tasks}"]
        for name in self._options:
            value: Any = self._declared[name].initial if name in self._states else getattr(self, name)
            default = self._states[name].initial if name in self._states else self._default(name)
            if value != default:
                alike = isinstance(value, list) and value.count(value[0]) == len(value)
                shown.append(f"{name}={(value[0] if alike else value)!r}")
        return ", ".join(shown)

    @property
    def num_tasks(self) -> int:
        """T."""
        return self._reader.num_tasks

    @property
    def tasks(self) -> tuple[str, ...] | None:
        """The tasks' names, where they are known."""
        return self._reader.names

    def made_for(self) -> str:
        """Return a clause for messages that names the tasks this balancer expects."""
        return self._reader.made_for()

    def option_changed(self) -> None:
        """Take in that an option of a balancer that is made has another value.

        Raises:
            ValueError: the options don't go together; the option then has its earlier value again.
        """

    # For methods, when they are made.

    def prepare(self) -> None:
        """Check options together, or declare constants that follow from them."""

    def constant(self, name: str, values: Sequence[float]) -> None:
        """Declare one number for each task that never changes. It is in ``state``, and is not saved."""
        self._constants[name] = list(values)
        self._task_dims[name] = (0,)

    def declare(self, name: str, initial: Initial = 0.0, shape: str | tuple[int, ...] = "T") -> None:
        """Declare a tensor of state that depends on how the balancer is made: see `state`."""
        self._register(name, Declared(initial, shape))

    def initial_values(self, name: str) -> list[float]:
        """Return the initial values of a tensor of state of shape ``(T,)``."""
        values = self._declared[name].initial
        assert not callable(values), "it was called when the state was registered"
        return list(values) if isinstance(values, Sequence) else [float(values)] * self.num_tasks

    def _register(self, name: str, declared: Declared) -> None:
        T, shape = self.num_tasks, declared.shape
        sizes = shape if isinstance(shape, tuple) else (T,) * len(shape)
        initial = declared.initial(self) if callable(declared.initial) else declared.initial
        self._declared[name] = declared._replace(initial=initial)
        tasks = tuple(place for place, dim in enumerate(shape) if dim == "T")
        self._task_dims[name] = (0,) if isinstance(shape, tuple) else tasks
        dtype = torch.float32 if declared.float32 else torch.get_default_dtype()
        with torch.inference_mode(False):  # what is made there can't be changed outside
            self.register_buffer(name, torch.empty(sizes, dtype=dtype))
            self._reset(name)

    # For the engine, in a step.

    def state(self, index: Tensor | None = None, new: State | None = None) -> State:
        """Return the state and the constants, with the rows of the tasks at ``index``, ``(T',)``; None: of all.

        ``new`` state takes the place of what is written.
        """
        whole = buffers_of(self) if new is None else {**buffers_of(self), **new}
        if self._constants:
            if not self._made:
                self._make_constants()
            whole = whole | self._made
        if index is None:
            return MappingProxyType(whole)
        return {name: self._rows(name, value, index) for name, value in whole.items()}

    def commit(self, new: State, index: Tensor | None, valid: Tensor) -> None:
        """Write new state in place where ``valid``, a bool scalar, is true; of the tasks at ``index``, or of all."""
        buffers = buffers_of(self)
        for name, value in new.items():
            old, dims = buffers[name], self._task_dims[name]
            if value is old:
                continue
            torch.where(valid, _placed(value, old, dims, index), old, out=old)

    def merged(self, new: State, valid: Tensor, index: Tensor | None) -> State:
        """Return ``new`` state, of all tasks, as `commit` would write it."""
        buffers, dims = buffers_of(self), self._task_dims
        placed = {name: _placed(value, buffers[name], dims[name], index) for name, value in new.items()}
        return {name: torch.where(valid, value, buffers[name]) for name, value in placed.items()}

    def write(self, new: State) -> None:
        """Write state that `merged` returned."""
        buffers = buffers_of(self)
        foreach_copy([buffers[name] for name in new], list(new.values()))

    def _rows(self, name: str, value: Tensor, index: Tensor) -> Tensor:
        for dim in self._task_dims.get(name, ()):
            value = value.index_select(dim, index)
        return value

    def mask(self, given: tuple[bool, ...] | None) -> Tensor:
        """Return a bool tensor ``(T,)`` that says which tasks were given; None: all."""
        mask = torch.zeros_like(self.last_weights, dtype=torch.bool)
        index = self.index(given)
        return mask.logical_not() if index is None else mask.index_fill(0, index, True)

    def index(self, given: tuple[bool, ...] | None) -> Tensor | None:
        """Return the indices of the tasks that were given, ``(T',)``; None if all were.

        They are made by operators on the device, as a copy from the host could wait for it.
        """
        if given is None or all(given):
            return None
        runs, start = [], 0
        for present, run in groupby(given):
            length = len(list(run))
            if present:
                runs.append(torch.arange(start, start + length, device=self.last_weights.device))
            start += length
        return torch.cat(runs)

    def fit(self, losses: Tensor) -> None:
        """Move the state to the losses' device, and to their type where that is wider."""
        now = self.last_weights
        if losses.device != now.device or losses.dtype != now.dtype:
            self._move(losses.device, torch.promote_types(losses.dtype, now.dtype))

    def state_changed(self) -> None:
        """Forget what the host knew of the state, when all of it was set from outside."""

    def reset_parameters(self) -> None:
        """Set all state to its initial values."""
        self.drawn = self.turn = 0
        self._made = {}
        for name in self._declared:
            self._reset(name)
        self.state_changed()

    def _reset(self, name: str) -> None:
        initial, buffer = self._declared[name].initial, self.get_buffer(name)
        with torch.no_grad():
            if isinstance(initial, int | float):
                buffer.fill_(initial)
            elif not callable(initial):
                buffer.copy_(torch.tensor(initial, dtype=torch.float64, device="cpu"))

    @torch.inference_mode(False)
    def _make_constants(self) -> None:
        like = self.last_weights
        for name, each in self._constants.items():
            self._made[name] = torch.tensor(each, dtype=like.dtype, device="cpu").to(like.device)

    @torch.inference_mode(False)
    def _move(self, device: torch.device, dtype: torch.dtype) -> None:
        if device == self.last_weights.device and dtype == self.last_weights.dtype:
            return
        self._made = {}
        for name, declared in self._declared.items():
            wanted = torch.float32 if declared.float32 else dtype
            old: Tensor = self.get_buffer(name)
            if old.is_meta and device.type != "meta":  # it has no values, so it begins with the initial ones
                setattr(self, name, torch.empty(old.shape, dtype=wanted, device=device))
                self._reset(name)
                continue
            new = old.to(device, wanted)
            if new.dtype.itemsize > old.dtype.itemsize:  # an initial value such as 1/3 loses no digits on its way
                initial = torch.tensor(declared.initial, dtype=torch.float64, device="cpu").to(device)
                new = torch.where(new == initial.to(old.dtype), initial.to(wanted), new)
            setattr(self, name, new)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_type(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        self._made = {}
        with torch.inference_mode(False):
            super()._apply(keep_type, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_made": {}}

    # Saving and loading.

    def get_extra_state(self) -> Tensor:
        """Return the counters, the seed and the tasks' names, as float32 numbers."""
        room = BYTES_PER_TASK * self.num_tasks
        names = _coded(self._reader.names)
        numbers = [
            *_digits(self.turn, COUNTER_DIGITS),
            *_digits(self.drawn, COUNTER_DIGITS),
            *_digits(self.seed, SEED_DIGITS),
            *_digits(zlib.crc32(names), CHECKSUM_DIGITS),
            *(names if len(names) <= room else b"").ljust(room, b"\0"),
        ]
        return torch.tensor(numbers, dtype=torch.float32, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        if not isinstance(state, Tensor):  # a placeholder of torch.distributed.checkpoint
            return
        saved = _parse(state)
        self.turn, self.drawn, self.seed = saved.turn, saved.drawn, saved.seed
        self._reader.names = self._reader.names or saved.names


def _placed(value: Tensor, old: Tensor, dims: tuple[int, ...], index: Tensor | None) -> Tensor:
    """Return new state of all tasks, where ``value`` has those at ``index``."""
    value = value.to(old.dtype)
    return value if index is None or not dims else old.index_put((index.unsqueeze(-1), index)[2 - len(dims) :], value)


def _digits(number: int, count: int) -> list[float]:
    return [float(number // DIGIT**i % DIGIT) for i in range(count)]


def _number(digits: Sequence[int]) -> int:
    return sum(digit * DIGIT**i for i, digit in enumerate(digits))


def _coded(names: Sequence[str] | None) -> bytes:
    return b"" if names is None else json.dumps(names, ensure_ascii=False).encode("utf-8", "surrogatepass")


class _Saved(NamedTuple):
    turn: int
    drawn: int
    seed: int
    names: tuple[str, ...] | None
    """None for names that are not known, were too long to save, or were averaged with others."""
    checksum: int | None
    """That of names that were too long to save."""


def _parse(state: Tensor) -> _Saved:
    numbers = state.detach().cpu().double().round().long().tolist()
    turn, rest = numbers[:COUNTER_DIGITS], numbers[COUNTER_DIGITS:]
    drawn, rest = rest[:COUNTER_DIGITS], rest[COUNTER_DIGITS:]
    seed, rest = rest[:SEED_DIGITS], rest[SEED_DIGITS:]
    checksum, rest = _number(rest[:CHECKSUM_DIGITS]), rest[CHECKSUM_DIGITS:]
    coded = bytes(byte for byte in rest if 0 < byte < 256)
    names = (
        tuple(json.loads(coded.decode("utf-8", "surrogatepass"))) if coded and zlib.crc32(coded) == checksum else None
    )
    return _Saved(_number(turn), _number(drawn), _number(seed), names, None if coded else checksum or None)


def _before_loading(balancer: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Refuse the state of other tasks; and load a float64 state as such, although a new balancer is float32."""
    assert isinstance(balancer, DeclaredState)
    extra, reader = state.get(f"{prefix}_extra_state"), balancer._reader
    saved = _parse(extra) if isinstance(extra, Tensor) else None
    names = None if saved is None else saved.names
    if saved and saved.checksum and reader.names and zlib.crc32(_coded(reader.names)) != saved.checksum:
        raise ValueError(f"the state to load is of tasks with other names, but {reader.made_for()}")
    if names is not None and (len(names) != reader.num_tasks if reader.names is None else names != reader.names):
        raise ValueError(f"the state to load is of the tasks ({', '.join(names)}), but {reader.made_for()}")
    weights = state.get(f"{prefix}last_weights")
    if isinstance(weights, Tensor):
        balancer._move(balancer.last_weights.device, weights.dtype)
    balancer._loading = {name: balancer.get_buffer(name) for name in balancer._declared}


def _after_loading(balancer: nn.Module, _: object) -> None:
    assert isinstance(balancer, DeclaredState)
    balancer.state_changed()
    for name, before in balancer._loading.items():
        if balancer.get_buffer(name) is not before:  # assigned: it is the caller's, who may load it once more
            setattr(balancer, name, balancer.get_buffer(name).clone())
    balancer._loading, balancer._made = {}, {}
