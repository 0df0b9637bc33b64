"""With ``compile=True`` a balancer does the same."""

import copy
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from balancers import Fork, GradientBalancer, GradNorm, LossBalancer, UncertaintyWeighting, get, names

from .needs import supply

TASKS = 4
OPTIONS: dict[str, dict[str, Any]] = {"coba": {"window": 5, "warm_up": 1}, "ntk": {"update_every": 1}}
"""Options with which few steps change the weights."""
FAST = {"gradnorm", "pcgrad"}
"""A method that learns, and one that draws."""
pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch._prims_common.check:FutureWarning"),
    pytest.mark.skipif(not any(map(shutil.which, ["c++", "g++", "clang++"])), reason="no C++ compiler"),
    pytest.mark.xdist_group("processes"),
]


class Net(nn.Module):
    """A network in double precision, with a balancer and an optimiser."""

    def __init__(self, name: str, dtype: torch.dtype, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(TASKS))
        self.fork = Fork(TASKS)
        self.to(dtype)
        self.optimizer = torch.optim.SGD(self.parameters(), 0.05)
        self.balancer = self._balancer(name, options)
        other = torch.randn(7, 5, dtype=dtype)
        supply(self.balancer, lambda: self.losses(other), self.optimizer)

    def _balancer(self, name: str, options: dict[str, Any]) -> LossBalancer:
        cls: Any = get(name)
        if name == "static":
            return cls([0.5, 1.0, 1.5, 2.0], **options)
        options = dict(OPTIONS.get(name, {})) | options
        if not issubclass(cls, GradientBalancer):
            return cls(TASKS, **options)
        places = {"layer": self.trunk[2], "features": None, "parameters": self.trunk}
        place = next(place for place in places if place not in cls.undefined_for)
        if cls.when == "forward":
            return cls(None, places[place], tasks=TASKS, **options)
        return cls(self.fork, places[place], **options)

    def losses(self, x: Tensor) -> list[Tensor]:
        aliases = self.fork(self.trunk(x))
        return [
            (head(z) - i).square().mean() + 0.1 for i, (head, z) in enumerate(zip(self.heads, aliases, strict=True))
        ]

    def step(self, x: Tensor, scale: float = 1.0) -> None:
        self.optimizer.zero_grad()
        losses = self.losses(x)
        self.balancer([losses[0] * scale, *losses[1:]]).backward()
        if scale == 1.0:
            self.optimizer.step()
        if self.balancer.looks_again:
            self.balancer.after_step([loss.detach() for loss in self.losses(x)])

    def seen(self) -> dict[str, Tensor]:
        """Return all that a step may change."""
        own = {f"balancer.{name}": value for name, value in self.balancer.state().items()}
        return {name: value.detach() for name, value in self.named_parameters()} | own


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in names()]
)
def test_a_compiled_update_is_the_update(name: str) -> None:
    """Also after a step that is not valid, and after one in which a task is left out."""
    rtol = 1e-6 if name in ("upgrad", "dual-proj") else 1e-9  # not compiled, these have another solver on the CPU
    plain, other = (Net(name, torch.float64, compile=compile) for compile in (False, True))
    for k, scale in enumerate((1.0, 1.0, float("nan"), 1.0, 1.0)):
        x = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        plain.step(x, scale)
        other.step(x, scale)
        torch.testing.assert_close(other.seen(), plain.seen(), rtol=rtol, atol=rtol / 1000)
        torch.testing.assert_close(other.balancer.weights, plain.balancer.weights, rtol=rtol, atol=rtol / 1000)
    for key, value in plain.balancer.statistics.items():
        torch.testing.assert_close(other.balancer.statistics[key], value, rtol=rtol, atol=rtol / 1000)


def test_in_single_precision() -> None:
    plain, other = (Net("gradnorm", torch.float32, compile=compile) for compile in (False, True))
    for _ in range(5):
        x = torch.randn(7, 5)
        plain.step(x)
        other.step(x)
    torch.testing.assert_close(other.seen(), plain.seen(), rtol=1e-4, atol=1e-5)


def test_what_is_compiled_runs_no_operator_of_its_own_for_each_line() -> None:
    def calls(**options: bool) -> int:
        net = Net("gradnorm", torch.float64, **options)
        x = torch.randn(7, 5, dtype=torch.float64)
        for _ in range(2):
            net.step(x)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            net.step(x)
        return sum(event.name.startswith("aten::") for event in profiler.events())

    assert calls(compile=True) <= calls() - 20


@pytest.mark.slow
def test_one_compilation_for_all_steps_and_many_balancers_in_a_process() -> None:
    """PyTorch gives up on a piece of code that it has compiled eight times."""
    x = torch.randn(7, 5, dtype=torch.float64)
    torch.compiler.reset()
    with torch.compiler.set_stance("default"):
        for _ in range(10):
            net = Net("uncertainty", torch.float64, compile=True)
            net.step(x)
            with torch.compiler.set_stance("fail_on_recompile"):
                net.step(x)
                net.step(2 * x)


def test_a_task_left_out_is_not_compiled() -> None:
    plain, other = (UncertaintyWeighting(["a", "b", "c"], compile=compile) for compile in (False, True))
    for k in range(4):
        losses = {task: torch.tensor(1.0 + k + i, requires_grad=True) for i, task in enumerate("abc")}
        if k == 2:
            del losses["b"]
        for balancer in (plain, other):
            balancer(losses).backward()
        torch.testing.assert_close(other.weights, plain.weights)


@pytest.mark.slow
def test_a_copy_and_a_checkpoint_go_on() -> None:
    net = Net("gradnorm", torch.float64, compile=True)
    x = torch.randn(7, 5, dtype=torch.float64)
    net.step(x)
    copied, loaded = copy.deepcopy(net), Net("gradnorm", torch.float64, compile=True)
    loaded.load_state_dict(net.state_dict())
    copied.optimizer = torch.optim.SGD(copied.parameters(), 0.05)
    for each in (net, copied, loaded):
        each.step(x)
    torch.testing.assert_close(copied.seen(), net.seen(), rtol=0, atol=0)
    torch.testing.assert_close(loaded.seen(), net.seen(), rtol=0, atol=0)


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="compile is 'yes'; expected True or False"):
        GradNorm(Fork(2), compile="yes")  # type: ignore[arg-type]
