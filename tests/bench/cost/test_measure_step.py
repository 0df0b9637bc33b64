"""Test the cost of a step: counts against counts by hand, and times next to equal weighting."""

import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from balancers import EqualWeighting, Fork, GradNorm, LossBalancer, UncertaintyWeighting
from bench.cost import measure_step, micro
from bench.cost.operation_count import MOST_COUNTED, Counts, count, count_cycle
from bench.cost.step_clock import median_interval, single_thread
from bench.cost.training_step import PARTS
from bench.run.spec import RunSpec
from bench.suite import plan
from bench.suite.suite_entries import Suite

MakeSuite = Callable[..., Suite]
CPU = torch.device("cpu")
TREE = Path(__file__).resolve().parents[3]


@pytest.fixture
def make_spec(make_suite: MakeSuite) -> Callable[..., RunSpec]:
    def make(balancer: str, problem: str = "small", **options: Any) -> RunSpec:
        problems = [{"name": problem, "options": options}]
        return plan.costs(make_suite(problems=problems, balancers=[{"name": balancer}], rounds=1))[0].spec

    return make


MakeSpec = Callable[..., RunSpec]


def counted(spec: RunSpec) -> dict[str, Any]:
    """Return the row of the whole step."""
    return measure_step.measure(spec, rounds=2)[-1]


def regression_step(num_tasks: int) -> tuple[int, int]:
    """Return the FLOPs of the regression problem's equal-weighting step at batch 100, and of one last-layer gradient.

    Each linear layer is three products: its outputs, its weights' gradient, its inputs' gradient (not the first's).
    """
    first, inner, head = (2 * 100 * inputs * 100 for inputs in (250, 100, 100))
    return 3 * (first + 3 * inner + num_tasks * head) - first, inner


@pytest.mark.slow
@pytest.mark.parametrize("num_tasks", [2, 10])
def test_flops_are_those_counted_by_hand(make_spec: MakeSpec, num_tasks: int) -> None:
    equal, of_layer = regression_step(num_tasks)
    options = {"sigmas": f"T={num_tasks}"}
    assert counted(make_spec("equal", "regression", **options))["flops"] == equal
    # autograd.grad takes the T gradients of the layer from inside the backward pass; they are counted too.
    assert counted(make_spec("gradnorm", "regression", **options))["flops"] == equal + num_tasks * of_layer


def test_operator_calls_are_counted_in_backward_passes_too() -> None:
    x, w = torch.randn(2, 3), torch.randn(3, 4, requires_grad=True)
    assert count(lambda: x.mm(w.detach()).add_(1).relu(), CPU).operator_calls == 4  # detach counts too
    forward = count(lambda: x.mm(w), CPU).operator_calls

    def twice() -> None:
        y = x.mm(w)
        z = y * 2
        z.register_hook(lambda gradient: [torch.autograd.grad(y, w, gradient, retain_graph=True), None][1])
        z.backward(torch.ones_like(z))

    def once() -> None:
        (x.mm(w) * 2).backward(torch.ones(2, 4))

    products = count(twice, CPU).flops - count(once, CPU).flops
    assert products == 2 * 2 * 3 * 4
    assert count(twice, CPU).operator_calls > count(once, CPU).operator_calls > forward == 1


def test_the_peak_is_of_what_is_held_at_one_time() -> None:
    def one_after_the_other() -> None:
        for _ in range(3):
            torch.empty(1000)

    def together() -> None:
        kept = [torch.empty(1000) for _ in range(3)]
        kept[0][:500].zero_()  # a view holds no memory of its own

    assert count(one_after_the_other, CPU).peak_bytes == 4000
    assert count(together, CPU).peak_bytes == 12000


@pytest.mark.slow
def test_time_goes_to_the_part_that_takes_it(make_spec: MakeSpec) -> None:
    """The method ``slow`` sleeps for 3 ms when it weighs the losses."""
    forward, backward, optimizer, whole = measure_step.measure(make_spec("slow"), rounds=30)
    assert [row["part"] for row in (forward, backward, optimizer, whole)] == [*PARTS, "step"]
    assert backward["median_ms"] > 3
    assert forward["median_ms"] + optimizer["median_ms"] < 3
    assert backward["ratio_to_equal"] > 3
    assert 0.5 < forward["ratio_to_equal"] < 2
    for row in (forward, backward, optimizer, whole):
        assert row["q25_ms"] <= row["median_ms"] <= row["q75_ms"]
        assert row["ratio_low"] <= row["ratio_to_equal"] <= row["ratio_high"]
    assert forward["flops"] is None


class EveryFourth:
    """Stands for a training whose every fourth step takes five seconds, and the others one; or all of them one."""

    subject = SimpleNamespace(device=CPU)

    def __init__(self, balancer: LossBalancer, slow: float) -> None:
        self.balancer, self.slow = balancer, slow
        self.seconds: list[list[float]] = []

    def __call__(self) -> None:
        self.seconds.append([self.slow if len(self.seconds) % 4 == 3 else 1.0] * len(PARTS))


