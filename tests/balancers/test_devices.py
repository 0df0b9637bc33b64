"""No step waits for its device, and all that a step makes is there: every method, at every place, in every mode.

The devices are "lazy" and "meta", which have no values: `device_watch` says how a wait or a tensor elsewhere is found.
`make test` holds each method at the place of its paper; the full product is slow.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from balancers import (
    FAMO,
    MGDA,
    Draws,
    Fork,
    GeometricLossStrategy,
    GradientBalancer,
    GradNorm,
    LinearHeads,
    LossBalancer,
    MoCo,
    PCGrad,
    Read,
    Result,
    State,
    UncertaintyWeighting,
    get,
    names,
)
from balancers.engine.method import rng

from ..slow_params import others_slow
from .contract import OPTIONS
from .device_watch import DEVICES, DeviceWatch, autocast, simulated
from .needs import supply
from .nets import NETS, build, inputs, losses_of

TASKS = ("a", "b", "c")
PASSES = ("ac", "abc", "abc", "b", "ac")
"""The tasks that have a loss, in one backward pass after another. With ``accumulate``, the last window is short."""
PLACES = ("features", "layer", "trunk", "parameters")
"""Where gradients are measured: at the fork, with respect to a layer or all of the trunk there, or without a fork."""
HEADS = ("separate", "linear")
MODES: Mapping[str, Mapping[str, Any]] = {
    "": {},
    "accumulate": {"accumulate": 2},
    "followed": {"accumulate": 2},
    "update_every": {"update_every": 2},
    "float64": {},
    "autocast": {},
}
"""The options of a balancer. Followed: the optimiser's steps end its windows."""
MORE_OPTIONS: Mapping[str, Sequence[Mapping[str, Any]]] = {"gradnorm": [{"freeze_after": 2}]}
MADE = ("cpu", "meta", "moved", "loaded")
"""How a balancer comes to the device. From the CPU or from meta, its first window moves it."""


@dataclass(frozen=True, eq=False)
class Case:
    """A method, where and how it is trained, and the device."""

    method: type[LossBalancer]
    place: str = ""
    """One of `PLACES`; empty for a method that reads no gradients."""
    heads: str = "separate"
    """One of `HEADS`."""
    mode: str = ""
    """One of `MODES`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    made: str = "cpu"
    """One of `MADE`."""
    device: str = "lazy"

    @property
    def label(self) -> str:
        """The test's name for it."""
        first = required(self.method)[0]
        named = [f"{key}={value}" for key, value in self.options.items() if self.options != first]
        made = "" if self.made == "cpu" else f"made_{self.made}"
        heads = "" if self.heads == "separate" else self.heads
        return "-".join(filter(None, [self.method.name, self.place, heads, self.mode, *named, made, self.device]))

    def make(self, net: "Net") -> LossBalancer:
        """Return a balancer of the net's losses."""
        options = {"tasks": TASKS, **self.options, **MODES[self.mode]}
        make: Callable[..., LossBalancer] = self.method
        if not self.place:
            return make(**options)
        wrt = {"features": None, "layer": net.layer}.get(self.place, net.trunk)
        return make(None if self.place == "parameters" else net.fork, wrt=wrt, **options)


