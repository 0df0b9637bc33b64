"""Every method of the library trains from a suite: the regression family, and a differential equation where it can."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import balancers
from balancers import GradientBalancer
from bench.run import training
from bench.suite import plan
from bench.suite.suite_entries import Suite

MakeSuite = Callable[..., Suite]
OURS = [name for name in balancers.names() if balancers.get(name).__module__.startswith("balancers.")]
STEPS, BATCH = 6, 20
OPTIONS: dict[str, dict[str, Any]] = {
    "coba": {"warm_up": 1, "window": 4},
    "ntk": {"update_every": 2, "probes": 1},
}
"""Options with which few steps show that weights move."""


def entries(num_tasks: int, names: list[str]) -> list[dict[str, Any]]:
    """Return the suite's entries of methods."""
    found = []
    for name in names:
        options = {"weights": [1.0] * num_tasks} if name == "static" else OPTIONS.get(name, {})
        found.append({"name": name, "options": options})
    return found


def in_parameters() -> list[str]:
    """Return the methods that a problem without features can be trained with."""
    return [
        name
        for name in OURS
        if not (issubclass(balancers.get(name), GradientBalancer) and "parameters" in balancers.get(name).undefined_for)
    ]


def check(loaded: Suite, number: int) -> None:
    runs = plan.reported(loaded, None)
    assert len(runs) == number
    for run in runs:
        name, result = run.spec.method.name, training.run(run.spec)
        assert (result.status, result.reason) == ("ok", ""), name
        assert np.isfinite(result.weights).all(), name
        # Until each task had a turn, M-ConFIG's shared parameters stay.
        waits = name == "m-config" and len(result.tasks) > STEPS
        assert (result.dynamics[-1].trunk_update_norm > 0) != waits, name


@pytest.mark.slow
@pytest.mark.parametrize("num_tasks", [2, 10, 40])
def test_every_method_trains_the_regression_family(make_suite: MakeSuite, num_tasks: int) -> None:
    sigmas = np.geomspace(1, 100, num_tasks).tolist()
    problem = {
        "name": "regression",
        "options": {"sigmas": sigmas, "train_samples": 10 * BATCH},
        "steps": STEPS,
        "batch_size": BATCH,
    }
    loaded = make_suite(
        plugins=[],
        problems=[problem],
        balancers=entries(num_tasks, OURS),
        learning_rates=None,
        reported=[1],
        evaluations=1,
    )
    check(loaded, len(OURS))


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["burgers", "helmholtz", "reaction-diffusion", "poisson-l-shape"])
def test_methods_train_a_differential_equation(make_suite: MakeSuite, problem: str) -> None:
    names = in_parameters()
    num_tasks = 2 if problem == "helmholtz" else 3
    loaded = make_suite(
        plugins=[],
        reserved=True,  # six steps, and no score is looked at
        problems=[{"name": problem, "steps": STEPS, "batch_size": BATCH}],
        balancers=entries(num_tasks, names),
        learning_rates=None,
        reported=[1],
        evaluations=1,
    )
    assert {"ntk", "self-adaptive", "inverse-norm", "m-config", "config", "lr-annealing"} <= {*names}
    check(loaded, len(names))
