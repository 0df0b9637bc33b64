r"""Tell how much longer equal weighting must train to match a method: its equivalent steps *q*.

Equal weighting is trained at several lengths, each with a schedule of its own: half, once, twice and four times the
problem's steps. Let :math:`c_s(\lambda)` be its score with seed s when it trains :math:`e^\lambda` times the steps,
interpolated linearly in :math:`\lambda` between these lengths, and :math:`y_s` the method's score. Both are on the
scale of comparisons and signed so that lower is better. With the gap :math:`d_s(\lambda) = y_s - c_s(\lambda)`,

.. math:: q = \min\{e^\lambda : \bar d(\lambda) \ge 0\},

the shortest training after which the mean of equal weighting is at least as good as the method. It is exact, because
the mean curve is piecewise linear. *q* is "below" if the shortest training is enough, and "above" if none is.

The interval inverts the paired t-test. At a true *q* between the ends, the expected gap is zero. The interval therefore
has all lengths at which the gap of n seeds is not rejected,

.. math:: n\,\bar d(\lambda)^2 \le t_{0.975,\,n-1}^2\,\operatorname{var}_s d_s(\lambda),

which is a quadratic inequality in :math:`\lambda` on each segment, so that the ends are roots and not points of a grid.
As with Fieller's interval for a ratio, a flat or noisy curve makes it wide, up to both flags.

What happens where the mean curve is not monotone:

- The estimate is the first crossing. Training for longer may well be worse again.
- The accepted lengths can be several intervals. The interval is their hull. It still covers *q*, because the gap is
  zero at the first crossing whatever the curve does elsewhere, but it is wider than it need be.
- The lower end is "below" unless equal weighting is significantly worse than the method at the shortest training.
- The upper end is "above" if the longest training is accepted, or if equal weighting is at no length significantly
  better than the method. A curve that passes the method and gets worse again after that is not "above".

A flagged end has the number of the length that it lies beyond. The interval assumes that the interpolation is right. A
learning curve that flattens is convex, a chord lies above it, and *q* comes out too large between two lengths, by some
percent: `chord_excess` tells how much.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from .intervals import CONFIDENCE
from .pooled_scores import PooledScores, pooled_scores
from .suite_tables import SuiteTables

CONVERGED = 0.05
"""Equal weighting has converged on a problem if twice the steps improve its score by less than this fraction."""
VALUES = ["q", "beyond", "low", "low_beyond", "high", "high_beyond"]
COLUMNS = ["problem", "balancer", "seeds", *VALUES]
DOUBLING = ["problem", "seeds", "scale", "doubling", "low", "high", "converged"]

Beyond = Literal["below", "above", ""]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class EquivalentSteps:
    """Equivalent steps with their interval, as factors of the steps.

    ``beyond``, ``low_beyond`` and ``high_beyond`` are "below" or "above" where the factor before them lies beyond the
    shortest or longest training of equal weighting, else "". The factor itself is then the length that it lies beyond.
    Both ends can lie beyond the same length. The ends are not-a-number if there are fewer than two seeds.
    """

    q: float
    beyond: Beyond
    low: float
    low_beyond: Beyond
    high: float
    high_beyond: Beyond


SAME = EquivalentSteps(1.0, "", 1.0, "", 1.0, "")
"""The equivalent steps of equal weighting itself."""


def match_steps(
    own: Floats, curve: Floats, factors: Sequence[float], confidence: float = CONFIDENCE
) -> EquivalentSteps:
    """Return the equivalent steps of a method.

    Args:
        own: The method's scores on the scale of comparisons, ``(n,)``; lower is better.
        curve: The scores of equal weighting with the same seeds, ``(n, k)``, one column per length of training.
        factors: These k lengths as factors of the method's steps, rising.
        confidence: Confidence of the interval.

    Raises:
        ValueError: There is no seed, the shapes don't fit, or fewer than two lengths or lengths that don't rise.
    """
    lengths = np.asarray(factors, dtype=float)
    if not own.size or curve.shape != (own.size, lengths.size):
        raise ValueError(f"{own.size} scores and {lengths.size} lengths don't fit a curve of shape {curve.shape}")
    if lengths.size < 2 or not (lengths[0] > 0 and (np.diff(lengths) > 0).all()):
        raise ValueError(f"the lengths of training are {list(factors)}; expected at least two, positive and rising")
    gaps = own[:, None] - curve
    q, beyond = _first_crossing(gaps.mean(axis=0), lengths)
    if own.size < 2:
        return EquivalentSteps(q, beyond, np.nan, "", np.nan, "")
    accepted, somewhere_better = _accepted(gaps, lengths, confidence)
    if not beyond:
        accepted.append(q)  # the gap is zero there, and rounding must not say otherwise
    below = lengths[0] in accepted or gaps[:, 0].mean() > 0
    above = lengths[-1] in accepted or not somewhere_better
    if not accepted:  # rejected at all lengths, on one side: both ends lie beyond the same length
        return EquivalentSteps(q, beyond, q, beyond, q, beyond)
    low = float(lengths[0]) if below else min(accepted)
    high = float(lengths[-1]) if above else max(accepted)
    return EquivalentSteps(q, beyond, low, "below" if below else "", high, "above" if above else "")


def _first_crossing(gap: Floats, lengths: Floats) -> tuple[float, Beyond]:
    """Return the first length at which the mean gap, ``(k,)``, is not negative."""
    enough = np.flatnonzero(gap >= 0)
    if not enough.size:
        return float(lengths[-1]), "above"
    after = int(enough[0])
    if after == 0:
        return float(lengths[0]), "below"
    part = gap[after - 1] / (gap[after - 1] - gap[after])
    return _between(lengths, after - 1, part), ""


def _between(lengths: Floats, segment: int, part: float) -> float:
    """Return the length a fraction ``part`` into a segment, on a logarithmic axis."""
    return float(lengths[segment] * (lengths[segment + 1] / lengths[segment]) ** part)


def _accepted(gaps: Floats, lengths: Floats, confidence: float) -> tuple[list[float], bool]:
    """Invert the test: find the lengths at which a mean gap of zero is not rejected, for gaps of shape ``(n, k)``.

    Returns:
        The accepted ones of ``lengths`` with all ends of accepted intervals between them; and whether the curve is
        significantly better than the method at some length.
    """
    count = len(gaps)
    critical = float(stats.t.ppf(0.5 + confidence / 2, count - 1)) ** 2

    def rejection(gap: Floats) -> float:
        """Return a positive number if a mean gap of zero is rejected."""
        return float(count * gap.mean() ** 2 - critical * gap.var(ddof=1))

    accepted = [float(length) for length, gap in zip(lengths, gaps.T, strict=True) if rejection(gap) <= 0]
    looked_at = list(gaps.T)
    for segment, (start, end) in enumerate(zip(gaps.T[:-1], gaps.T[1:], strict=True)):
        step = end - start
        covariance = np.cov(start, step)
        quadratic = [
            count * step.mean() ** 2 - critical * covariance[1, 1],
            2 * (count * start.mean() * step.mean() - critical * covariance[0, 1]),
            count * start.mean() ** 2 - critical * covariance[0, 0],
        ]
        parts = [float(root.real) for root in np.roots(quadratic) if root.imag == 0 and 0 < root.real < 1]
        accepted += [_between(lengths, segment, part) for part in parts]
        # The sign does not change between two roots, so that one point decides.
        cuts = np.array([0.0, *sorted(parts), 1.0])
        looked_at += [start + part * step for part in (cuts[:-1] + cuts[1:]) / 2]
    return accepted, any(rejection(gap) > 0 and gap.mean() > 0 for gap in looked_at)


def chord_excess(curve: ArrayLike, factors: Sequence[float]) -> float:
    r"""Return by which factor interpolation on a chord can make *q* too large, at most, on a learning curve.

    Three neighbouring scores :math:`y_0 > y_1 > y_2`, at lengths that rise by the factor f, determine a power law with
    an offset. After u steps of the factor f it has gone the part :math:`(1 - r^u) / (1 - r)` of the way from
    :math:`y_0` to :math:`y_1`, with :math:`r = (y_1 - y_2) / (y_0 - y_1)`, while the chord has gone the part u. At the
    same score, the chord's *q* is larger by

    .. math:: f^{\max_u \left(\frac{1 - r^u}{1 - r} - u\right)}.

    It is the same for both segments of three lengths. The result is the largest of all threes.

    Args:
        curve: The mean scores of equal weighting on the scale of comparisons, ``(k,)``; lower is better.
        factors: The k lengths, each the same multiple of the one before.

    Returns:
        The factor. It is not-a-number if no three neighbours flatten (fall, and the second time by less).

    Raises:
        ValueError: The lengths do not rise by one factor.
    """
    drops = -np.diff(np.asarray(curve, dtype=float))
    ratios = np.divide(factors[1:], factors[:-1])
    if not (ratios > 1).all() or not np.allclose(ratios, ratios[0]):
        raise ValueError(f"the lengths of training are {list(factors)}; expected them to rise by one factor")
    excess = []
    for first, second in pairwise(drops):
        if 0 < second < first:
            r = second / first
            u = np.log((1 - r) / -np.log(r)) / np.log(r)
            excess.append(float(ratios[0] ** ((1 - r**u) / (1 - r) - u)))
    return max(excess, default=np.nan)


def equivalent_steps(
    tables: SuiteTables, equal_by_factor: Mapping[float, str], balancers: Sequence[str]
) -> pd.DataFrame:
    """Compute the equivalent steps of methods, over both sets of seeds.

    Args:
        tables: ``problems`` and ``scores`` are read.
        equal_by_factor: The labels of equal weighting by the length of its training, as a factor of the problem's
            steps. The factor 1 is equal weighting itself.
        balancers: The labels of the methods. Equal weighting itself may be among them; its *q* is 1.

    Returns:
        A frame of ``COLUMNS``, in the order of ``problems`` and ``balancers``: the values of `EquivalentSteps`, over
        ``seeds`` that the method and all lengths have. A problem on which a length has no scores has no rows; nor has a
        method without scores on a problem.
    """
    rows = []
    for problem in tables.problems["problem"]:
        (scores,) = pooled_scores(problem, tables)
        if not set(equal_by_factor.values()) <= set(scores.values):
            continue
        for balancer in balancers:
            found, seeds = _of_method(scores, equal_by_factor, balancer)
            if found is not None:
                rows.append({"problem": problem, "balancer": balancer, "seeds": seeds, **vars(found)})
    return pd.DataFrame(rows, columns=COLUMNS)


def _of_method(
    scores: PooledScores, equal_by_factor: Mapping[float, str], balancer: str
) -> tuple[EquivalentSteps | None, int]:
    """Return a method's equivalent steps on a problem, None if it has no scores, and the number of seeds."""
    factors = sorted(equal_by_factor)
    lengths = [equal_by_factor[factor] for factor in factors]
    if balancer not in scores.values:
        return None, 0
    seeds = scores.badness[list(dict.fromkeys([balancer, *lengths]))].dropna()
    if seeds.empty:
        return None, 0
    if balancer == equal_by_factor[1.0]:
        return SAME, len(seeds)
    own, curve = seeds[balancer].to_numpy(dtype=float), seeds[lengths].to_numpy(dtype=float)
    return match_steps(own, curve, factors), len(seeds)


