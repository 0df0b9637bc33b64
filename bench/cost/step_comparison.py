"""Compare what a step costs with several methods, the first of which is equal weighting.

Each method trains its own copy of the same model, in one process, and its steps take turns with equal weighting's, so
that whatever slows the machine for a while slows both. Only two models take turns at a time, but each step still finds
the other model's data in the caches. Beside a method that touches much memory, equal weighting is slower than beside a
copy of itself, so that the ratio is nearer to 1 than in training. Nothing else should be running, and the caller makes
sure that there is one CPU thread (`single_thread`).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .operation_count import count
from .step_clock import interleave, median_interval
from .subject import MakeStep, make
from .timed_methods import EQUAL, TimedMethod
from .training_step import TrainingStep, adam

WARM_UP = 20
"""Steps before the first timed one: they cover allocations, a balancer's first checks and lazy initialisation."""
BLOCK = 20
"""Rounds that a pair makes before the next pair's turn: a multiple of every method's cycle."""


def compare(make_step: MakeStep, methods: Sequence[TimedMethod], num_tasks: int, rounds: int) -> pd.DataFrame:
    """Measure all ``methods`` and return a row for each, with the columns of `times` and `counts`."""
    trainings = start(make_step, methods, num_tasks)
    warm_up(trainings, WARM_UP)
    return times(trainings, methods, rounds).join(counts(trainings))


def add_compiled(
    table: pd.DataFrame, make_step: MakeStep, compiled: Sequence[TimedMethod], num_tasks: int, rounds: int
) -> None:
    """Add a column ``compiled_ratio`` to the table of `compare`: the ratio of each method's form in ``compiled``.

    These have the methods' names, and a compiled update. Their operators are not counted: a count would run them
    uncompiled.
    """
    ratios: dict[object, float] = {}
    if compiled:
        methods = [EQUAL, *compiled]
        trainings = start(make_step, methods, num_tasks)
        warm_up(trainings, WARM_UP)
        measured = times(trainings, methods, rounds)
        ratios = dict(zip(measured["method"], measured["ratio"], strict=True))
    of_methods = [ratios.get(name, np.nan) if name != EQUAL.name else np.nan for name in table["method"]]
    table.insert(list(table).index("ratio_high") + 1, "compiled_ratio", of_methods)


def start(make_step: MakeStep, methods: Sequence[TimedMethod], num_tasks: int) -> list[TrainingStep]:
    """Return a training step for each method, on a subject of its own."""
    trainings = []
    for method in methods:
        subject = make(make_step)
        trainings.append(TrainingStep(subject, method.balancer(subject, num_tasks), adam(subject.model)))
    return trainings


def warm_up(trainings: Sequence[TrainingStep], steps: int) -> None:
    """Make ``steps`` steps of each training."""
    for training in trainings:
        for _ in range(steps):
            training()


def times(trainings: Sequence[TrainingStep], methods: Sequence[TimedMethod], rounds: int) -> pd.DataFrame:
    """Time ``rounds`` steps of each method, each next to a step of the first, and return a row for each method.

    A row has ``method`` and the columns of `time_row`. The pairs take turns too, `BLOCK` rounds at a time, so that all
    times in milliseconds come from the same stretch of time.
    """
    blocks: list[list[NDArray[np.float64]]] = [[] for _ in trainings[1:]]
    for begin in range(0, rounds, BLOCK):
        for other, of_pair in zip(trainings[1:], blocks, strict=True):
            of_pair.append(interleave((trainings[0], other), min(BLOCK, rounds - begin)))
    pairs = [np.concatenate(of_pair, axis=1) for of_pair in blocks]
    first = np.concatenate([of_equal for of_equal, _ in pairs])
    rows = [time_row(first, first, cycle=1)]
    for method, (of_equal, own) in zip(methods[1:], pairs, strict=True):
        rows.append(time_row(own, of_equal, method.cycle))
    table = pd.DataFrame(rows)
    table.insert(0, "method", [method.name for method in methods])
    return table


def time_row(seconds: NDArray[np.float64], of_equal: NDArray[np.float64], cycle: int) -> dict[str, float]:
    """Compare the steps of a method with those of equal weighting that were made next to them.

    Args:
        seconds: time of each of the method's steps, ``(rounds,)``.
        of_equal: time of the equal-weighting step next to it, ``(rounds,)``.
        cycle: number of steps after which the method repeats itself.

    Returns:
        Medians over cycles, nan if there is no whole cycle: ``ratio``, the method's time over equal weighting's, with a
        95 % interval from order statistics, ``ratio_low`` to ``ratio_high``; ``median_ms``, milliseconds a step;
        ``extra_ms``, milliseconds a step that it takes longer than equal weighting.
    """
    whole = len(seconds) // cycle * cycle
    own, others = (part[:whole].reshape(-1, cycle).mean(axis=1) for part in (seconds, of_equal))
    low, high = median_interval(own / others)
    return {
        "ratio": _median(own / others),
        "ratio_low": low,
        "ratio_high": high,
        "median_ms": _median(own) * 1000,
        "extra_ms": _median(own - others) * 1000,
    }


def counts(trainings: Sequence[TrainingStep]) -> pd.DataFrame:
    """Return the `Counts` of a step of each training, and as ``extra_…`` by how much they exceed those of the first."""
    table = pd.DataFrame([_least(training) for training in trainings])
    return table.join((table - table.iloc[0]).add_prefix("extra_"))


def _least(training: TrainingStep) -> "pd.Series[int]":
    """Count two steps and return the smaller counts.

    With ``update_every``, at most one of two neighbouring steps measures.
    """
    counted = [vars(count(training, training.subject.device)) for _ in range(2)]
    return pd.DataFrame(counted).min()


def _median(values: NDArray[np.float64]) -> float:
    return float(np.median(values)) if len(values) else float("nan")
