"""What an experiment says of a claim: pure functions on arrays, by rules that are fixed before there are results."""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from bench.analysis import CONFIDENCE, Comparison, Estimate, compare

ClaimVerdict = Literal["holds", "does not hold", "not settled"]


def of_comparison(comparison: Comparison) -> ClaimVerdict:
    """Of the claim that one thing is better than another: a tie refutes it, as being worse does."""
    match comparison.verdict:
        case "better":
            return "holds"
        case "worse" | "tie":
            return "does not hold"
    return "not settled"


def above(estimate: Estimate, bound: float) -> ClaimVerdict:
    """Of the claim that a value exceeds ``bound``."""
    if estimate.low > bound:
        return "holds"
    return "does not hold" if estimate.high <= bound else "not settled"


def below(estimate: Estimate, bound: float) -> ClaimVerdict:
    """Of the claim that a value is less than ``bound``."""
    if estimate.high < bound:
        return "holds"
    return "does not hold" if estimate.low >= bound else "not settled"


def every(verdicts: Iterable[ClaimVerdict], exceptions: int = 0) -> ClaimVerdict:
    """Of the claim that all of several things hold but for as many ``exceptions``; not settled where there are none."""
    found = list(verdicts)
    if found.count("does not hold") > exceptions:
        return "does not hold"
    return "holds" if found and len(found) - found.count("holds") <= exceptions else "not settled"


def peak(scores: ArrayLike, places: Sequence[float], within: tuple[float, float]) -> tuple[Comparison, ClaimVerdict]:
    """Of the claim that scores, of which less is better, are best at a place ``within`` two bounds.

    The best of the places within is compared with the best of the others, by their geometric means.

    Args:
        scores: ``(places, seeds)``, positive.
    """
    values = np.asarray(scores, dtype=float)
    inside = np.array([within[0] <= place <= within[1] for place in places])
    ours, others = (_best(values[chosen]) for chosen in (inside, ~inside))
    comparison = compare(ours, others, higher_is_better=False, scale="ratio")
    return comparison, of_comparison(comparison)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """Spearman's correlation of two arrays of shape ``(n,)``, of four values or more, and an interval for it.

    The interval is that of Bonett and Wright, "Sample size requirements for estimating Pearson, Kendall and Spearman
    correlations", Psychometrika 65(1), 2000: normal on Fisher's scale, with variance (1 + r^2 / 2) / (n - 3).
    """
    r, n = float(stats.spearmanr(x, y).statistic), len(x)
    if not abs(r) < 1:
        return Estimate(r, r, r)
    half = stats.norm.ppf(0.5 + CONFIDENCE / 2) * np.sqrt((1 + r**2 / 2) / (n - 3))
    return Estimate(r, *(float(np.tanh(np.arctanh(r) + side * half)) for side in (-1, 1)))


def share(count: int, of: int) -> Estimate:
    """A proportion and its exact interval (Clopper and Pearson, Biometrika 26(4), 1934)."""
    interval = stats.binomtest(count, of).proportion_ci(CONFIDENCE, method="exact")
    return Estimate(count / of, float(interval.low), float(interval.high))


def imputed(scores: ArrayLike, constants: ArrayLike) -> NDArray[np.float64]:
    """``scores``, of which less is better, where not finite replaced by the worst finite one, or the constant's.

    It is the protocol's rule for failed runs: a constant predictor's score counts where it is the worse of the two.

    Args:
        scores: of any shape: all runs on one problem that are compared.
        constants: of the same shape; not a number where there is no constant predictor.
    """
    values = np.asarray(scores, dtype=float)
    finite = np.isfinite(values)
    worst = values[finite].max() if finite.any() else np.nan
    return np.where(finite, values, np.fmax(worst, np.asarray(constants, dtype=float)))


def _best(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    best: NDArray[np.float64] = scores[np.log(scores).mean(axis=1).argmin()]
    return best