@pytest.mark.parametrize(("rounds", "cycles"), [(11, 2), (2, 1)])
def test_times_are_means_over_a_cycle(
    rounds: int, cycles: int, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A median over single steps would be that of a step between two updates."""
    method = EveryFourth(GradNorm(Fork(2), update_every=4), slow=5.0)
    equal = EveryFourth(EqualWeighting(2), slow=1.0)
    monkeypatch.setattr(measure_step, "trainings", lambda spec: (method, equal))
    monkeypatch.setattr(measure_step, "count_cycle", lambda *_: Counts(0, 0, 0))
    rows = measure_step.measure(make_spec("equal"), rounds)
    assert [(row["ratio_to_equal"], row["median_ms"]) for row in rows] == [(2, 2000)] * 3 + [(2, 6000)]
    assert len(method.seconds) == measure_step.WARM_UP + 4 * cycles


@pytest.mark.parametrize("cycle", [1, 4, MOST_COUNTED + 1])
def test_counts_are_means_over_a_cycle(cycle: int) -> None:
    """The first step of each cycle makes ten products, the others one."""
    x, made = torch.ones(10, 10), list[int]()

    def step() -> None:
        products = 10 if len(made) % cycle == 0 else 1
        made.append(products)
        held = [x.mm(x) for _ in range(products)]
        del held

    counts = count_cycle(step, CPU, cycle)
    assert len(made) == 2 * cycle
    mean = (10 + cycle - 1) / cycle
    assert counts == Counts(round(2000 * mean), round(mean), 4000)


@pytest.mark.slow
def test_the_steps_between_measured_ones_lower_the_counts(make_spec: MakeSpec) -> None:
    spec = make_spec("gradnorm", "regression", sigmas="T=2")
    tenth = replace(spec, method=replace(spec.method, options={"update_every": 10}))
    equal, of_layer = regression_step(2)
    assert counted(tenth)["flops"] == equal + 2 * of_layer / 10
    assert counted(tenth)["operator_calls"] < counted(spec)["operator_calls"]


def test_a_cycle_has_the_passes_of_update_every_windows() -> None:
    assert measure_step.steps_in_cycle(EqualWeighting(2)) == 1
    assert measure_step.steps_in_cycle(UncertaintyWeighting(2, accumulate=3)) == 3
    assert measure_step.steps_in_cycle(GradNorm(Fork(2), accumulate=3, update_every=4)) == 12


def test_garbage_that_a_call_frees_does_not_lower_its_peak() -> None:
    class Ring:
        def __init__(self) -> None:
            self.itself, self.held = self, torch.ones(1000)

    def call() -> None:
        gc.collect()
        torch.ones(10)

    gc.disable()
    try:
        ring = weakref.ref(Ring())
        assert ring() is not None
        assert count(call, CPU).peak_bytes == 40
        assert ring() is None
    finally:
        gc.enable()


def test_the_median_lies_between_order_statistics() -> None:
    """With ten values, fewer than two are below the median with probability 11/1024, fewer than three with 56/1024."""
    assert median_interval(np.arange(10.0)) == (1, 8)
    assert np.isnan(median_interval(np.arange(5.0))).all()
    draws = np.random.default_rng(1).exponential(size=(2000, 40))
    intervals = np.array([median_interval(row) for row in draws])
    covered = (intervals[:, 0] <= np.log(2)) & (np.log(2) <= intervals[:, 1])
    assert 0.95 <= covered.mean() < 0.98


def benchmarks(*devices: str) -> str:
    return json.dumps(
        {
            "benchmarks": [
                {
                    "extra_info": {"what": what, "num_tasks": num_tasks, "device": device},
                    "stats": {"median": num_tasks / (1000 if device == "cpu" else 4000)},
                }
                for what in ("whole step", "gradient-norm step")
                for num_tasks in (10, 2, 40)
                for device in devices
            ]
        }
    )


def test_the_micro_benchmark_makes_a_table(tmp_path: Path) -> None:
    path = tmp_path / "micro.json"
    path.write_text(benchmarks("cpu", "cuda"))
    table = micro.table(path)
    assert list(table.columns) == ["num_tasks", "what", "cpu_ms", "cuda_ms", "ratio"]
    assert table["num_tasks"].tolist() == [2, 10, 40, 2, 10, 40]
    assert table["cpu_ms"].tolist() == pytest.approx([2, 10, 40] * 2)
    assert table["ratio"].tolist() == pytest.approx([4] * 6)
    path.write_text(benchmarks("cpu"))
    assert list(micro.table(path).columns) == ["num_tasks", "what", "cpu_ms"]
    path.write_text("{}")
    with pytest.raises(ValueError, match="is not a result of"):
        micro.table(path)


@pytest.mark.slow
def test_the_micro_benchmark_runs_and_names_no_machine(tmp_path: Path) -> None:
    path = tmp_path / "micro.json"
    command = [sys.executable, "-m", "pytest", "bench/cost/gradient_norm.py", "-q", "-k", "cpu and 2"]
    options = ["--benchmark-enable", "--benchmark-only", f"--benchmark-json={path}"]
    # In a process of pytest-xdist, pytest-benchmark measures nothing; the child is none.
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    subprocess.run([*command, *options], cwd=TREE, env=surroundings, check=True, stdout=subprocess.DEVNULL)
    table = micro.table(path)
    assert table["what"].tolist() == ["gradient-norm step", "whole step"]
    assert table["cpu_ms"].between(0.01, 1000).all()
    assert os.uname().nodename not in path.read_text()


def test_denormal_numbers_slow_no_step() -> None:
    denormal = torch.tensor(1e-40)
    threads = torch.get_num_threads()
    with single_thread():
        assert torch.get_num_threads() == 1
        assert denormal * 1 == 0
        with single_thread():
            pass
        assert denormal * 1 == 0
    assert torch.get_num_threads() == threads
    assert denormal * 1 > 0
