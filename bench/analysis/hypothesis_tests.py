"""Compute p-values of paired comparisons, correct them for their number, and find what a comparison can detect."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

LEVEL = 0.05
"""The family-wise error that claims may have."""
POWER = 0.8
"""The power at which an effect counts as detectable."""


def paired_p_value(differences: ArrayLike) -> float:
    """Return the two-sided p-value of Student's paired t-test, for ``differences`` of shape ``(n,)``.

    Differences that are all zero have the p-value 1, others that are all the same 0. With fewer than two differences
    the p-value is not-a-number.
    """
    sample = np.asarray(differences, dtype=float)
    if sample.size < 2:
        return np.nan
    error = sample.std(ddof=1) / np.sqrt(sample.size)
    if error == 0 or (sample == sample[0]).all():
        return float(sample[0] == 0)
    return float(2 * stats.t.sf(abs(sample.mean()) / error, sample.size - 1))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    r"""Return the p-values, shape ``(m,)``, adjusted for their number by Holm's step-down rule.

    Rejecting all hypotheses whose adjusted p-value is at most a level keeps the probability of one false rejection or
    more at that level, whatever the dependence between the tests. With the p-values in rising order,

    .. math:: \tilde p_i = \max_{j \le i} \min(1, (m - j + 1)\,p_j).

    A p-value that is not-a-number counts as a test without a result: it is adjusted to 1, and counts in m.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6(2),
    1979.
    """
    values = np.nan_to_num(np.asarray(p_values, dtype=float), nan=1.0)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty(values.size)
    factors = values.size - np.arange(values.size)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, factors * values[order]))
    return adjusted


def detectable_difference(deviation: float, count: int, tests: int) -> float:
    r"""Return the smallest mean difference that a paired t-test detects with power `POWER` at Holm's first step.

    The first of m tests is rejected at the two-sided level :math:`\alpha / m`, with :math:`\alpha` = `LEVEL`. If the
    mean difference is :math:`\delta`, the statistic of n differences with standard deviation :math:`\sigma` has
    Student's noncentral distribution with n - 1 degrees of freedom and noncentrality
    :math:`\delta \sqrt n / \sigma`. Only a rejection with the right sign counts. The returned :math:`\delta` solves

    .. math:: P\big(T_{n-1}(\delta \sqrt n / \sigma) > t_{1 - \alpha / (2m),\,n-1}\big) = 0.8.

    Args:
        deviation: The standard deviation of a paired difference.
        count: The number n of seeds. With fewer than two, nothing is detectable: the result is infinite.
        tests: The number m of tests.
    """
    if count < 2:
        return np.inf
    critical = float(stats.t.isf(LEVEL / (2 * tests), count - 1))

    def surplus(shift: float) -> float:
        return float(stats.nct.sf(critical, count - 1, shift)) - POWER

    # A shift of half the critical value is detected too rarely, and one of three times that value nearly always.
    shift = float(optimize.brentq(surplus, 0.5 * critical, 3 * critical + 5))
    return shift * deviation / float(np.sqrt(count))
