"""Measure the limits table: what GradNorm adds to a step of equal weighting, next to its bounds.

A row is one method on one case. It has the columns of `step_comparison.compare` and these:

- ``ratio_to_fastest``: the step's time over the fastest equal-weighting step of the same problem and batch, with either
  kind of heads, so that a slow baseline can't make a method look cheap.
- ``flops_bound`` and ``peak_bytes_bound``: lower bound of ``extra_flops`` and upper bound of ``extra_peak_bytes`` (see
  `Bounds`), for methods that measure in every step.

The counts of the method that updates every ten steps are of a step between two updates.

The lower bound of time is measured: a `Floor` forms the products and their norms, and does nothing else.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch

from .bounds import bounds
from .cases import Case, layer_networks, networks, regression
from .floor import FEATURES_FLOOR, LAYER_FLOOR
from .step_clock import interleave
from .step_comparison import WARM_UP, add_compiled, compare, start, warm_up
from .timed_methods import AGAIN, EQUAL, EVERY_TEN, FEATURES, FEATURES_COMPILED, LAYER, LAYER_COMPILED, TimedMethod

METHODS = (EQUAL, AGAIN, LAYER, FEATURES, EVERY_TEN)
COMPILED = {LAYER.name: LAYER_COMPILED, FEATURES.name: FEATURES_COMPILED}
"""By name: the methods that are also measured with a compiled update, which is not counted."""
FLOORS = (LAYER_FLOOR, FEATURES_FLOOR)
"""Floors, which are measured on the regression problem only."""
SIZES = ((2, 100), (10, 100), (40, 100), (2, 1000), (10, 1000))
"""Number of tasks and batch size of each regression problem."""
ROUNDS, OF_NETWORKS, QUICK = 200, 100, 10
"""Rounds on the regression problem, on the networks, and on each case of a quick run."""


def measure(device: torch.device, quick: bool) -> Iterator[pd.DataFrame]:
    """Yield the rows of one problem and batch after the other; with ``quick``, of the smallest only."""
    for num_tasks, batch in SIZES[:1] if quick else SIZES:
        cases = list(regression(num_tasks, batch, device))
        yield rows_beside_fastest(cases, METHODS + FLOORS, QUICK if quick else ROUNDS)
    if not quick:
        for case in (*layer_networks(device), *networks(device)):
            yield rows_beside_fastest([case], METHODS, OF_NETWORKS)


def rows_beside_fastest(cases: Sequence[Case], methods: Sequence[TimedMethod], rounds: int) -> pd.DataFrame:
    """Return the rows of ``cases``, which differ in their heads only, with ``ratio_to_fastest``."""
    parts = []
    for case, slowness in zip(cases, slownesses(cases, rounds), strict=True):
        part = rows(case, methods, rounds)
        part.insert(list(part.columns).index("ratio_high") + 1, "ratio_to_fastest", part["ratio"] * slowness)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def slownesses(cases: Sequence[Case], rounds: int) -> list[float]:
    """Return, for each case, the time of its equal-weighting step over that of the fastest case.

    All cases take turns, and the values are medians over rounds.
    """
    trainings = [training for case in cases for training in start(case.make_step, [EQUAL], case.num_tasks)]
    warm_up(trainings, WARM_UP)
    seconds = interleave(trainings, rounds)
    fastest = seconds[np.argmin(np.median(seconds, axis=1))]
    return [float(np.median(own / fastest)) for own in seconds]


def rows(case: Case, methods: Sequence[TimedMethod], rounds: int) -> pd.DataFrame:
    """Return the rows of one case, without ``ratio_to_fastest``."""
    measured = compare(case.make_step, methods, case.num_tasks, rounds)
    twins = [COMPILED[method.name] for method in methods if method.name in COMPILED]
    add_compiled(measured, case.make_step, twins, case.num_tasks, rounds)
    least = bounds(case.make_step, case.num_tasks)
    measured["flops_bound"] = measured["method"].map({LAYER.name: least.flops, FEATURES.name: 0})
    of_method = {LAYER.name: least.layer_bytes, FEATURES.name: least.feature_bytes}
    measured["peak_bytes_bound"] = measured["method"].map(of_method)
    return case.beside(measured)