def doubling(tables: SuiteTables, equal_by_factor: Mapping[float, str]) -> pd.DataFrame:
    """Tell what twice the steps buy equal weighting on each problem, over both sets of seeds.

    Returns:
        A frame of ``DOUBLING``, one row per problem that has both lengths: ``doubling`` compares equal weighting at
        twice the steps with equal weighting, with a 95 % interval from ``low`` to ``high``. ``converged`` is true if
        the estimate is an improvement of less than `CONVERGED`: of the ratio, or of the size of the mean score on the
        scale "difference".
    """
    rows = []
    for problem in tables.problems["problem"]:
        (scores,) = pooled_scores(problem, tables)
        once, twice = equal_by_factor[1.0], equal_by_factor[2.0]
        if not {once, twice} <= set(scores.values):
            continue
        found, gains = scores.against(twice, once), scores.gains(twice, once)
        size = float(scores.values.loc[gains.index, once].abs().mean())
        improvement = 1 - found.mean if scores.scale == "ratio" else float(gains.mean()) / size if size else 0.0
        row = {"problem": problem, "seeds": len(gains), "scale": scores.scale, "doubling": found.mean}
        rows.append({**row, "low": found.low, "high": found.high, "converged": improvement < CONVERGED})
    return pd.DataFrame(rows, columns=DOUBLING)
