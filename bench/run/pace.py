"""Estimate how long a run takes on this machine by timing a few of its steps."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

import tasks
from tasks import Split

from .evaluation_check import checked, require_score
from .seeds import generator
from .spec import RunSpec
from .training import Metrics, Training, reproducible

LONGEST = 0.2
"""Seconds of timed steps after which no further step is timed; the first steps do not count."""
FIRST, MOST = 3, 20
"""Number of first steps, which are slower and timed apart, and maximum number of steps timed after them."""


@dataclass(frozen=True)
class Pace:
    """Seconds that parts of a run take on this machine, one thread.

    Attributes:
        load: what a process spends once, the first time it needs the problem's data.
        prepare: what each run spends on its data and model, including its first evaluation.
        step: one training step.
        evaluation: one evaluation.
    """

    load: float
    prepare: float
    step: float
    evaluation: float

    def run(self, spec: RunSpec) -> float:
        """Return the seconds of a whole run of ``spec``; unless it tunes, with four evaluations on the test split."""
        evaluations = spec.evaluations + (0 if spec.phase == "tuning" else 4)
        return self.prepare + spec.recipe.steps * self.step + evaluations * self.evaluation


class _FirstSteps(Training):
    """The first steps of a run, with a strict check of what the problem's ``evaluate`` returns."""

    def evaluate(self, model: nn.Module, split: Split, start: Metrics | None, data: Any = None) -> Metrics:
        """Return all metrics that the problem declares.

        Raises:
            EvaluationError: The problem's ``evaluate`` returns something else.
        """
        return checked(self.problem, self.problem.evaluate(model, self.data if data is None else data, split, start))


def pace(spec: RunSpec) -> Pace:
    """Run a few steps of ``spec`` and return how long its parts take. Errors of its problem or method propagate.

    Raises:
        EvaluationError: The problem's ``evaluate`` does not return the declared metrics, or no finite score.
    """
    spec = replace(spec, phase="tuning")
    training = _FirstSteps(spec)
    problem = tasks.create(spec.problem, **spec.problem_options)
    with reproducible(spec.device):
        load = _seconds(lambda: problem.data(generator(spec.seed, "data"), training.device))
        prepare = _seconds(training.prepare)
        make_step = training.stepper()
        steps = min(FIRST, spec.recipe.steps)
        first = _seconds(lambda: [make_step(None) for _ in range(steps)]) / steps
        times: list[float] = []
        while len(times) < min(MOST, spec.recipe.steps - steps) and sum(times) < LONGEST:
            times.append(_seconds(lambda: make_step(None)))
        before, after = training.starts["validation"], Metrics()
        evaluation = _seconds(lambda: after.update(training.evaluate(training.model, "validation", before)))
        require_score(problem, before, after)
    step = sorted(times)[len(times) // 2] if times else first
    return Pace(max(0.0, load - prepare), prepare, step, evaluation)


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun
