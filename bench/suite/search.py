"""The trials of a search: which learning rates, options and static weights a suite tries.

Points are the beginning of a scrambled Sobol sequence (SciPy's), and depend on nothing but their number: one coordinate
is the learning rate, which all methods share trial by trial, the others are the method's own. In the first half of
the trials a method's options stay as they are.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from balancers import Range
from bench.run.spec import Options
from bench.style.numbers import rounded

SEED = 20
DIMENSIONS = 33
"""A point has so many coordinates even where fewer are used, so that a further method changes no other's trials."""
DIGITS = 4
"""To so many significant digits options and weights are rounded, for people to read."""


def learning_rates(trials: int, low: float, high: float) -> tuple[float, ...]:
    """The learning rate of each trial, log-uniform in ``[low, high]``: different ones, to three digits if these do."""
    exact = [low * (high / low) ** u for u in _points(trials)[:, 0]]
    for digits in range(3, 17):
        rates = tuple(min(high, max(low, rounded(rate, digits))) for rate in exact)
        if len(set(rates)) == trials:
            return rates
    raise ValueError(f"between {low} and {high} there are no {trials} different learning rates")


def options(ranges: Mapping[str, Range], fixed: Options, trials: int) -> list[Options]:
    """The options of each trial: the ``fixed`` ones, and in the second half one out of each of the other ``ranges``."""
    found: list[Options] = []
    for trial, point in enumerate(_points(trials, len(ranges))):
        drawn = {
            name: _within(limits, u) for (name, limits), u in zip(ranges.items(), point[1:], strict=False)
        }  # an option keeps its coordinate when another is fixed
        found.append({**drawn, **fixed} if 2 * trial >= trials else dict(fixed))
    return found


def weights(own: Sequence[float] | None, num_tasks: int, trials: int) -> list[list[float]]:
    """The static weights of each trial: ``own`` in the first half, the others uniform on the simplex of sum T.

    Spacings of a Poisson process are uniform on the simplex: L. Devroye, Non-Uniform Random Variate Generation,
    Springer 1986, section V.2. Without ``own`` weights, all are drawn.
    """
    spacings = -np.log1p(-_points(trials, num_tasks)[:, 1 : 1 + num_tasks])
    drawn = num_tasks * spacings / spacings.sum(axis=1, keepdims=True)
    return [
        list(own) if own and 2 * trial < trials else [rounded(weight, DIGITS) for weight in row]
        for trial, row in enumerate(drawn.tolist())
    ]


def _points(trials: int, needed: int = 0) -> NDArray[np.float64]:
    """``(trials, DIMENSIONS or more)``, in [0, 1)."""
    sequence = qmc.Sobol(max(DIMENSIONS, 1 + needed), scramble=True, rng=np.random.default_rng(SEED))
    return sequence.random_base2(max(0, (trials - 1).bit_length()))[:trials]


def _within(limits: Range, u: float) -> float:
    low, high = limits.low, limits.high
    value = low * (high / low) ** u if limits.log else low + (high - low) * u
    return min(high, max(low, rounded(value, DIGITS)))
