"""Every method trains the paper's regression family, at every place it measures and in every type."""

import itertools
from contextlib import nullcontext
from functools import lru_cache

import numpy as np
import pytest
import torch

import tasks
from balancers import GradientBalancer, get, names
from bench.run import build
from bench.run.spec import Method

from .needs import supply

OURS = [name for name in names() if get(name).__module__.startswith("balancers.")]
KINDS = [
    (name, wrt)
    for name in OURS
    for wrt in (("features", "layer", "parameters") if issubclass(get(name), GradientBalancer) else (None,))
    if not (issubclass(get(name), GradientBalancer) and wrt in get(name).undefined_for)
]
STEPS = 5
SIZES = [
    pytest.param(num_tasks, precision, marks=[pytest.mark.slow] if num_tasks == 40 and precision != "float32" else [])
    for num_tasks in (2, 10, 40)
    for precision in ("float32", "float64", "bfloat16")
]


@lru_cache
def regression(num_tasks: int) -> tuple[tasks.Problem, list]:
    """Return the problem and its first batches."""
    problem = tasks.create("regression", sigmas=np.geomspace(1, 100, num_tasks).tolist(), train_samples=64)
    data = problem.data(torch.Generator().manual_seed(0), "cpu")
    batches = problem.batches(data, torch.Generator().manual_seed(2), batch_size=16)
    return problem, list(itertools.islice(batches, STEPS))


@pytest.mark.slow  # not each of them, but together
@pytest.mark.parametrize(("num_tasks", "precision"), SIZES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(filter(None, kind)))
def test_trains_without_a_nan(kind, num_tasks, precision):
    name, wrt = kind
    problem, batches = regression(num_tasks)
    torch.manual_seed(1)
    model = problem.model()
    if precision == "float64":
        model, batches = model.double(), [type(batch)(*(part.double() for part in batch)) for batch in batches]
    # M-ConFIG's shared parameters stay until each task had a turn.
    options = {"static": {"weights": [1.0] * num_tasks}, "m-config": {"takes_turns": False}}.get(name, {})
    balancer = build.balancer(Method(name, wrt, options), problem, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    supply(balancer, lambda: problem.losses(model, batches[0]), optimizer)
    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else nullcontext()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for batch in batches:
        with autocast:
            losses = problem.losses(model, batch)
        loss = balancer(losses)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        optimizer.step()
        if balancer.looks_again:
            with torch.no_grad(), autocast:
                balancer.after_step(problem.losses(model, batch))
        assert balancer.weights.isfinite().all()
    assert balancer.weights.dtype == (torch.float64 if precision == "float64" else torch.float32)
    assert all(state.isfinite().all() for state in balancer.buffers())
    assert all(not new.equal(old) for new, old in zip(model.parameters(), before, strict=True))
