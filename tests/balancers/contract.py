"""The contract that every method keeps, as checks that take a `Case` and raise AssertionError.

A `Subject` is a small network and a balancer of the case's method. It trains on planted steps: the value and the
gradients of each task's loss are given numbers, so that one sequence of steps serves every method at every place. The
checks read only what a user can read: the saved state, ``weights`` and the network's gradients.

`contract_state` has the checks of how state is kept and saved, and `contract_passes` those of single backward passes.
"""

import copy
import inspect
import io
import itertools
import math
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from balancers import Fork, GradientBalancer, LossBalancer

from .needs import end_window, supply

TASKS = ("a", "b", "c")
"""Names of the tasks. No other dimension here has their number, which marks the dimensions of per-task state."""
PLACES = ("features", "layer", "parameters")
MODES: Mapping[str, Mapping[str, int]] = {
    "": {},
    "accumulate": {"accumulate": 2},
    "update_every": {"update_every": 2},
}
"""Options that say which passes make an update. Empty: each pass makes one."""
REPRESENTATIVES = (
    "equal",  # has nothing to read
    "random",  # draws
    "uncertainty",  # learns by descent
    "dwa",  # reads losses
    "famo",  # looks at them again
    "gradnorm",  # learns from norms
    "inverse-norm",  # averages norms
    "mgda",  # solves
    "pcgrad",  # combines in a random order
    "moco",  # averages gradients
    "metabalance",  # replaces gradients
    "modo",  # reads a second batch
)
"""Methods that stand for their kinds in checks of what the base classes do."""

# Options and exceptions of single methods, for the checks. A method that is not listed has neither.

OPTIONS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "auto-lambda": [{}, {"primary": ["a", "c"], "optimizer": "sgd", "lr": 0.1}],
    "coba": [{"window": 5, "warm_up": 1}, {"window": 2, "warm_up": 2}],
    "cosmos": [{"preferences": [0.5, 0.2, 0.3]}, {}],
    "cov": [{}, {"decay": 0.9}],
    "dwa": [{"period": 2}],
    "encodec": [{"beta": 0.9}, {"shares": [0.5, 1.0, 2.0], "per_batch_item": False}],
    "epo": [{"preferences": [0.5, 0.2, 0.3]}, {}],
    "excess-mtl": [{"step_size": 0.1}],
    "famo": [{}, {"min_losses": [0.01, 0.0, 0.02]}],
    "go4align": [{}, {"num_groups": 1}],
    "gradnorm": [{}, {"optimizer": "sgd"}, {"initial_losses": [1.0, 2.0, 3.0]}],
    "graddrop": [{}, {"leak": [0.0, 0.5, 1.0]}],
    "imtl": [{}, {"optimizer": "sgd"}],
    "imtl-l": [{}, {"optimizer": "sgd"}],
    "inverse-loss": [{}, {"first_steps": 4}],
    "inverse-norm": [{}, {"first_steps": 4}],
    "ldc-mtl": [{}, {"optimizer": "sgd", "rho": 0.1}],
    "m-config": [{"takes_turns": False}],
    "modo": [{"gamma": 1e-3}, {"gamma": 1e-3, "rho": 1.0}],
    "ntk": [{"update_every": 1, "probes": 2}, {"update_every": 1}],
    "pbi": [{"preferences": [0.5, 0.2, 0.3]}, {"ideal": [0.01, 0.0, 0.02]}],
    "relobralo": [{"alpha": 0.8, "rho": 0.5}],
    "revised-uncertainty": [{}, {"optimizer": "sgd"}],
    "self-adaptive": [{}, {"mask_function": "sigmoid", "initial": [0.5, -1.0, 0.0], "optimizer": "sgd"}],
    "stch": [{"preferences": [0.5, 0.2, 0.3]}, {"ideal": [0.01, 0.0, 0.02]}],
    "softadapt": [{"period": 2, "beta": 2.0}, {"period": 2, "normalized": True, "loss_weighted": True}],
    "sdmgrad": [{"lr": 0.01}, {"lr": 0.01, "preferences": [0.5, 0.2, 0.3], "iterations": 3}],
    "static": [{"weights": [0.5, 1.0, 1.5]}],
    "tchebycheff": [{"preferences": [0.5, 0.2, 0.3]}, {"ideal": [0.01, 0.0, 0.02]}],
    "uncertainty": [{}, {"optimizer": "sgd"}],
    "vqgan": [{}, {"start": 2}],
}
"""The options to make a method with, each set in turn: required ones, and those that change what the method keeps."""
REFUSES_NEGATIVE_LOSSES: Mapping[str, Mapping[str, Any]] = {
    "epo": {},
    "gradnorm": {},
    "imtl": {},
    "imtl-l": {},
    "softadapt": {"loss_weighted": True},
}
"""Methods for which a negative loss is invalid, but not a loss of zero, and the options under which it is."""
NEEDS_TASKS: Mapping[str, str] = {"lr-annealing": "a", "metabalance": "a", "pcd": "a", "vqgan": "ac"}
"""Methods that change nothing in a step without one of these tasks."""
DEFAULT_PREFERENCES = ("cosmos", "epo", "tchebycheff", "stch")
"""Methods whose weights depend on the number of tasks that the balancer was made for, without ``preferences``."""
COMBINES_ABSENT_TASKS = ("m-config",)
"""Methods whose weights are those of what was averaged of all tasks, also of those that have no loss in the step."""
OF_ALL_TASKS = ("auto-lambda", "m-config", "relobralo", "sdmgrad")
"""Methods whose weights depend on all tasks that the balancer was made for."""
DRAWS_FOR_ABSENT_TASKS = ("random",)
"""Methods that draw new weights for all tasks, also for those that had no loss in the step."""

