"""Micro-benchmark of GradNorm's gradient-norm step alone, and of a whole training step, with 2, 10 and 40 tasks.

It is run by pytest-benchmark, separately from the tests::

    python -m pytest bench/cost/gradient_norm.py --benchmark-enable --benchmark-only --benchmark-json=micro.json

The *gradient-norm step* is ``balancer(losses).backward()`` on a network with hardly anything else to compute: one
shared layer of 100 units, and T squared losses directly on its 100 x 100 features, so that a task's feature gradient
costs almost nothing. It covers the T gradients of the layer, their norms, the update of the weights, and the layer's
own backward pass. The *whole step* is forward, backward and fused Adam on the regression problem. Both use one CPU
thread and take gradients with respect to the last shared layer, as the paper does. On CUDA a measurement ends when the
device is idle.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import tasks
from balancers import Fork, GradNorm
from bench.run.spec import Device, Method, RunSpec

from .measure_step import trainings
from .step_clock import single_thread

BATCH, WIDTH = 100, 100
ROUNDS, WARM_UP = 200, 20
DEVICES: list[Device] = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]

Benchmark = Any  # pytest-benchmark's fixture has no types
each_case = pytest.mark.parametrize(("num_tasks", "device"), [(t, d) for d in DEVICES for t in (2, 10, 40)])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with single_thread():
        yield


@each_case
def test_gradient_norm_step(benchmark: Benchmark, num_tasks: int, device: Device) -> None:
    layer, fork = nn.Linear(WIDTH, WIDTH).to(device), Fork(num_tasks)
    inputs = torch.randn(BATCH, WIDTH, device=device)
    targets = torch.randn(num_tasks, BATCH, WIDTH, device=device)
    balancer = GradNorm(fork, wrt=layer)

    def forward() -> tuple[tuple[list[Tensor]], dict[str, Any]]:
        layer.zero_grad()
        losses = [mse_loss(z, target) for z, target in zip(fork(layer(inputs)), targets, strict=True)]
        _wait(device)
        return (losses,), {}

    def step(losses: list[Tensor]) -> None:
        balancer(losses).backward()
        _wait(device)

    _measure(benchmark, "gradient-norm step", num_tasks, device, step, forward)


@each_case
def test_whole_step(benchmark: Benchmark, num_tasks: int, device: Device) -> None:
    options = {"sigmas": f"T={num_tasks}"}
    recipe = replace(tasks.create("regression", **options).recipe, batch_size=BATCH)
    method = Method("gradnorm", "layer", {})
    spec = RunSpec("regression", options, recipe, method, seed=1, phase="cost", device=device, evaluations=1)
    training, _ = trainings(spec)
    _measure(benchmark, "whole step", num_tasks, device, training)


def _measure(
    benchmark: Benchmark,
    what: str,
    num_tasks: int,
    device: Device,
    step: Callable[..., object],
    setup: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]] | None = None,
) -> None:
    benchmark.extra_info.update(what=what, num_tasks=num_tasks, device=device)
    benchmark.pedantic(step, setup=setup, rounds=ROUNDS, warmup_rounds=WARM_UP)


def _wait(device: Device) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
