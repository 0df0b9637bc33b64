"""Checks of how a balancer keeps and saves its state: as tensors alone, at fixed addresses, and no more with time."""

import gc
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import CellType, FunctionType, MethodType

import torch
from torch import Tensor
from torch.autograd.graph import Node

from .contract import (
    SUBSETS,
    TASKS,
    Case,
    Fault,
    Step,
    Subject,
    assert_state,
    assert_traces,
    sequence,
    state_of,
)

# Saved state.


def _used(case: Case, steps: int = 6) -> Subject:
    """Return a subject that has made some steps, the last of which left a task out."""
    subject = Subject(case)
    *first, last = sequence(steps)
    subject.run([*first, last.without("b")])
    return subject


def saves_tensors_alone(case: Case) -> None:
    """Check that the saved state is tensors, contiguous, without shared storage, and loads to the bit."""
    for balancer in (Subject(case).balancer, _used(case).balancer):
        assert list(balancer.parameters()) == [], "a parameter would be trained with the network's"
        saved, storages = balancer.state_dict(), set[int]()
        for key, value in saved.items():
            assert isinstance(value, Tensor), f"{key} is of type {type(value).__name__}"
            assert value.dtype.is_floating_point, f"{key} is {value.dtype}, of which no average can be taken"
            assert value.is_contiguous(), f"{key} is not contiguous"
            storage = value.untyped_storage()
            assert storage.nbytes() == value.numel() * value.itemsize, f"{key} is a part of a larger storage"
            storages.add(storage.data_ptr())
        assert len(storages) == len(saved), "entries share their storage"
        file = io.BytesIO()
        torch.save(saved, file)
        file.seek(0)
        _assert_loads(case, torch.load(file, weights_only=True), saved)