FOR_EACH_TENSOR = ("norms",)
"""State of each task and shared tensor: the second dimension is not the tasks, although it has as many entries."""

RECORDS = ("last_weights", "weighting.last_weights")
"""State that records the last step, which a step that is not valid changes too: see `_run_bad_pass`."""
DRAWN, TURN = "drawn", "turn"
"""Two numbers that the host counts: of updates that drew random numbers, and of windows of ``update_every``."""


@dataclass(frozen=True, eq=False)
class Case:
    """A method, the place at which it measures, and the options it is made with."""

    method: type[LossBalancer]
    place: str = ""
    """One of `PLACES`; empty for a method that reads no gradients."""
    options: Mapping[str, Any] = field(default_factory=dict)
    mode: str = ""
    """One of `MODES`."""
    label: str = ""
    """The test's name for it."""

    @property
    def measures(self) -> bool:
        """Return whether the method reads the tasks' gradients."""
        return issubclass(self.method, GradientBalancer)

    @property
    def combines(self) -> bool:
        """Return whether the method decides in each backward pass on that pass's own gradients."""
        return self.method.combines

    @property
    def by_state(self) -> bool:
        """Return whether a step's weights follow from the state alone."""
        return not self.combines and "losses" not in inspect.signature(self.method.weigh).parameters

    @property
    def ahead(self) -> bool:
        """Return whether a step's weights are known before the step."""
        return self.by_state and not self.looks_ahead

    @property
    def looks_ahead(self) -> bool:
        """Return whether the state changes in a step before its losses are weighed."""
        return self.method.when == "forward"

    @property
    def learns(self) -> bool:
        """Return whether a step's backward pass, or the losses after it, change what later steps do."""
        return self.measures or hasattr(self.method, "update")

    @property
    def at_home(self) -> bool:
        """Return whether the method measures where its paper does, with the first set of its options."""
        first = OPTIONS.get(self.method.name, [{}])[0]
        return self.options == first and self.place in ("", getattr(self.method, "default_wrt", ""))

    @property
    def passes(self) -> int:
        """Return the number of backward passes that the method makes one update from."""
        return 1 if self.combines else MODES[self.mode].get("accumulate", 1)

    @property
    def counters(self) -> tuple[str, ...]:
        """Return the keys of the state that a step that is not valid may change as well."""
        return (DRAWN,) * self.method.random

    @property
    def windows(self) -> int:
        """Return the number of windows of which the method measures the first."""
        return MODES[self.mode].get("update_every", 1)

    def make(self, net: "Net", tasks: Sequence[str], **more: Any) -> LossBalancer:
        """Return a balancer of ``net``'s losses."""
        options: dict[str, Any] = {"tasks": list(tasks)} | dict(self.options) | dict(MODES[self.mode]) | more
        make: Callable[..., LossBalancer] = self.method
        if self.place == "parameters":
            return make(None, wrt=[*net.layer.parameters(), net.side], **options)
        if self.place:
            return make(net.fork, wrt=net.layer if self.place == "layer" else None, **options)
        return make(**options)


def places(method: type[LossBalancer]) -> list[str]:
    """Return the places at which a method is defined; one empty name if it reads no gradients."""
    if not issubclass(method, GradientBalancer):
        return [""]
    return [place for place in PLACES if place not in method.undefined_for]


def cases(methods: Iterable[type[LossBalancer]]) -> Iterator[Case]:
    """Yield the cases of the methods: each set of options, and the first set in each mode."""
    for method in methods:
        for place in places(method):
            for number, options in enumerate(OPTIONS.get(method.name, [{}])):
                for mode in MODES if number == 0 else [""]:
                    parts = [method.name, place, mode, str(number) if number else ""]
                    case = Case(method, place, options, mode, "-".join(filter(None, parts)))
                    if _has(case):
                        yield case


def _has(case: Case) -> bool:
    """Return whether the method has the case's mode."""
    if case.mode == "accumulate":
        return not case.combines  # for these, accumulate makes no difference: see `accumulation_changes_nothing`
    if case.mode == "update_every":
        return case.measures and not _refuses_update_every(case)
    return True


def _refuses_update_every(case: Case) -> bool:
    try:
        Subject(case)
    except ValueError as error:
        return str(error).startswith("update_every is")
    return False


