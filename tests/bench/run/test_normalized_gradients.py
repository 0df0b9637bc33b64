"""On same-tasks, weights matter through the length of the gradients alone.

Where each tensor's gradient is scaled to length one before the optimiser's step, every weighting trains as equal
weighting does. This checks the harness: nothing else of a method reaches the model. It says nothing about directions.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim import Adam, Optimizer

import balancers
import tasks
from bench.run import build, training
from bench.run.spec import Method, RunSpec
from tasks import Recipe

METHODS = [
    ("static", {"weights": [2.7, 0.27, 0.03]}),
    ("uncertainty", {}),
    ("dwa", {}),
    ("famo", {}),
    ("gradnorm", {}),
    ("pcgrad", {}),
    ("nash-mtl", {}),
    ("random", {}),
]


class UnitGradients(Adam):
    """Adam that sees the gradient of each tensor at length one."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                norm = torch.linalg.vector_norm(parameter.grad)
                parameter.grad.div_(norm.clamp(min=1e-30))
        return super().step(closure)


def optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    return UnitGradients(model.parameters(), lr=recipe.lr, betas=recipe.betas)


def error(name: str, options: dict[str, object], seed: int) -> float:
    """Return the test error after a short training."""
    problem = tasks.create("same-tasks")
    wrt = build.default_wrt(balancers.get(name), problem.shared(problem.model()))
    recipe = replace(problem.recipe, steps=300, schedule="cosine", betas=(0.9, 0.95))
    spec = RunSpec("same-tasks", {}, recipe, Method(name, wrt, options), seed, "reported", "cpu", 2)
    result = training.run(spec)
    assert result.status == "ok", result.reason
    (last,) = (score for score in result.scores if (score.checkpoint, score.split) == ("last", "test"))
    return last.metrics[problem.primary]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [901, 902])
def test_every_weighting_scores_alike_where_gradients_have_length_one(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(build, "optimizer", optimizer)
    equal = error("equal", {}, seed)
    ratios = {name: math.log(error(name, options, seed) / equal) for name, options in METHODS}
    assert {name: ratio for name, ratio in ratios.items() if abs(ratio) > 1e-3} == {}


@pytest.mark.slow
def test_without_that_they_differ() -> None:
    assert abs(math.log(error("random", {}, 901) / error("equal", {}, 901))) > 0.05
