"""Draw the trials of a search: the learning rates, options and static weights that a suite tries.

The points are the beginning of a scrambled Sobol sequence (SciPy's), and depend on nothing but their number. One
coordinate is the learning rate, which all methods share trial by trial; the others are the method's own. In the first
half of the trials, a method's options stay as they are.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from balancers import Range
from bench.run.spec import Options
from bench.style.numbers import rounded

SEED = 20
"""Seed of the sequence's scrambling."""
DIMENSIONS = 33
"""Number of coordinates of a point, even if fewer are used, so that a further method changes no other method's
trials."""
DIGITS = 4
"""Number of significant digits of drawn options and weights, so that people can read them."""


def learning_rates(trials: int, low: float, high: float) -> tuple[float, ...]:
    """Return the learning rate of each trial, log-uniform in ``[low, high]``.

    The rates are all different. They are rounded to three digits, or to as many more as that takes.

    Raises:
        ValueError: There are not enough different numbers between ``low`` and ``high``.
    """
    exact = [low * (high / low) ** u for u in _points(trials)[:, 0]]
    for digits in range(3, 17):
        rates = tuple(min(high, max(low, rounded(rate, digits))) for rate in exact)
        if len(set(rates)) == trials:
            return rates
    raise ValueError(f"there are no {trials} different learning rates between {low} and {high}")


def options(ranges: Mapping[str, Range], fixed: Options, trials: int) -> list[Options]:
    """Return the options of each trial.

    Args:
        ranges: The limits of each option that may be tuned.
        fixed: The options that every trial has. In the second half of the trials, a value is drawn for each option in
            ``ranges`` that is not fixed.
        trials: The number of trials.
    """
    found: list[Options] = []
    for trial, point in enumerate(_points(trials, len(ranges))):
        drawn = {
            name: _within(limits, u) for (name, limits), u in zip(ranges.items(), point[1:], strict=False)
        }  # an option keeps its coordinate when another is fixed
        found.append({**drawn, **fixed} if 2 * trial >= trials else dict(fixed))
    return found


def weights(own: Sequence[float] | None, num_tasks: int, trials: int) -> list[list[float]]:
    """Return the static weights of each trial; drawn weights are uniform on the simplex of sum T.

    Spacings of a Poisson process are uniform on the simplex: L. Devroye, Non-Uniform Random Variate Generation,
    Springer 1986, section V.2.

    Args:
        own: The problem's own weights, which the first half of the trials has. If None, all weights are drawn.
        num_tasks: The number of tasks, T.
        trials: The number of trials.
    """
    spacings = -np.log1p(-_points(trials, num_tasks)[:, 1 : 1 + num_tasks])
    drawn = num_tasks * spacings / spacings.sum(axis=1, keepdims=True)
    return [
        list(own) if own and 2 * trial < trials else [rounded(weight, DIGITS) for weight in row]
        for trial, row in enumerate(drawn.tolist())
    ]


def _points(trials: int, needed: int = 0) -> NDArray[np.float64]:
    """Return points in [0, 1), ``(trials, DIMENSIONS)``; more columns if ``needed`` besides the learning rate's."""
    sequence = qmc.Sobol(max(DIMENSIONS, 1 + needed), scramble=True, rng=np.random.default_rng(SEED))
    return sequence.random_base2(max(0, (trials - 1).bit_length()))[:trials]


def _within(limits: Range, u: float) -> float:
    """Return the value at the place ``u``, from 0 to 1, between the limits of an option."""
    low, high = limits.low, limits.high
    value = low * (high / low) ** u if limits.log else low + (high - low) * u
    return min(high, max(low, rounded(value, DIGITS)))