# Planted steps.


class _Planted(torch.autograd.Function):
    """A loss of a given value and given gradients, which may be infinite or NaN although the value is finite."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *variables: Tensor) -> Tensor:
        ctx.planted = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradients[0] * planted for planted in ctx.planted)


@dataclass(frozen=True)
class Step:
    """One backward pass: inputs, and the value and gradients of each task's loss."""

    x: Tensor
    """``(2, 4)``."""
    gradients: tuple[Tensor, ...]
    """With respect to the layer's output, ``(T, 2, 5)``, and to the parameter beside it, ``(T, 2)``."""
    values: Tensor
    """``(T,)``."""
    after: Tensor
    """``(T,)``: the losses after the optimiser's step, or of the second batch."""
    factors: Tensor
    """``(T,)``: each loss, with its gradients, is multiplied by this."""
    scale: float = 1.0
    """What the balancer's scalar is multiplied by before its backward pass."""
    tasks: tuple[str, ...] = TASKS
    """The tasks that have a loss."""

    def without(self, out: Sequence[str]) -> "Step":
        """Return the step without some tasks' losses."""
        return replace(self, tasks=tuple(task for task in self.tasks if task not in out))

    @property
    def second(self) -> "Step":
        """A second batch, whose gradients are those of other samples, and which has all tasks."""
        turned = tuple(gradient.roll(1, 1) for gradient in self.gradients)
        return replace(self, gradients=turned, values=self.after, tasks=TASKS)


@lru_cache
def sequence(number: int, seed: int = 0) -> tuple[Step, ...]:
    """Return planted steps, whose gradients differ in length and conflict."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    steps = []
    for _ in range(number):
        scales = normal(len(TASKS)).mul(0.5).exp()
        of_layer, of_side = normal(len(TASKS), 2, 5), normal(len(TASKS), 2)
        conflicting = (part - 0.6 * part.mean(0) for part in (of_layer, of_side))
        gradients = tuple(part * scales.view(-1, *[1] * (part.ndim - 1)) for part in conflicting)
        values = normal(len(TASKS)).exp() + 0.05
        after = values * normal(len(TASKS)).mul(0.3).exp()
        steps.append(Step(normal(2, 4), gradients, values, after, torch.ones_like(values)))
    return tuple(steps)


class Net(nn.Module):
    """A linear layer, one more shared parameter, a fork, and one parameter for each head."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.layer = nn.Linear(4, 5).double()
        for parameter in self.layer.parameters():
            nn.init.normal_(parameter, generator=generator)
        self.side = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.fork = Fork(num_tasks)
        self.heads = nn.ParameterList(torch.zeros((), dtype=torch.float64) for _ in range(num_tasks))

    @property
    def shared(self) -> list[nn.Parameter]:
        """Return the parameters that all tasks share."""
        return [*self.layer.parameters(), self.side]

    def losses(self, step: Step, place: str, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Return the losses of the tasks that have one, by name."""
        z = self.layer(step.x)
        parts = (z,) if place == "layer" else (z, self.side * 1.0)
        aliases = self.fork(parts) if place in ("features", "layer") else [parts] * len(tasks)
        losses = {}
        for task, head, own in zip(tasks, self.heads, aliases, strict=True):
            if task in step.tasks:
                i = TASKS.index(task)
                factor = step.factors[i]
                gradients = [factor, *(factor * gradient[i] for gradient in step.gradients[: len(parts)])]
                losses[task] = _Planted.apply(factor * step.values[i], gradients, head, *own)
        return losses


class Trace(NamedTuple):
    """What one step showed."""

    total: Tensor
    weights: Tensor
    """``(T,)``."""
    trunk: Tensor
    """``(n,)``: the gradient of the shared parameters."""
    heads: Tensor
    """``(T,)``: the gradient of each task's head; zero if it got none."""
    reached: Tensor
    """``(T,)``: true for the heads that got a gradient."""


class Subject:
    """A network and its balancer, which is made on ``device``."""

    def __init__(self, case: Case, tasks: Sequence[str] = TASKS, *, device: str | None = None, **more: Any) -> None:
        self.case, self.tasks = case, tasks
        self.net = Net(len(tasks))
        with nullcontext() if device is None else torch.device(device):
            self.balancer = case.make(self.net, tasks, **more)

    def look(self, step: Step) -> Tensor:
        """Return the weights of an evaluation without gradients, which is no step."""
        with torch.no_grad():
            self.weighed(step)
        return self.balancer.weights

    def weighed(self, step: Step) -> Tensor:
        """Run a forward pass, and return the balancer's scalar."""
        supply(self.balancer, partial(self.net.losses, step.second, self.case.place, self.tasks))
        return self.balancer(self.net.losses(step, self.case.place, self.tasks))

    def backward(self, step: Step) -> Trace:
        """Run one backward pass."""
        total = self.weighed(step)
        return self.differentiated(total, step.scale)

    def plain(self, step: Step) -> Trace:
        """Run one backward pass of the plain sum of the losses."""
        total = torch.stack(list(self.net.losses(step, self.case.place, self.tasks).values())).sum()
        return self.differentiated(total)

    def differentiated(self, total: Tensor, scale: float = 1.0, retain_graph: bool = False) -> Trace:
        """Run a backward pass through ``total`` times ``scale``, and return what it showed."""
        for parameter in self.net.parameters():
            parameter.grad = None
        (scale * total).backward(retain_graph=retain_graph)
        end_window(self.balancer)
        return self.trace(total)

    def after_step(self, step: Step) -> None:
        """Give the losses after the optimiser's step to a method that looks at them."""
        if self.balancer.looks_again:
            self.balancer.after_step({task: step.after[TASKS.index(task)] for task in step.tasks})

    def window(self, steps: Sequence[Step]) -> list[Trace]:
        """Run the passes of one update."""
        traces = [self.backward(step) for step in steps]
        self.after_step(steps[-1])
        return traces

    def run(self, steps: Sequence[Step]) -> list[Trace]:
        """Run one window after another; the last may be short."""
        k = self.case.passes
        windows = [steps[i : i + k] for i in range(0, len(steps), k)]
        return [trace for window in windows for trace in self.window(window)]

    def trace(self, total: Tensor) -> Trace:
        """Return the network's gradients and the weights as they are now."""

        def flat(parameters: Sequence[nn.Parameter]) -> Tensor:
            return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])

        heads = list(self.net.heads)
        reached = torch.tensor([head.grad is not None for head in heads])
        return Trace(total.detach(), self.balancer.weights, flat(self.net.shared), flat(heads), reached)


