"""Turn numbers into verdicts on claims: pure functions on arrays. The rules were fixed before there were results."""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from bench.analysis import CONFIDENCE, Comparison, Estimate, compare

ClaimVerdict = Literal["holds", "does not hold", "not settled"]


def of_comparison(comparison: Comparison) -> ClaimVerdict:
    """Judge the claim that one method is better than another. A tie refutes it, and so does being worse."""
    match comparison.verdict:
        case "better":
            return "holds"
        case "worse" | "tie":
            return "does not hold"
    return "not settled"


def above(estimate: Estimate, bound: float) -> ClaimVerdict:
    """Judge the claim that a value is above ``bound``."""
    if estimate.low > bound:
        return "holds"
    return "does not hold" if estimate.high <= bound else "not settled"


def below(estimate: Estimate, bound: float) -> ClaimVerdict:
    """Judge the claim that a value is below ``bound``."""
    if estimate.high < bound:
        return "holds"
    return "does not hold" if estimate.low >= bound else "not settled"


def every(verdicts: Iterable[ClaimVerdict], exceptions: int = 0) -> ClaimVerdict:
    """Judge the claim that all parts hold but for at most ``exceptions``. Without any part it is not settled."""
    found = list(verdicts)
    if found.count("does not hold") > exceptions:
        return "does not hold"
    return "holds" if found and len(found) - found.count("holds") <= exceptions else "not settled"


def peak(scores: ArrayLike, places: Sequence[float], within: tuple[float, float]) -> tuple[Comparison, ClaimVerdict]:
    """Judge the claim that the lowest score, which is the best one, lies ``within`` two bounds.

    The best place within the bounds is compared with the best place outside. The best place is the one with the lowest
    geometric mean over seeds.

    Args:
        scores: positive, ``(places, seeds)``.
        places: position of each place.
        within: lower and upper bound, which are included.
    """
    values = np.asarray(scores, dtype=float)
    inside = np.array([within[0] <= place <= within[1] for place in places])
    ours, others = (_best(values[chosen]) for chosen in (inside, ~inside))
    comparison = compare(ours, others, higher_is_better=False, scale="ratio")
    return comparison, of_comparison(comparison)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """Return Spearman's correlation of two arrays of shape ``(n,)`` with at least four values, and an interval.

    The interval is from Bonett and Wright, "Sample size requirements for estimating Pearson, Kendall and Spearman
    correlations", Psychometrika 65(1), 2000: normal on Fisher's scale, with variance (1 + r^2 / 2) / (n - 3).
    """
    r, n = float(stats.spearmanr(x, y).statistic), len(x)
    if not abs(r) < 1:
        return Estimate(r, r, r)
    half = stats.norm.ppf(0.5 + CONFIDENCE / 2) * np.sqrt((1 + r**2 / 2) / (n - 3))
    return Estimate(r, *(float(np.tanh(np.arctanh(r) + side * half)) for side in (-1, 1)))


def share(count: int, of: int) -> Estimate:
    """Return the proportion ``count / of`` and its exact interval (Clopper and Pearson, Biometrika 26(4), 1934)."""
    interval = stats.binomtest(count, of).proportion_ci(CONFIDENCE, method="exact")
    return Estimate(count / of, float(interval.low), float(interval.high))


def imputed(scores: ArrayLike, constants: ArrayLike) -> NDArray[np.float64]:
    """Return ``scores`` with those that are not finite replaced by the worst finite score or the constant predictor's.

    This is the protocol's rule for failed runs: the worse of the two counts.

    Args:
        scores: scores of all runs on one problem that are compared, of any shape; less is better.
        constants: score of the constant predictor for each of them; nan if there is none.
    """
    values = np.asarray(scores, dtype=float)
    finite = np.isfinite(values)
    worst = values[finite].max() if finite.any() else np.nan
    return np.where(finite, values, np.fmax(worst, np.asarray(constants, dtype=float)))


def _best(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    best: NDArray[np.float64] = scores[np.log(scores).mean(axis=1).argmin()]
    return best