def survives_as(case: Case, copied: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> None:
    """Check that a saved state that went through ``copied`` loads to the bit."""
    saved = _used(case).balancer.state_dict()
    _assert_loads(case, copied(saved), saved)


def _assert_loads(case: Case, copied: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    subject, other = Subject(case), Subject(case)
    subject.balancer.load_state_dict(copied)
    other.balancer.load_state_dict(saved)
    loaded = subject.balancer.state_dict()
    assert loaded.keys() == saved.keys()
    for key, value in saved.items():
        assert torch.equal(loaded[key], value), f"{key} did not survive"
    steps = sequence(4, seed=3)
    assert_traces(subject.run(steps), other.run(steps), "after loading")


def survives_averaging(case: Case) -> None:
    """Check that a moving average over saved states loads, keeps the tasks and the seed, and goes on."""
    subject = Subject(case)
    steps = sequence(8)
    subject.run(steps[:2])
    average = {key: value.clone() for key, value in subject.balancer.state_dict().items()}
    for begin in (2, 4, 6):
        subject.run(steps[begin : begin + 2])
        saved = subject.balancer.state_dict()
        for key in average:
            average[key].mul_(0.9).add_(saved[key], alpha=0.1)
    found = Subject(case)
    found.balancer.load_state_dict(average)
    loaded, last = found.balancer.state_dict(), state_of(subject.balancer)
    for key, value in average.items():
        if not key.endswith("_extra_state"):
            assert torch.equal(loaded[key], value), f"{key} is not the average"
    assert found.balancer.tasks == last["tasks"]
    assert found.balancer.seed == last["seed"]
    assert 0 <= found.balancer.drawn <= last["drawn"]
    for trace in found.run(sequence(4, seed=3)):
        assert all(part.isfinite().all() for part in trace), "after loading an average"


def begins_on_meta(case: Case, how: str) -> None:
    """Check that a balancer made on the meta device and then filled runs as one made on the CPU.

    Args:
        case: the case.
        how: it is filled by ``reset_parameters`` ("reset"), or by loading with ``assign=True`` ("assign").
    """
    steps, subject, expected = sequence(8), Subject(case, device="meta"), Subject(case)
    assert all(buffer.is_meta for buffer in subject.balancer.buffers())
    saved: dict[str, Tensor] = {}
    if how == "reset":
        subject.balancer.to_empty(device="cpu")
        for buffer in subject.balancer.buffers():
            buffer.fill_(torch.nan)  # as garbage may be
        subject.balancer.reset_parameters()
    else:
        expected.run(steps[:4])
        saved = {key: value.clone() for key, value in expected.balancer.state_dict().items()}
        subject.balancer.load_state_dict(saved, assign=True)
    before = {key: value.clone() for key, value in saved.items()}
    assert_traces(subject.run(steps[4:]), expected.run(steps[4:]), f"made on meta, by {how}")
    assert_state(subject.balancer, state_of(expected.balancer), why=f"made on meta, by {how}")
    changed = [key for key, value in before.items() if not torch.equal(saved[key], value)]
    assert changed == [], f"{', '.join(changed)} changed in the state dict that was assigned"


def resets(case: Case) -> None:
    """Check that ``reset_parameters`` makes a used balancer a new one, amid windows and turns too."""
    steps = sequence(6)
    expected = Subject(case)
    traces, final = expected.run(steps), state_of(expected.balancer)
    for passes in (1, 2, 3):
        subject = Subject(case)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*learns in after_step")  # which these passes go without
            for step in sequence(passes, seed=9):
                subject.backward(step)
        subject.balancer.reset_parameters()
        assert_traces(subject.run(steps), traces, f"reset after {passes} passes")
        assert_state(subject.balancer, final, why=f"reset after {passes} passes")


# Memory.


def does_not_grow(case: Case) -> None:
    """Check that what a balancer holds does not grow, whatever tasks the steps have, and that it holds no graph."""
    gc.freeze()  # what was there before is not looked at
    try:
        _does_not_grow(case)
    finally:
        gc.unfreeze()


def _does_not_grow(case: Case) -> None:
    subject = Subject(case)
    held, alive = [], []
    steps = sequence(14)
    for cycle in range(3):
        for i, step in enumerate(steps):  # a whole number of windows and turns, and of subsets
            some = step.without(("", *SUBSETS)[2 * i % 7])
            subject.backward(some)
            subject.after_step(some)
        found = {id(each): each for each in reachable(subject.balancer)}.values()
        graphs = [each for each in found if isinstance(each, Node) or each.grad_fn is not None]
        assert graphs == [], f"a graph is held after cycle {cycle}"
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in found}
        held.append((len(found), sum(storages.values())))
        found, graphs = (), []
        alive.append(tensors_alive())
    # One small tensor comes and goes: at every tenth update, balancers look for losses that the method is not made for.
    growth = [max(numbers) - min(numbers) for numbers in zip(*held, strict=True)]
    assert growth[0] <= 1, f"tensors and bytes held, cycle by cycle: {held}"
    assert growth[1] <= 8 * len(TASKS), f"tensors and bytes held, cycle by cycle: {held}"
    assert alive[2] <= alive[1] + 2, f"tensors alive in the process, cycle by cycle: {alive}"


def tensors_alive() -> int:
    """Return the number of tensors made since `gc.freeze`, also those in modules, classes and caches."""
    gc.collect()
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


def reachable(root: object) -> Iterator[Tensor | Node]:
    """Yield the tensors and autograd nodes that an object holds, by way of other objects and functions too."""
    waiting, seen = [root], set[int]()
    keep = []  # so that no id is used twice
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        keep.append(found)
        if isinstance(found, Tensor | Node):
            yield found
        elif not isinstance(found, type | str | bytes | int | float | complex | None):
            waiting += _parts(found)


def _parts(found: object) -> list[object]:
    """Return what an object refers to by itself."""
    if isinstance(found, Mapping):
        return [*found.keys(), *found.values()]
    if isinstance(found, list | tuple | set | frozenset):
        return [*found]
    if isinstance(found, partial):
        return [found.func, found.args, found.keywords]
    if isinstance(found, MethodType):
        return [found.__self__, found.__func__]
    if isinstance(found, FunctionType):
        return [found.__closure__, found.__defaults__, found.__kwdefaults__, found.__dict__]
    if isinstance(found, CellType):
        return [found.cell_contents]
    slots = [name for each in type(found).__mro__ for name in getattr(each, "__slots__", ())]
    return [getattr(found, "__dict__", None), *(getattr(found, name, None) for name in slots if name != "__weakref__")]


# Addresses.


def keeps_addresses(case: Case) -> None:
    """Check that buffers stay where they are, whatever steps are made and states are loaded, as CUDA graphs need."""
    subject = Subject(case)
    subject.look(sequence(1)[0])  # the first losses widen the state to their type
    buffers = dict(subject.balancer.named_buffers())
    addresses = {key: buffer.data_ptr() for key, buffer in buffers.items()}

    def assert_same(what: str) -> None:
        now = {key: buffer.data_ptr() for key, buffer in subject.balancer.named_buffers()}
        moved = [key for key in addresses if now.get(key) != addresses[key]]
        assert now.keys() == addresses.keys(), what
        assert moved == [], f"{', '.join(moved)} moved {what}"

    saved = {key: value.clone() for key, value in subject.balancer.state_dict().items()}
    for step in _all_sorts_of_steps():
        subject.backward(step)
        assert_same(f"in a step of {step.tasks}")
        subject.after_step(step)
        assert_same("after a step")
        subject.look(step)
        assert_same("in an evaluation")
    subject.balancer.close_window()
    assert_same("at a window's end")
    subject.balancer.load_state_dict(saved)
    assert_same("when a state was loaded")
    subject.run(sequence(2, seed=4))
    assert_same("after a state was loaded")
    subject.balancer.reset_parameters()
    assert_same("when it was reset")


def _all_sorts_of_steps() -> Sequence[Step]:
    """Return steps with all tasks and with some, and steps that are not valid."""
    steps = list(sequence(8))
    for t, out in ((1, "a"), (3, "bc"), (4, "c")):
        steps[t] = steps[t].without(out)
    steps[5] = Fault("loss", torch.nan, 1).spoil(steps[5])
    steps[6] = Fault("loss", torch.inf, len(TASKS) - 1).spoil(steps[6])
    return steps


def shows_copies_of_its_weights(case: Case) -> None:
    """Check that weights that a user keeps don't change with later steps, and that changing them changes no step."""
    subject, other = Subject(case), Subject(case)
    kept: list[tuple[Tensor, Tensor]] = []
    for step in sequence(6):
        for weights in (subject.look(step), subject.backward(step).weights, subject.balancer.weights):
            kept.append((weights, weights.clone()))
        other.look(step)
        other.backward(step)
        subject.after_step(step)
        other.after_step(step)
    assert all(torch.equal(weights, copy) for weights, copy in kept), "weights that were kept changed"
    for weights, _ in kept:
        weights.fill_(torch.nan)
    steps = sequence(4, seed=3)
    assert_traces(subject.run(steps), other.run(steps), "after weights that were kept were changed")
