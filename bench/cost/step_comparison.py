"""Compares what a step costs under several methods, the first of which is equal weighting.

Each trains its own copy of the same model, in one process, and takes turns with equal weighting: whatever slows the
machine for a while slows both. No more than two at a time: a step finds in the caches what it would in training.
Nothing else should be running. The caller sees to it that there is one CPU thread.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .operation_count import count
from .step_clock import interleave, median_interval
from .subject import MakeStep, make
from .timed_methods import TimedMethod
from .training_step import TrainingStep, adam

WARM_UP = 20
"""Steps made before the first that counts: allocations, a balancer's first-step checks, lazy initialisations."""
BLOCK = 20
"""Rounds; whole cycles of every contender."""


def compare(make_step: MakeStep, contenders: Sequence[TimedMethod], num_tasks: int, rounds: int) -> pd.DataFrame:
    """What `times` and `counts` say, a row a contender."""
    trainings = start(make_step, contenders, num_tasks)
    warm_up(trainings, WARM_UP)
    return times(trainings, contenders, rounds).join(counts(trainings))


def start(make_step: MakeStep, contenders: Sequence[TimedMethod], num_tasks: int) -> list[TrainingStep]:
    """A training for each contender, of a subject of its own."""
    trainings = []
    for contender in contenders:
        subject = make(make_step)
        trainings.append(TrainingStep(subject, contender.balancer(subject, num_tasks), adam(subject.model)))
    return trainings


def warm_up(trainings: Sequence[TrainingStep], steps: int) -> None:
    """Makes ``steps`` steps of each."""
    for training in trainings:
        for _ in range(steps):
            training()


def times(trainings: Sequence[TrainingStep], contenders: Sequence[TimedMethod], rounds: int) -> pd.DataFrame:
    """``method``, and what `time_row` says of ``rounds`` steps of each contender next to as many of the first.

    The pairs take turns too, `BLOCK` rounds at a time, so that times in milliseconds are of the same hour.
    """
    blocks: list[list[NDArray[np.float64]]] = [[] for _ in trainings[1:]]
    for begin in range(0, rounds, BLOCK):
        for other, of_pair in zip(trainings[1:], blocks, strict=True):
            of_pair.append(interleave((trainings[0], other), min(BLOCK, rounds - begin)))
    pairs = [np.concatenate(of_pair, axis=1) for of_pair in blocks]
    first = np.concatenate([of_equal for of_equal, _ in pairs])
    rows = [time_row(first, first, cycle=1)]
    for contender, (of_equal, own) in zip(contenders[1:], pairs, strict=True):
        rows.append(time_row(own, of_equal, contender.cycle))
    table = pd.DataFrame(rows)
    table.insert(0, "method", [contender.name for contender in contenders])
    return table


def time_row(seconds: NDArray[np.float64], of_equal: NDArray[np.float64], cycle: int) -> dict[str, float]:
    """How the steps of a method, ``(rounds,)`` seconds, compare with those of equal weighting done next to them.

    All are medians over cycles of ``cycle`` rounds, nan where there is no whole cycle: ``ratio``, with a 95 % interval
    from order statistics, ``ratio_low`` to ``ratio_high``; ``median_ms`` and ``extra_ms``, milliseconds a step.
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
    """What `count` counts in a step of each, and, as ``extra_…``, how much more that is than in the first's."""
    table = pd.DataFrame([_least(training) for training in trainings])
    return table.join((table - table.iloc[0]).add_prefix("extra_"))


def _least(training: TrainingStep) -> "pd.Series[int]":
    """The least of what is counted twice: a method that measures now and then does so in one of the two at most."""
    counted = [vars(count(training, training.subject.device)) for _ in range(2)]
    return pd.DataFrame(counted).min()


def _median(values: NDArray[np.float64]) -> float:
    return float(np.median(values)) if len(values) else float("nan")
