"""The cost of a step in a suite: its time next to a step of equal weighting, part by part, and what it does.

A balancer and equal weighting train a copy each of the same model, on the same batches, in turn: whatever slows the
machine for a while slows both. Nothing else should be running, and one CPU thread is used.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tasks
from balancers import EqualWeighting
from bench.run import build, code_hash, machine_facts
from bench.run.seeds import generator, stream_seed
from bench.run.spec import RunSpec

from .operation_count import count
from .step_clock import interleave, median_interval, single_thread
from .step_comparison import WARM_UP, warm_up
from .subject import make, of_problem
from .training_step import PARTS, TrainingStep

BATCHES = 10
"""So many are kept ready, and used over and over."""
MEASURED_BY = ("measure_step", "step_comparison", "operation_count", "subject", "step_clock", "training_step")
"""The files whose code a measurement depends on."""


def key(spec: RunSpec, rounds: int) -> str:
    """What a measurement is kept under: it is good for one kind of machine, and for the code that measured."""
    code = code_hash.file_hashes((Path(__file__).with_name(f"{name}.py") for name in MEASURED_BY), code_hash.OURS)
    return code_hash.digest([spec.key, rounds, machine_facts.processor(), machine_facts.gpu(), code])


def measure(spec: RunSpec, rounds: int) -> list[dict[str, Any]]:
    """Times ``rounds`` steps, each next to one of equal weighting, on ``spec.device``.

    Returns:
        A row for each of `PARTS` and for the whole ``"step"``: ``device``, ``threads``, ``part``; ``median_ms``,
        ``q25_ms`` and ``q75_ms`` of the times in milliseconds; ``ratio_to_equal``, the median over rounds of the time
        over that of equal weighting, with a 95 % interval from order statistics, ``ratio_low`` to ``ratio_high``, which
        is for the spread between rounds, not between machines; for the step what `count` counts, for the parts None.
    """
    with single_thread():
        method, equal = trainings(spec)
        warm_up((method, equal), WARM_UP)
        interleave((method, equal), rounds)
        seconds = np.array([method.seconds[-rounds:], equal.seconds[-rounds:]])  # (2, rounds, parts)
        counts = vars(count(method, method.subject.device))
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


def trainings(spec: RunSpec) -> tuple[TrainingStep, TrainingStep]:
    """The method of ``spec`` and equal weighting, each training its own copy of the model."""
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
