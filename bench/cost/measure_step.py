"""Measure the cost of a step for a suite: the time of its parts next to equal weighting's, and its operation counts.

A balancer and equal weighting each train a copy of the same model on the same batches, and their steps take turns, so
that whatever slows the machine for a while slows both. One CPU thread is used, and nothing else should be running.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tasks
from balancers import EqualWeighting, GradientBalancer, LossBalancer
from bench.run import build, code_hash
from bench.run.seeds import generator, stream_seed
from bench.run.spec import RunSpec

from .operation_count import count_cycle
from .step_clock import interleave, median_interval, single_thread
from .step_comparison import WARM_UP, warm_up
from .subject import make, of_problem
from .training_step import PARTS, TrainingStep

BATCHES = 10
"""Number of batches that are kept ready and used over and over."""
MEASURED_BY = ("measure_step", "step_comparison", "operation_count", "subject", "step_clock", "training_step")
"""Modules of this package whose code a measurement depends on."""


def key(spec: RunSpec, rounds: int, processor: str, gpu: str | None) -> str:
    """Return the key that a measurement is stored under, which depends on the machine and on the measuring code."""
    code = code_hash.file_hashes((Path(__file__).with_name(f"{name}.py") for name in MEASURED_BY), code_hash.OURS)
    return code_hash.digest([spec.key, rounds, processor, gpu, code])


def measure(spec: RunSpec, rounds: int) -> list[dict[str, Any]]:
    """Time ``rounds`` steps, each next to one of equal weighting, on ``spec.device``.

    Of a method that does not do the same in every step, because of ``update_every`` or ``accumulate``, times and counts
    are means over a cycle, after which it repeats itself. At least one cycle is timed. Below six cycles there is no
    interval.

    Returns:
        A row for each of `PARTS` and one for the whole ``"step"``, each with:

        - ``device``, ``threads``, ``part``;
        - ``median_ms``, ``q25_ms``, ``q75_ms``: quartiles of the time in milliseconds;
        - ``ratio_to_equal``: median over rounds, or cycles, of the time over equal weighting's, with a 95 % interval
          from order statistics, ``ratio_low`` to ``ratio_high``. It covers the spread between rounds, not between
          machines;
        - the fields of `Counts`: numbers for the step, None for the parts.
    """
    with single_thread():
        method, equal = trainings(spec)
        cycle = steps_in_cycle(method.balancer)
        rounds = max(1, rounds // cycle) * cycle
        warm_up((method, equal), WARM_UP)
        interleave((method, equal), rounds)
        seconds = np.array([method.seconds[-rounds:], equal.seconds[-rounds:]])  # (2, rounds, parts)
        for _ in range(-WARM_UP % cycle):  # until a cycle begins
            method()
        counts = vars(count_cycle(method, method.subject.device, cycle))
    seconds = seconds.reshape(2, -1, cycle, len(PARTS)).mean(axis=2)
    seconds = np.concatenate([seconds, seconds.sum(axis=-1, keepdims=True)], axis=-1)
    rows = []
    for part, (own, others) in zip((*PARTS, "step"), np.moveaxis(seconds, -1, 0), strict=True):
        q25, median, q75 = (np.quantile(own, [0.25, 0.5, 0.75]) * 1000).tolist()
        low, high = median_interval(own / others)
        row: dict[str, Any] = {"device": spec.device, "threads": 1, "part": part}
        row |= {"median_ms": median, "q25_ms": q25, "q75_ms": q75}
        row |= {"ratio_to_equal": float(np.median(own / others)), "ratio_low": low, "ratio_high": high}
        rows.append(row | (counts if part == "step" else dict.fromkeys(counts)))
    return rows


def steps_in_cycle(balancer: LossBalancer) -> int:
    """Return the number of steps after which the balancer repeats itself."""
    every = balancer.update_every if isinstance(balancer, GradientBalancer) else 1
    return every * balancer.accumulate


def trainings(spec: RunSpec) -> tuple[TrainingStep, TrainingStep]:
    """Return the training steps of ``spec``'s method and of equal weighting, each on its own copy of the model."""
    device = torch.device(spec.device)
    problem = tasks.create(spec.problem, **spec.problem_options)
    data = problem.data(generator(spec.seed, "data"), device)
    batches = problem.batches(data, generator(spec.seed, "batches"), spec.recipe.batch_size)
    make_step = of_problem(problem, list(itertools.islice(batches, BATCHES)), device)
    initial = stream_seed(spec.seed, "initial values")
    own, others = make(make_step, initial), make(make_step, initial)
    balancer = build.balancer(spec.method, problem, own.model)
    return (
        TrainingStep(own, balancer, build.optimizer(own.model, spec.recipe)),
        TrainingStep(others, EqualWeighting(problem.tasks), build.optimizer(others.model, spec.recipe)),
    )
