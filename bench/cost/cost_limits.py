"""The limits table: what GradNorm adds to a step of equal weighting, beside the least that it has to.

A row is a case and a method. Beside what `compare` says, it has ``ratio_to_fastest``: the same over the fastest
equal-weighting step of this problem and batch, with whichever kind of heads, so that no ratio is won by a slow
baseline. For methods that measure in every step, ``flops_bound`` and ``peak_bytes_bound`` stand beside ``extra_flops``
and ``extra_peak_bytes`` (see `Bounds`); of the one that updates every ten steps, a step between two updates is counted.
Of time the least that can be measured is that of a `Floor`, which forms the products and their norms, nothing else.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch

from .bounds import bounds
from .cases import Case, networks, regression
from .floor import FEATURES_FLOOR, LAYER_FLOOR
from .step_clock import interleave
from .step_comparison import WARM_UP, compare, start, warm_up
from .timed_methods import AGAIN, EQUAL, EVERY_TEN, FEATURES, LAYER, TimedMethod

CONTENDERS = (EQUAL, AGAIN, LAYER, FEATURES, EVERY_TEN)
FLOORS = (LAYER_FLOOR, FEATURES_FLOOR)
"""For the regression problem."""
SIZES = ((2, 100), (10, 100), (40, 100), (2, 1000), (10, 1000))
"""Numbers of tasks and batch sizes of the regression problem."""
ROUNDS, OF_NETWORKS, QUICK = 200, 100, 10


def measure(device: torch.device, quick: bool) -> Iterator[pd.DataFrame]:
    """The rows of one problem and batch after the other; when ``quick``, of the smallest alone."""
    for num_tasks, batch in SIZES[:1] if quick else SIZES:
        cases = list(regression(num_tasks, batch, device))
        yield rows_beside_fastest(cases, CONTENDERS + FLOORS, QUICK if quick else ROUNDS)
    if not quick:
        for case in networks(device):
            yield rows_beside_fastest([case], CONTENDERS, OF_NETWORKS)


def rows_beside_fastest(cases: Sequence[Case], contenders: Sequence[TimedMethod], rounds: int) -> pd.DataFrame:
    """The rows of the kinds of heads of one problem and batch, with ``ratio_to_fastest``."""
    parts = []
    for case, slowness in zip(cases, slownesses(cases, rounds), strict=True):
        part = rows(case, contenders, rounds)
        part.insert(list(part.columns).index("ratio_high") + 1, "ratio_to_fastest", part["ratio"] * slowness)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def slownesses(cases: Sequence[Case], rounds: int) -> list[float]:
    """A step of equal weighting over that of the fastest of ``cases``, done in turn: medians over rounds."""
    trainings = [training for case in cases for training in start(case.make_step, [EQUAL], case.num_tasks)]
    warm_up(trainings, WARM_UP)
    seconds = interleave(trainings, rounds)
    fastest = seconds[np.argmin(np.median(seconds, axis=1))]
    return [float(np.median(own / fastest)) for own in seconds]


def rows(case: Case, contenders: Sequence[TimedMethod], rounds: int) -> pd.DataFrame:
    """The rows of a case, without ``ratio_to_fastest``."""
    measured = compare(case.make_step, contenders, case.num_tasks, rounds)
    least = bounds(case.make_step, case.num_tasks)
    measured["flops_bound"] = measured["method"].map({LAYER.name: least.flops, FEATURES.name: 0})
    of_method = {LAYER.name: least.layer_bytes, FEATURES.name: least.feature_bytes}
    measured["peak_bytes_bound"] = measured["method"].map(of_method)
    return pd.concat([pd.DataFrame([case.about] * len(measured)), measured], axis=1)
