r"""Find the front of static weights, and tell whether a method lies beyond it.

Static weightings trade one task for another. The front consists of those that no other weighting equals or beats in
every task. A method is useful if it reaches what no point of the front reaches. How far it lies beyond the front is
measured by the unary epsilon indicator of Zitzler, Thiele, Laumanns, Fonseca and Grunert da Fonseca, "Performance
assessment of multiobjective optimizers: an analysis and review", IEEE Transactions on Evolutionary Computation 7(2),
2003. For each point p of the front, take the method's largest improvement on that point over the tasks i; the indicator
is the smallest of these over the points,

.. math:: \varepsilon = \min_p \max_i \mu_{pi}.

It is positive if every point is worse than the method in some task. :math:`\mu_{pi}` is the expected improvement in
task i on point p, over seeds: the logarithm of the ratio of the two metrics if all values are positive (the
multiplicative indicator), else their difference over the metric's mean size on the front (the additive indicator).

The indicator of the means over a few seeds is biased: noise makes a maximum over tasks too large, and a minimum over
points too small. Computing the indicator seed by seed keeps that bias however many seeds there are. The interval is
therefore made from the t-intervals of all :math:`\mu_{pi}`, paired by seed. Its lower end is the indicator of their
lower ends, each at a confidence corrected for the number of tasks that may have the largest improvement. Its upper end
is the indicator of their upper ends, corrected for the number of points that may have the smallest. A task or point
counts among these if it is at most two standard errors behind, as in Andrews and Soares, "Inference for Parameters
Defined by Moment Inequalities Using Generalized Moment Selection", Econometrica 78(1), 2010. The interval covers
:math:`\varepsilon` in 95 % of cases if one task of one point decides, and in more if several are close.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from .intervals import CONFIDENCE, Estimate

MOST_POINTS = 8
"""Maximum number of points of a front."""
CLOSE = 2.0
"""A task or a point counts if it is at most this many standard errors behind the one that decides."""
POINTS = ["problem", "balancer", "lr", "task", "metric", "higher_is_better", "validation"]
BEYOND = ["problem", "balancer", "seeds", "improvement", "low", "high", "nearest", "verdict"]

Reached = Literal["beyond", "not beyond", "not settled", ""]
Floats = NDArray[np.float64]


def nondominated(points: Floats) -> NDArray[np.bool_]:
    """Return which of ``points``, ``(n, T)``, are on their front; lower is better.

    A point is on the front if no other point beats it in one task and is at least as good in all others. Equal points
    are all on the front or all off it.
    """
    as_good = (points[:, None] <= points[None]).all(axis=2)
    better = (points[:, None] < points[None]).any(axis=2)
    return np.asarray(~(as_good & better).any(axis=0))


def spread(points: Floats, count: int) -> list[int]:
    """Choose at most ``count`` of ``points``, ``(n, T)``, that are spread evenly; lower is better.

    The best points of each task are taken first, then each time the point that is farthest from all points taken so
    far. Distances are Euclidean, after scaling each task to between 0 and 1.

    Returns:
        The indices of the points, sorted by the first task.
    """
    width = np.ptp(points, axis=0)
    scaled = (points - points.min(axis=0)) / np.where(width > 0, width, 1.0)
    ends = list(dict.fromkeys(np.argmin(points, axis=0).tolist()))
    taken = ends[:1]
    while len(taken) < min(count, len(points)):
        distances = np.linalg.norm(scaled[:, None] - scaled[None, taken], axis=2).min(axis=1)
        left = [end for end in ends if end not in taken] or [i for i in range(len(points)) if i not in taken]
        taken.append(max(left, key=lambda i: distances[i]))
    return sorted(taken, key=lambda i: tuple(points[i]))


def front_points(scores: pd.DataFrame, metrics: pd.DataFrame, balancer: str) -> pd.DataFrame:
    """Return the front of the tuning runs of static weights on each problem, at most `MOST_POINTS` of its points.

    Args:
        scores: The scores table.
        metrics: ``problem``, ``metric``, ``task``, ``higher_is_better``. A task's first metric is its axis.
        balancer: The label of the static weights that the suite searches for. Each learning rate stands for a trial.

    Returns:
        One row per point and task: ``problem``, ``balancer``, ``lr``, ``task``, ``metric``, ``higher_is_better``,
        ``validation`` (the mean over the tuning seeds at the last checkpoint). A trial with a failed run is on no
        front. A problem with fewer than two tasks that have metrics has no front.
    """
    axes = _axes(metrics)
    rows = _last(scores, "tuning", "validation").merge(axes, on=["problem", "metric"], validate="many_to_one")
    rows = rows[rows["balancer"] == balancer]
    found = []
    for problem, of_problem in rows.groupby("problem", sort=False):
        own_axes = axes[axes["problem"] == problem]
        means = of_problem.groupby(["lr", "metric"])["value"].agg(_mean).unstack("metric")
        table = means.reindex(columns=list(own_axes["metric"])).astype(float)
        table = table.loc[np.isfinite(table.to_numpy()).all(axis=1)]
        if len(own_axes) < 2 or table.empty:
            continue
        cost = table.to_numpy() * np.where(own_axes["higher_is_better"], -1.0, 1.0)
        front = np.flatnonzero(nondominated(cost))
        for place in front[spread(cost[front], MOST_POINTS)]:
            point = own_axes.assign(balancer=balancer, lr=table.index[place], validation=table.to_numpy()[place])
            found.append(point[POINTS])
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=POINTS)


def improvements(method: Floats, front: Floats, higher_is_better: Sequence[bool]) -> Floats:
    """Return how much better a method is than each point, by task and seed: ``(P, T, seeds)``, positive is better.

    Args:
        method: ``(T, seeds)``, the method's metrics of each task.
        front: ``(P, T, seeds)``, the metrics of the front's points.
        higher_is_better: The direction of each task's metric.
    """
    found = np.empty_like(front)
    for task, higher in enumerate(higher_is_better):
        ours, theirs = method[task], front[:, task]
        if (ours > 0).all() and (theirs > 0).all():
            found[:, task] = np.log(ours / theirs)
        else:
            size = np.abs(theirs).mean()
            found[:, task] = (ours - theirs) / (size if size > 0 else 1.0)
        found[:, task] *= 1.0 if higher else -1.0
    return found


@dataclass(frozen=True)
class Distance:
    """A method's distance beyond a front, and the index of the point that it is least beyond."""

    improvement: Estimate
    nearest: int
    verdict: Reached