class Net(nn.Module):
    """A trunk, a fork, and heads.

    With linear heads, ``layer`` is the trunk's last operator, whose gradients are matrix products; with separate heads
    an operator follows it, so that the graph is differentiated.
    """

    def __init__(self, heads: str) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 6)
        self.trunk = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), self.layer)
        if heads == "linear":
            self.heads: nn.Module = LinearHeads(len(TASKS), 6, 2)
            self.fork = self.heads.fork
        else:
            self.trunk.append(nn.Tanh())
            self.fork = Fork(len(TASKS))
            self.heads = nn.ModuleList(nn.Linear(6, 2) for _ in TASKS)

    def losses(self, x: Tensor, targets: Tensor, tasks: str) -> list[Tensor] | dict[str, Tensor] | Tensor:
        """Return the losses for targets ``(B, T, 2)``: as a dict if some tasks have none."""
        z = self.trunk(x)
        if isinstance(self.heads, LinearHeads):
            outputs = self.heads(z).to(targets.dtype)
            if tasks == "abc":
                return (outputs - targets).square().mean((0, 2))
            given = outputs.unbind(1)
        else:
            given = [head(each).to(targets.dtype) for head, each in zip(self.heads, self.fork(z), strict=True)]
        losses = [(y - target).square().mean() for y, target in zip(given, targets.unbind(1), strict=True)]
        return losses if tasks == "abc" else {task: losses[TASKS.index(task)] for task in tasks}


class Recomputed(nn.Module):
    """A module whose forward pass is recomputed in the backward pass."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.module, x, use_reentrant=False)


def required(method: type[LossBalancer]) -> list[Mapping[str, Any]]:
    """Return the options that a method is made with; the first set where nothing else is said."""
    return [*OPTIONS.get(method.name, [{}]), *MORE_OPTIONS.get(method.name, [])]


def places(method: type[LossBalancer]) -> list[str]:
    """Return the places at which a method is defined; one empty name if it reads no gradients."""
    if not issubclass(method, GradientBalancer):
        return [""]
    return [place for place in PLACES if place.replace("trunk", "layer") not in method.undefined_for]


def home(method: type[LossBalancer]) -> str:
    """Return the place of the method's paper."""
    return method.default_wrt if issubclass(method, GradientBalancer) else ""


def modes(method: type[LossBalancer], place: str) -> list[str]:
    """Return the modes that a method has."""
    windows = [] if method.combines else ["accumulate", "followed"]
    every = ["update_every"] * _takes_update_every(method, place)
    return ["", *windows, *every, "float64", "autocast"]


def _takes_update_every(method: type[LossBalancer], place: str) -> bool:
    if not issubclass(method, GradientBalancer):
        return False
    try:
        Case(method, place, mode="update_every", options=required(method)[0]).make(Net("separate"))
    except ValueError as error:
        if str(error).startswith("update_every is"):
            return False
        raise
    return True


METHODS = [get(name) for name in names()]


def quick() -> Iterator[Case]:
    """Yield each method at the place of its paper, with both kinds of heads."""
    for method in METHODS:
        for heads in HEADS if home(method) in PLACES[:3] else HEADS[:1]:
            yield Case(method, home(method), heads, options=required(method)[0])


def full() -> Iterator[Case]:
    """Yield the full product: for each method, place, kind of heads and device, each mode; and the rest in one mode."""
    for method in METHODS:
        options, *others = required(method)
        for device in DEVICES:
            for place in places(method):
                for heads in HEADS:
                    for mode in modes(method, place):
                        yield Case(method, place, heads, mode, options, "cpu", device)
            for made in MADE[1:]:
                yield Case(method, home(method), "separate", "", options, made, device)
            for more in others:
                yield Case(method, home(method), "separate", "", more, "cpu", device)