# Saved state.


def state_of(balancer: LossBalancer, but: Sequence[str] = ()) -> dict[str, Any]:
    """Return a copy of all saved tensors, and what the balancer saves as numbers, by name, without ``but``."""
    state: dict[str, Any] = {key: value.clone() for key, value in balancer.state_dict().items()}
    state = {key: value for key, value in state.items() if not key.endswith("_extra_state")}  # the numbers below
    state |= {name: getattr(balancer, name) for name in (DRAWN, TURN, "seed", "tasks")}
    return {key: value for key, value in state.items() if key not in but}


def differing(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values are not equal to the bit."""
    assert found.keys() == expected.keys()

    def equal(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b)

    return [key for key in expected if not equal(found[key], expected[key])]


def assert_state(found: LossBalancer, expected: Mapping[str, Any], but: Sequence[str] = (), why: str = "") -> None:
    expected = {key: value for key, value in expected.items() if key not in but}
    changed = differing(state_of(found, but), expected)
    assert changed == [], f"{why}: {', '.join(changed)} changed"


def assert_traces(
    found: Sequence[Trace],
    expected: Sequence[Trace],
    why: str = "",
    equal: Callable[[Tensor, Tensor], bool] = torch.equal,
) -> None:
    for t, (one, other) in enumerate(zip(found, expected, strict=True)):
        for key, a, b in zip(Trace._fields, one, other, strict=True):
            same = a.dtype == b.dtype and a.isnan().equal(b.isnan()) and equal(a[~a.isnan()], b[~b.isnan()])
            assert same, f"{why}: {key} of step {t} is {a}, not {b}"


def take_counters(subject: Subject, other: Subject) -> None:
    """Let the subject's next draws be another's."""
    subject.balancer.drawn = other.balancer.drawn


# Saving, loading and copying.


def _loaded(subject: Subject, into: Subject) -> Subject:
    """Load a subject's saved state into another subject, and return that one."""
    saved = io.BytesIO()
    torch.save(subject.balancer.state_dict(), saved)
    saved.seek(0)
    into.balancer.load_state_dict(torch.load(saved, weights_only=True))
    return into


def _another(case: Case, steps: int = 0) -> Subject:
    """Return a subject with draws of its own, which has made other steps."""
    subject = Subject(case, **{"seed": 5} if case.method.random else {})
    subject.run(sequence(steps, seed=9))
    return subject


COPIES: Mapping[str, Callable[[Subject], Subject]] = {
    "loaded": lambda subject: _loaded(subject, Subject(subject.case)),
    "loaded by a used one": lambda subject: _loaded(subject, _another(subject.case, 5 * subject.case.passes)),
    "deepcopy": copy.deepcopy,
    "pickle": lambda subject: pickle.loads(pickle.dumps(subject)),
}


def _saved_at(case: Case) -> int:
    """Return the number of windows after which to save: one more than two periods have."""
    return 2 * case.options.get("period", 1) + 1


@lru_cache
def _uninterrupted(case: Case) -> tuple[list[Step], list[Trace], dict[str, Any]]:
    """Return the steps of a run, what they show, and its last state."""
    windows = _saved_at(case) + 1 + case.options.get("period", 1)
    steps = list(sequence(windows * case.passes))
    first = _saved_at(case) * case.passes
    for t in range(first, first + case.passes):  # the next window leaves a task out, which keeps its last weight
        steps[t] = steps[t].without("b")
    subject = Subject(case)
    return steps, subject.run(steps), state_of(subject.balancer)


def goes_on_to_the_bit(case: Case, how: str) -> None:
    """Check that a copy made between two windows goes on as a run without interruption, and shares nothing."""
    steps, expected, final = _uninterrupted(case)
    places = [_saved_at(case)]
    if how == "loaded" and not case.mode:
        places.append(0)
    for windows in places:
        at, why = windows * case.passes, f"copied after {windows} windows"
        original = Subject(case)
        original.run(steps[:at])
        before = state_of(original.balancer)
        twin = COPIES[how](original)
        assert_state(twin.balancer, before, why=why)
        assert_traces(twin.run(steps[at:]), expected[at:], why)
        assert_state(twin.balancer, final, why=why)
        assert_state(original.balancer, before, why="in the original, by the copy's steps,")
        if how == "deepcopy":
            assert_traces(original.run(steps[at:]), expected[at:], "the original after its copy's steps")
            assert_state(original.balancer, final, why="in the original after its copy's steps")


def begins_its_window_anew(case: Case) -> None:
    """Check that a state saved within a window goes on alike in a new balancer and in one amid its own window."""
    steps = sequence(12)
    saved = Subject(case)
    saved.run(steps[:3])
    found = []
    for made in (0, 1, 2, 3):
        subject = _another(case, made)
        _loaded(saved, subject)
        found.append((subject.run(steps[4:10]), state_of(subject.balancer)))
    for traces, state in found[1:]:
        assert_traces(traces, found[0][0], "saved within a window")
        assert differing(state, found[0][1]) == []


def copies_go_on_in_a_window(case: Case, how: str) -> None:
    """Check that a copy made within a window goes on in that window, and shares nothing with the original."""
    steps, expected, final = _uninterrupted(case)
    for at in (1, 3):
        original = Subject(case)
        traces = [*original.run(steps[: at - 1]), original.backward(steps[at - 1])]
        assert_traces(traces, expected[:at], "before the copy")
        for subject in (COPIES[how](original), original):
            rest = subject.window(steps[at : at + 1]) + subject.run(steps[at + 1 :])
            assert_traces(rest, expected[at:], f"copied after {at} passes")
            assert_state(subject.balancer, final, why=f"copied after {at} passes")


def saves_what_steps_change(case: Case) -> None:
    """Check that the planted steps change every saved tensor but known constants, and no buffer that is not saved."""
    subject, moved = Subject(case), set[str]()
    subject.look(sequence(1)[0])
    begin = state_of(subject.balancer)
    constants = {key: value.clone() for key, value in subject.balancer.named_buffers() if key not in begin}
    for step in sequence(8):
        subject.window([step])
        moved |= {*differing(state_of(subject.balancer), begin)}
        unsaved = {key: subject.balancer.get_buffer(key) for key in constants}
        assert differing(unsaved, constants) == [], "not saved, but changed by a step"
    stateless = case.method.reads == "nothing" and not case.method.random
    assert (not moved) == stateless
    if not stateless and case.method.__module__.startswith("balancers."):
        still = {key for key, value in begin.items() if isinstance(value, Tensor)} - moved
        constant = {"last_weights"} if case.method.name == "graddrop" else {"initial_losses"} & {*case.options}
        if case.options.get("optimizer") == "sgd":
            constant |= {key for key in still if key.startswith("moments")}
        assert still <= constant, f"{', '.join(still - constant)} never changed"


# Steps that are not valid.


@dataclass(frozen=True)
class Fault:
    """What makes a step not valid."""

    kind: str
    """A loss and its gradients ("loss"), a loss alone ("value"), one entry of a gradient ("gradient"), the scale of the
    backward pass ("scale"), or a loss after the optimiser's step or of a second batch ("after").
    """
    value: float
    """The value that is not valid."""
    task: int = 0
    part: int = 0
    """Index of the gradient in `Step.gradients`."""

    def spoil(self, step: Step) -> Step:
        """Return the step with the fault."""
        if self.kind == "scale":
            return replace(step, scale=self.value)
        if self.kind == "gradient":
            gradients = [gradient.clone() for gradient in step.gradients]
            gradients[self.part][self.task].view(-1)[self.task % 2] = self.value
            return replace(step, gradients=tuple(gradients))
        name = {"loss": "factors", "value": "values", "after": "after"}[self.kind]
        numbers = getattr(step, name).clone()
        numbers[self.task] = self.value
        return replace(step, **{name: numbers})

    @property
    def reaches_the_network(self) -> bool:
        """Return whether gradients that are not finite go on into the network."""
        return self.kind in ("loss", "gradient") or (self.kind == "scale" and self.value != 0)


def faults(case: Case, *, everywhere: bool = True) -> Iterator[Fault]:
    """Yield everything that makes a step not valid for the method.

    Args:
        case: the case.
        everywhere: put each fault in each task's loss in turn; if false, in the first task's alone.
    """
    method, tasks = case.method, range(len(TASKS) if everywhere else 1)
    not_finite = (math.nan, math.inf)
    parts = range(1 if case.place == "layer" else 2)
    negative = REFUSES_NEGATIVE_LOSSES.get(method.name)
    domain: tuple[float, ...] = ()
    if method.needs_positive_losses:
        domain = (0.0, -1.0)
    elif negative is not None and negative.items() <= case.options.items():
        domain = (-1.0,)
    yield from (Fault("loss", value, task) for value in not_finite for task in tasks)
    yield from (Fault("value", value, task) for value in (*not_finite, *domain) for task in tasks)
    if case.measures:
        yield from (Fault("gradient", value, task, part) for value in not_finite for task in tasks for part in parts)
        if not case.looks_ahead:
            yield from (Fault("scale", value) for value in (math.inf, 0.0))
    if method.looks_again:
        yield from (Fault("after", value, task) for value in (*not_finite, *domain) for task in tasks)
    if method.needs_second_batch and not case.measures:
        yield from (Fault("after", value, task) for value in not_finite for task in tasks)


def leaves_no_trace(case: Case) -> None:
    """Check that steps that are not valid leave the state as it was, and that the next valid ones go on from there."""
    disturbed, calm = Subject(case), Subject(case)
    steps = iter(sequence(64))
    first = next(steps)
    disturbed.look(first)  # the first losses widen the state to their type
    calm.look(first)

    def valid_steps() -> None:
        for _ in range(2 * case.windows):
            window = list(itertools.islice(steps, case.passes))
            assert_traces(disturbed.window(window), calm.window(window), "after steps that are not valid")
        assert_state(disturbed.balancer, state_of(calm.balancer), why="after steps that are not valid")

    for everywhere in (False, True):
        for number, fault in enumerate(faults(case, everywhere=everywhere)):
            before = state_of(disturbed.balancer)
            for _ in range(case.windows):
                _run_with_fault(disturbed, sequence(case.passes, seed=2), fault, number)
            assert_state(disturbed.balancer, before, RECORDS + case.counters, f"in a step with {fault}")
        take_counters(calm, disturbed)
        valid_steps()


def _run_with_fault(subject: Subject, window: Sequence[Step], fault: Fault, number: int) -> None:
    """Run a window with a fault in one pass, by turns the first and the last, and check what that pass shows.

    A method that looks ahead learns from the first alone.
    """
    # The mean of a finite loss with another pass's may be valid, and `after_step` refers to the last pass alone.
    in_all = (fault.kind == "value" and math.isfinite(fault.value)) or subject.case.method.looks_again
    bad = 0 if subject.case.looks_ahead else number % len(window)
    for at, step in enumerate(window):
        if in_all or at == bad:
            _run_bad_pass(subject, step, fault)
        else:
            subject.backward(step)
    subject.after_step(fault.spoil(window[-1]))


def _run_bad_pass(subject: Subject, step: Step, fault: Fault) -> None:
    """Run a pass with a fault; check the weights that it shows, and that the network sees the fault."""
    bad = fault.spoil(step)
    expected = subject.look(step) if subject.case.ahead else subject.balancer.weights
    trace = subject.backward(bad)
    if fault.kind != "after" or not subject.balancer.looks_again:
        assert torch.equal(trace.weights, expected), f"with {fault} the weights are {trace.weights}, not {expected}"
    if fault.reaches_the_network:  # where a GradScaler is to see it
        assert not trace.trunk.isfinite().all(), f"{fault} is hidden from the network"


def check_finite_raises(case: Case) -> None:
    """Check that with ``check_finite`` a step that is not valid raises, and leaves nothing behind."""
    strict, calm = Subject(case, check_finite=True), Subject(case)
    steps, window = sequence(4 * case.passes * case.windows), sequence(case.passes, seed=2)
    half = len(steps) // 2
    assert_traces(strict.run(steps[:half]), calm.run(steps[:half]), "with check_finite")
    begin, saved = state_of(strict.balancer), copy.deepcopy(strict.balancer.state_dict())
    for fault in faults(case, everywhere=False):
        fault = replace(fault, task=fault.part + 1)  # not always the first task
        at_once = fault.kind in ("loss", "value") and not math.isfinite(fault.value)
        if not (at_once or case.learns):
            continue
        strict.balancer.load_state_dict(saved)
        message = f"the loss of task '{TASKS[fault.task]}' is not finite" if at_once else "state is unchanged"
        rest = window[1:] if at_once or fault.kind == "gradient" else [fault.spoil(step) for step in window[1:]]
        with pytest.raises(FloatingPointError, match=message):
            strict.window([fault.spoil(window[0]), *rest])
        assert_state(strict.balancer, begin, RECORDS + case.counters, f"in a step refused for {fault}")
        plain = strict.plain(window[0])
        torch.testing.assert_close(plain.trunk, rows(case, window[0]).sum(0), rtol=1e-12, atol=1e-12)
        assert plain.heads.tolist() == [1.0] * len(TASKS)
    take_counters(calm, strict)
    assert_traces(strict.run(steps[half:]), calm.run(steps[half:]), "after a step that was refused")


# What is shown.


def rows(case: Case, step: Step) -> Tensor:
    """Return the gradients ``(T, n)`` of the tasks' losses with respect to the shared parameters."""
    of_layer, of_side = step.gradients
    if case.place == "layer":
        of_side = torch.zeros_like(of_side)
    weight = torch.einsum("tno,ni->toi", of_layer, step.x)
    return torch.cat([weight.flatten(1), of_layer.sum(1), of_side], 1) * step.factors[:, None]


def given_in(step: Step) -> Tensor:
    """Return which tasks have a loss, ``(T,)``."""
    return torch.tensor([task in step.tasks for task in TASKS])


def shows_the_weights_it_used(case: Case) -> None:
    """Check that each pass's gradients are those of the losses, weighted by the ``weights`` that are shown."""
    subject = Subject(case)
    directions = case.method.replaces_gradients
    steps = list(sequence(12))
    for t, out in ((4, "b"), (5, "b"), (6, "ac"), (7, "ac")):
        steps[t] = steps[t].without(out)
    steps[9] = replace(steps[9], scale=8.0)
    for t, (step, trace) in enumerate(zip(steps, subject.run(steps), strict=True)):
        given, scale, why = given_in(step), step.scale, f"step {t}"
        weights, heads = trace.weights[given], trace.heads[given]
        assert trace.reached.equal(given), why
        assert trace.weights.isfinite().all(), why
        if not directions:
            expected = scale * (weights @ rows(case, step)[given])
            torch.testing.assert_close(trace.trunk, expected, rtol=1e-10, atol=1e-10)
        if not case.combines:
            assert torch.equal(heads, scale * weights), why
            torch.testing.assert_close(trace.total, weights @ step.values[given], rtol=1e-12, atol=0)
        elif case.place == "parameters" and not directions:
            torch.testing.assert_close(heads, scale * weights, rtol=1e-12, atol=0)
        elif subject.balancer.heads == "plain":
            assert torch.equal(heads, torch.full_like(heads, scale)), why
        if subject.balancer.heads == "plain":
            torch.testing.assert_close(trace.total, step.values[given].sum(), rtol=1e-12, atol=0)


# Tasks that are left out.

SUBSETS = [out for size in (1, 2) for out in itertools.combinations(TASKS, size)]


def _task_dims(key: str, value: Tensor) -> list[int]:
    """Return the dimensions of a state tensor that are the tasks."""
    shape = value.shape[:1] if key in FOR_EACH_TENSOR else value.shape
    return [dim for dim, size in enumerate(shape) if size == len(TASKS)]


def _of_task(key: str, value: Tensor, i: int) -> list[Tensor]:
    """Return the parts of a state tensor that belong to task ``i``."""
    return [value.select(dim, i) for dim in _task_dims(key, value)]


def keeps_absent_tasks(case: Case) -> bool:
    """Return whether a task without a loss keeps its weight."""
    return case.method.name not in DRAWS_FOR_ABSENT_TASKS


def left_out_tasks_keep_their_state(case: Case) -> None:
    """Check that a task without a loss keeps its weight and state, and that the others' state goes on changing."""
    subject = Subject(case)
    spell = case.options.get("period", 1) * case.passes * case.windows  # whole periods, as parts of one count
    steps = iter(sequence(64))

    def take() -> list[Step]:
        return list(itertools.islice(steps, spell))

    for _ in range(3):
        subject.run(take())
    for out in SUBSETS:
        window = take()
        absent = [TASKS.index(task) for task in out]
        before, twin = state_of(subject.balancer, RECORDS), copy.deepcopy(subject)
        held = subject.balancer.weights
        ahead = subject.look(window[0]) if case.ahead else held
        for trace in subject.run([step.without(out) for step in window]):
            if case.method.name not in COMBINES_ABSENT_TASKS:
                assert torch.equal(trace.weights[absent], ahead[absent]), f"without {out}: {trace.weights}, not {ahead}"
            assert not trace.reached[absent].any()
        if case.ahead:
            assert torch.equal(subject.look(window[0])[absent], ahead[absent]), f"the next step's, without {out}"
        after = state_of(subject.balancer, RECORDS)
        twin.run(window)
        whole = state_of(twin.balancer, RECORDS)
        for key, value in before.items():
            if isinstance(value, Tensor):
                for i in range(len(TASKS)):
                    parts = [_of_task(key, state[key], i) for state in (before, after, whole)]
                    _assert_of_task(case, key, i, out, parts)


def _assert_of_task(case: Case, key: str, i: int, out: Sequence[str], parts: Sequence[Sequence[Tensor]]) -> None:
    """Check the part of a state tensor that belongs to task ``i``.

    Args:
        case: the case.
        key: the tensor's path.
        i: the task's index.
        out: the tasks that were left out.
        parts: the task's part before, after steps without ``out``, and after the same steps with all tasks.
    """
    changed, changes_with_all = (not all(map(torch.equal, parts[0], other)) for other in parts[1:])
    if TASKS[i] in out:
        assert not changed, f"{key} of task {TASKS[i]} changed without {out}"
    elif len(out) == 1 and not {*NEEDS_TASKS.get(case.method.name, "")} & {*out}:
        assert changed or not changes_with_all, f"{key} of task {TASKS[i]} does not change without {out}"


def sees_tasks_alone(case: Case) -> bool:
    """Return whether the method's weights for some tasks are those of a balancer made for these tasks."""
    by_number = case.method.name in DEFAULT_PREFERENCES and "preferences" not in case.options
    return not case.ahead and not by_number and case.method.name not in OF_ALL_TASKS


def left_out_tasks_take_no_part(case: Case) -> None:
    """Check that a method that weighs or combines in the step treats the tasks given as if there were no others."""
    whole = Subject(case)
    steps = sequence(4 + len(SUBSETS))
    whole.run(steps[:4])
    for out, step in zip(SUBSETS, steps[4:], strict=True):
        if {*NEEDS_TASKS.get(case.method.name, "")} & {*out}:
            continue
        given = [task for task in TASKS if task not in out]
        present = [TASKS.index(task) for task in given]
        subject, few = copy.deepcopy(whole), Subject(_restricted_case(case, present), given)
        _load_rows(whole, few, present)
        one, other = (each.run([step.without(out)])[0] for each in (subject, few))
        torch.testing.assert_close(one.weights[present], other.weights, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(one.trunk, other.trunk, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(one.heads[present], other.heads, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(one.total, other.total, rtol=1e-12, atol=0)
        state = state_of(subject.balancer)
        for key, value in state_of(few.balancer).items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(_restricted(key, state[key], present), value, rtol=1e-10, atol=1e-10)


def _restricted_case(case: Case, present: Sequence[int]) -> Case:
    """Return the case with the options that belong to some tasks."""
    options = {
        name: [value[i] for i in present] if isinstance(value, list) else value for name, value in case.options.items()
    }
    return replace(case, options=options)


def _restricted(key: str, value: Tensor, present: Sequence[int]) -> Tensor:
    """Return the part of a state tensor that belongs to some tasks."""
    for dim in _task_dims(key, value):
        value = value.index_select(dim, torch.tensor(present))
    return value


def _load_rows(whole: Subject, few: Subject, present: Sequence[int]) -> None:
    """Load into a balancer of some tasks these tasks' part of another balancer's state."""
    state = whole.balancer.state_dict()
    rows = {key: _restricted(key, value, present) for key, value in state.items() if not key.endswith("_extra_state")}
    few.balancer.load_state_dict(few.balancer.state_dict() | rows)
    take_counters(few, whole)


# Windows and turns.


def holds_in_a_window(case: Case) -> None:
    """Check that weights that are known before a step are the same in all passes of a window."""
    weights = [trace.weights for trace in Subject(case).run(sequence(16))]
    for first, second in zip(weights[::2], weights[1::2], strict=True):
        assert torch.equal(first, second)
    moves = any(not torch.equal(weights[0], other) for other in weights[1:])
    assert moves == (case.method.reads != "nothing" or case.method.random)


def accumulation_changes_nothing(case: Case) -> None:
    """Check that a method that combines gradients treats each pass alike, whatever ``accumulate`` is."""
    steps = list(sequence(8))
    steps[2] = steps[2].without("b")
    steps[5] = Fault("loss", math.nan, 1).spoil(steps[5])
    one, other = Subject(case), Subject(case, accumulate=2)
    assert_traces(other.run(steps), one.run(steps), "with accumulate=2")
    assert_state(other.balancer, state_of(one.balancer), why="with accumulate=2")


def learns_at_its_turn_alone(case: Case) -> None:
    """Check that the steps between those of ``update_every`` leave no trace, whatever tasks they have."""
    often = replace(case, mode="")
    steps = list(sequence(9))
    for t, out in ((1, "a"), (2, "b"), (4, "bc"), (6, "c"), (8, "a")):
        steps[t] = steps[t].without(out)
    seldom, always = Subject(often, update_every=3), Subject(often)
    found, expected = seldom.run(steps), always.run(steps[::3])
    assert_traces(found[::3], expected, "in a step that is measured")
    if case.ahead:  # a step uses the weights that the last measured step before it made
        weights = [trace.weights for trace in expected[1:]] + [always.look(steps[0])]
        assert all(torch.equal(found[t].weights, weights[(t - 1) // 3]) for t in range(1, 9))
    else:
        assert all(torch.equal(trace.weights, expected[t // 3].weights) for t, trace in enumerate(found))
    assert_state(seldom.balancer, state_of(always.balancer), RECORDS, "in steps between")