def beyond_front(improvements: Floats) -> Distance:
    """Return the epsilon indicator of ``improvements``, ``(P, T, seeds)``, with its 95 % interval.

    A method is beyond the front if the whole interval is above zero, and not beyond if no part of it is. See the top of
    the file for how the interval is made.
    """
    points, _, seeds = improvements.shape
    means = improvements.mean(axis=2)
    largest = means.max(axis=1)
    nearest = int(largest.argmin())
    if seeds < 2:
        return Distance(Estimate(float(largest[nearest]), np.nan, np.nan), nearest, "")
    errors = improvements.std(axis=2, ddof=1) / np.sqrt(seeds)
    every = np.arange(points)
    of_largest = errors[every, means.argmax(axis=1)]
    tasks = _close(largest[:, None] - means, errors, of_largest[:, None]).sum(axis=1)
    low = (means - _quantile(tasks, seeds)[:, None] * errors).max(axis=1).min()
    near = _close(largest - largest[nearest], of_largest, of_largest[nearest]).sum()
    high = (means + _quantile(near, seeds) * errors).max(axis=1).min()
    verdict: Reached = "beyond" if low > 0 else "not beyond" if high <= 0 else "not settled"
    return Distance(Estimate(float(largest[nearest]), float(low), float(high)), nearest, verdict)