def each(cases: Iterator[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", list(cases), ids=lambda case: case.label)


def new_balancer(case: Case, net: Net) -> LossBalancer:
    """Return a balancer made as the case says. What is made outside of the device's simulation has values."""
    with torch.device("meta") if case.made == "meta" else nullcontext():
        balancer = case.make(net)
    if case.made == "loaded":
        balancer.load_state_dict(case.make(net).state_dict())
    return balancer


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make tensors of ``dtype`` where nothing else is said; a simulated module can't be converted afterwards."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def holds(case: Case) -> DeviceWatch:
    """Train for a few steps, and check that none waits or has a tensor elsewhere; return what watched them."""
    dtype = torch.float64 if case.mode == "float64" else torch.float32
    simulation = simulated(case.device)
    with simulation, torch.device(case.device), default_dtype(dtype):
        net = Net(case.heads)
        batch = torch.randn(3, 4), torch.randn(3, len(TASKS), 2)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    balancer = new_balancer(case, net)
    supply(balancer, lambda: net.losses(*batch, "abc"), optimizer)
    if case.mode == "followed":
        balancer.follow(optimizer)

    def evaluate(tasks: str) -> Tensor:
        with autocast(case.device) if case.mode == "autocast" else nullcontext():
            return balancer(net.losses(*batch, tasks))

    with simulation, DeviceWatch(case.device) as watch:
        if case.made == "moved":
            watch.moving = True
            balancer.to(case.device)
        for number, tasks in enumerate(PASSES):
            watch.moving = number < balancer.accumulate
            total = evaluate(tasks)
            optimizer.zero_grad()
            total.backward()
            if balancer.looks_again:
                with torch.no_grad():
                    balancer.after_step(net.losses(*batch, tasks))
            if (number + 1) % balancer.accumulate == 0:
                optimizer.step()
        balancer.close_window()
        if not balancer.replaces_gradients:
            for evaluations in (("abc", "abc"), ("ac",)):
                with balancer.held():
                    for tasks in evaluations:
                        evaluate(tasks).backward()
        with torch.no_grad():
            evaluate("ac")
        balancer.eval()
        evaluate("abc").backward()

    assert all(parameter.grad is not None for parameter in net.trunk.parameters())
    assert balancer.weights.dtype == dtype
    kept = {"total": total, "weights": balancer.weights, "mask": balancer.mask(None)}
    for what in (kept, balancer.statistics, balancer.state(), dict(balancer.named_buffers())):
        for key, value in what.items():
            assert value.device.type == case.device, f"{key} is on {value.device} after the step"
    return watch


@pytest.mark.slow
@each(quick())
def test_no_step_waits(case: Case):
    """Every method at one place; `test_no_step_waits_anywhere` is the full product."""
    watch = holds(case)
    assert (watch.draws > 0) == case.method.random


@pytest.mark.parametrize("mode", others_slow(list(MODES)[1:], "accumulate"))
def test_gradnorm_waits_in_no_mode(mode: str):
    holds(Case(GradNorm, "layer", "linear", mode))


@pytest.mark.parametrize("device", others_slow(DEVICES, "meta"))
@pytest.mark.parametrize("made", MADE)
def test_a_balancer_made_elsewhere_comes_to_the_device(made: str, device: str):
    holds(Case(GradNorm, "layer", options={"initial_losses": [1.0, 2.0, 3.0]}, made=made, device=device))


@pytest.mark.parametrize("method", others_slow([GradNorm, MGDA, PCGrad], MGDA))
@pytest.mark.parametrize("name", NETS)
def test_no_step_waits_with_other_networks(name: str, method: type[GradientBalancer]):
    with torch.device("meta"):
        net = build(name, 3)
    x = inputs(name)[0].to("meta")
    balancer = method(net.fork, wrt=net.layer)
    with DeviceWatch("meta") as watch:
        for first in (True, False):
            watch.moving = first
            balancer(losses_of(net(x), x)).backward()


@pytest.mark.parametrize("forked", [True, False])
@pytest.mark.parametrize("method", [GradNorm, MGDA])
def test_no_step_waits_where_a_forward_pass_is_recomputed(method: type[GradientBalancer], forked: bool):
    with torch.device("meta"):
        net, x, targets = Net("separate"), torch.randn(3, 4), torch.randn(3, len(TASKS), 2)
    net.trunk = Recomputed(net.trunk)
    balancer = method(net.fork if forked else None, wrt=net.layer, tasks=TASKS)
    with DeviceWatch("meta") as watch:
        for first in (True, False):
            watch.moving = first
            balancer(net.losses(x, targets, "abc")).backward()


@pytest.mark.slow
@each(full())
def test_no_step_waits_anywhere(case: Case):
    holds(case)


# The watch sees what it must


class PlantedWeigh(GeometricLossStrategy):
    """A method into which a test plants a fault, as are those below."""

    plant = staticmethod(lambda losses: None)

    def weigh(self, losses: Tensor) -> Tensor:
        self.plant(losses)
        return super().weigh(losses)


class PlantedUpdate(UncertaintyWeighting):
    plant = staticmethod(lambda losses: None)

    def update(self, read: Read, state: State) -> Result:
        planted = self.plant(read.losses)
        result = super().update(read, state)
        return result._replace(statistics={"planted": planted}) if isinstance(planted, Tensor) else result


class PlantedAfterStep(FAMO):
    plant = staticmethod(lambda losses: None)

    def update(self, read: Read, state: State) -> Result:
        self.plant(read.losses)
        return super().update(read, state)


class PlantedNorms(GradNorm):
    plant = staticmethod(lambda losses: None)

    def update(self, read: Read, state: State) -> Result:
        self.plant(read.losses)
        return super().update(read, state)


class PlantedSolve(MGDA):
    plant = staticmethod(lambda losses: None)

    def solve(self, gramian: Tensor) -> Tensor:
        self.plant(gramian.diagonal())
        return super().solve(gramian)


class PlantedTrack(MoCo):
    plant = staticmethod(lambda losses: None)

    def track(self, gradient: Tensor, tracked: Tensor, state: State) -> tuple[Tensor, Tensor]:
        self.plant(gradient.flatten(1).sum(1))
        return super().track(gradient, tracked, state)


PLANTED = (PlantedWeigh, PlantedUpdate, PlantedAfterStep, PlantedNorms, PlantedSolve, PlantedTrack)
HOST = torch.ones(3)


def planted(method: type[LossBalancer], fault: Callable[[Tensor], object], device: str = "lazy") -> Case:
    """Return a case of a method with a fault: a function of a vector on the device."""
    return Case(type("Faulty", (method,), {"plant": staticmethod(fault)}), home(method), device=device)


def _branches(losses: Tensor) -> None:
    if losses.sum() > 0:
        losses.sum()


WAITS: Mapping[str, Callable[[Tensor], object]] = {
    "if": _branches,
    "item": lambda losses: losses[0].item(),
    "float": lambda losses: float(losses[0]),
    "max": lambda losses: max(losses),
    "as an index": lambda losses: list(range(9))[losses.argmax()],
    "as a size": lambda losses: torch.arange(losses.sum(), device=losses.device),
    "equal": lambda losses: torch.equal(losses, losses),
    "allclose": lambda losses: torch.allclose(losses, losses),
    "nonzero": lambda losses: losses.nonzero(),
    "mask": lambda losses: losses[losses > 0],
    "write by mask": lambda losses: losses.clone().index_put_((losses > 0,), losses),
    "unique": lambda losses: losses.unique(),
    "solve": lambda losses: torch.linalg.solve(torch.diag(losses), losses),
    "eigh": lambda losses: torch.linalg.eigh(torch.diag(losses)),
}
COPIES: Mapping[str, Callable[[Tensor], object]] = {
    "cpu": lambda losses: losses.cpu(),
    "to": lambda losses: losses.to("cpu", torch.float64, non_blocking=True),
    "copy_": lambda losses: HOST.clone().copy_(losses),
    "tolist": lambda losses: losses.tolist(),
}
ELSEWHERE: Mapping[str, Callable[[Tensor], object]] = {
    "a new tensor": lambda losses: torch.ones(3),
    "a product": lambda losses: losses * HOST,
    "a number": lambda losses: losses * torch.tensor(2.0),
    "an index": lambda losses: losses[torch.tensor([0, 0])],
    "a number kept on the host": lambda losses: losses * HOST[0],
    "an upload": lambda losses: losses * HOST.to(losses.device),
    "an upload of numbers": lambda losses: torch.tensor([1.0, 2.0]).to(losses.device),
    "draws of its own": lambda losses: losses * torch.rand(3).to(losses.device),
}
on_each_device = pytest.mark.parametrize("device", others_slow(DEVICES, "meta"))


@on_each_device
@pytest.mark.parametrize("method", PLANTED)
def test_a_method_without_a_fault_passes(method: type[LossBalancer], device: str):
    assert holds(planted(method, lambda losses: losses.sum(), device)).calls > 100


@on_each_device
@pytest.mark.parametrize("method", PLANTED)
def test_a_wait_is_seen_wherever_a_method_computes(method: type[LossBalancer], device: str):
    with pytest.raises(AssertionError, match="waits for the device"):
        holds(planted(method, _branches, device))


@on_each_device
@pytest.mark.parametrize("method", PLANTED)
def test_a_tensor_elsewhere_is_seen_wherever_a_method_computes(method: type[LossBalancer], device: str):
    with pytest.raises(AssertionError, match=f"has a tensor on cpu, not {device}"):
        holds(planted(method, lambda losses: losses * torch.tensor(2.0), device))


@on_each_device
@pytest.mark.parametrize("how", WAITS)
def test_waits_are_seen(how: str, device: str):
    with pytest.raises(AssertionError, match="waits for the device"):
        holds(planted(PlantedUpdate, WAITS[how], device))


@on_each_device
@pytest.mark.parametrize("how", COPIES)
def test_copies_to_the_host_are_seen(how: str, device: str):
    match = {"copy_": "has a tensor on cpu"}.get(how, "copies from the device to the host")  # of the tensor to copy to
    if (how, device) == ("tolist", "lazy"):
        match = "waits for the device"  # a simulated device gives its numbers one by one
    with pytest.raises(AssertionError, match=match):
        holds(planted(PlantedUpdate, COPIES[how], device))


@on_each_device
def test_a_copy_into_a_tensor_on_the_host_is_seen(device: str):
    simulation, host = simulated(device), torch.zeros(3)
    with simulation:
        losses = torch.empty(3, device=device)
    with simulation, DeviceWatch(device), pytest.raises(AssertionError, match="copies from the device to the host"):
        host.copy_(losses)


@on_each_device
@pytest.mark.parametrize("how", ELSEWHERE)
def test_tensors_elsewhere_are_seen(how: str, device: str):
    with pytest.raises(AssertionError, match=f"has a tensor on cpu, not {device}"):
        holds(planted(PlantedUpdate, ELSEWHERE[how], device))


def test_a_statistic_that_stays_on_the_host_is_seen():
    with pytest.raises(AssertionError, match="planted is on cpu after the step"):
        holds(planted(PlantedUpdate, lambda losses: HOST))


def test_the_engine_may_not_copy_draws_back(monkeypatch: pytest.MonkeyPatch):
    scope: dict[str, Any] = {"__name__": rng.__name__, "uniform": Draws.uniform}
    exec("def faulty(draws, *shape): return uniform(draws, *shape).cpu()", scope)  # as if it stood in that module
    monkeypatch.setattr(Draws, "uniform", scope["faulty"])
    with pytest.raises(AssertionError, match=r"balancers.engine.method.rng:\d+ copies from the device to the host"):
        holds(Case(PCGrad, "parameters"))


@on_each_device
def test_state_may_move_in_the_first_window_alone(device: str):
    balancer = UncertaintyWeighting(3)
    with simulated(device), DeviceWatch(device) as watch:
        with pytest.raises(AssertionError, match="has a tensor on cpu"):
            balancer.to(device)
        watch.moving = True
        balancer.to(device)


def test_a_balancer_that_checks_waits():
    with pytest.raises(AssertionError, match="waits for the device"):
        holds(Case(GradNorm, "layer", options={"check_finite": True}))