def _close(behind: Floats, errors: Floats, others: Floats) -> NDArray[np.bool_]:
    """Return which distances ``behind`` are at most `CLOSE` standard errors of the difference of two means."""
    return np.asarray(behind <= CLOSE * np.hypot(errors, others))


def _quantile(count: NDArray[np.int_], seeds: int) -> Floats:
    """Return Student's quantile for one end of an interval, corrected for ``count`` simultaneous intervals."""
    return np.asarray(stats.t.ppf(1 - (1 - CONFIDENCE) / 2 / count, seeds - 1))


def beyond(scores: pd.DataFrame, metrics: pd.DataFrame, balancers: Sequence[str]) -> pd.DataFrame:
    """Compute how far beyond the front of static weights each method lies, on the test split at the last checkpoint.

    Args:
        scores: The scores table; the points of the front are its rows of phase "front".
        metrics: See `front_points`.
        balancers: The labels of the methods, in their order.

    Returns:
        A frame of ``BEYOND``, one row per balancer and problem that has a front: ``improvement`` with ``low`` and
        ``high`` (0.1 is about ten percent), ``nearest`` (the point that the method is least beyond) and ``verdict``. A
        point that failed on a seed is left out. A method that failed on a seed is not beyond.
    """
    axes = _axes(metrics)
    front = _last(scores, "front", "test").merge(axes, on=["problem", "metric"], validate="many_to_one")
    ours = _last(scores, "reported", "test").merge(axes, on=["problem", "metric"], validate="many_to_one")
    rows = []
    for problem, of_problem in front.groupby("problem", sort=False):
        own_axes = axes[axes["problem"] == problem]
        points = _arrays(of_problem, own_axes)
        points = {label: values for label, values in points.items() if np.isfinite(values).all()}
        methods = _arrays(ours[ours["problem"] == problem], own_axes)
        for label in (label for label in balancers if label in methods):
            values = methods[label]
            row = {"problem": problem, "balancer": label, "seeds": values.shape[1], "improvement": np.nan}
            row |= {"low": np.nan, "high": np.nan, "nearest": "", "verdict": ""}
            if not np.isfinite(values).all():
                row["verdict"] = "not beyond"
            elif points:
                better = improvements(values, np.stack(list(points.values())), own_axes["higher_is_better"].tolist())
                found = beyond_front(better)
                row |= {"improvement": found.improvement.mean, "low": found.improvement.low}
                row |= {"high": found.improvement.high, "nearest": list(points)[found.nearest]}
                row["verdict"] = found.verdict
            rows.append(row)
    return pd.DataFrame(rows, columns=BEYOND)


def _axes(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return the first metric of each task."""
    of_tasks = metrics[metrics["task"].notna()].drop_duplicates(["problem", "task"])
    return of_tasks[["problem", "task", "metric", "higher_is_better"]]


def _last(scores: pd.DataFrame, phase: str, split: str) -> pd.DataFrame:
    """Return the scores of the last checkpoints; imputed scores of failed runs become not-a-number again."""
    rows = scores[(scores["phase"] == phase) & (scores["checkpoint"] == "last") & (scores["split"] == split)]
    rows = rows.assign(value=rows["value"].astype(float).mask(rows["imputed"].astype(bool)))
    return rows[["problem", "balancer", "lr", "seed", "metric", "value"]]


def _arrays(rows: pd.DataFrame, axes: pd.DataFrame) -> dict[str, Floats]:
    """Return the values of one problem, ``(T, seeds)``, by balancer."""
    return {
        str(label): mine.pivot(index="metric", columns="seed", values="value").loc[axes["metric"]].to_numpy(float)
        for label, mine in rows.groupby("balancer", sort=False)
    }


def _mean(values: pd.Series) -> float:
    """Return the mean, not-a-number if a value is; pandas' own mean would leave that value out."""
    return float(values.to_numpy(dtype=float).mean())
