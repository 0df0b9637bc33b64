r"""The front of static weights, and whether a method lies beyond it.

Static weightings trade one task for another. Those of them that no other one equals or beats in every task are their
front, and a method is of use where it reaches what no point of the front does. How far beyond it lies is the unary
epsilon indicator of Zitzler, Thiele, Laumanns, Fonseca and Grunert da Fonseca, "Performance assessment of
multiobjective optimizers: an analysis and review", IEEE Transactions on Evolutionary Computation 7(2), 2003: the
smallest over the front's points p of the largest over the tasks i of the method's improvement on that point,

.. math:: \varepsilon = \min_p \max_i \mu_{pi},

positive where every point is worse than the method in some task. :math:`\mu_{pi}` is the mean over all seeds that there
could be of the improvement in task i on point p: the logarithm of the ratio of the two metrics where all are positive
(the multiplicative indicator), else their difference over the front's mean size of the metric (the additive one).

The indicator of a few seeds' means is biased: noise makes a maximum over tasks too large, and a minimum over points too
small, and the indicator seed by seed stays so however many seeds there are. The interval therefore is not one of
indicators but is made of the t-intervals of all :math:`\mu_{pi}`, paired by seed. Its lower end is the indicator of
their lower ends, each at a confidence corrected for the number of tasks that may be the largest; its upper end is that
of their upper ends, corrected for the number of points that may be the smallest. May be: by no more than two standard
errors behind, as in Andrews and Soares, "Inference for Parameters Defined by Moment Inequalities Using Generalized
Moment Selection", Econometrica 78(1), 2010. So it covers :math:`\varepsilon` in 95 % of cases where one task of one
point decides, and in more where several are close.
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
CLOSE = 2.0
"""By so many standard errors a task or a point may be behind another to be taken into account."""
POINTS = ["problem", "balancer", "lr", "task", "metric", "higher_is_better", "validation"]
BEYOND = ["problem", "balancer", "seeds", "improvement", "low", "high", "nearest", "verdict"]

Reached = Literal["beyond", "not beyond", "not settled", ""]
Floats = NDArray[np.float64]


def nondominated(points: Floats) -> NDArray[np.bool_]:
    """Which of ``points``, ``(n, T)``, lower is better, none of the others equals or beats in every task.

    Of equal ones, all or none.
    """
    as_good = (points[:, None] <= points[None]).all(axis=2)
    better = (points[:, None] < points[None]).any(axis=2)
    return np.asarray(~(as_good & better).any(axis=0))


def spread(points: Floats, count: int) -> list[int]:
    """The places of at most ``count`` of ``points``, ``(n, T)``, lower is better, spread evenly, by the first task.

    The best in each task are taken first, then each time the one that is farthest from all that were taken; distances
    are Euclidean after each task was scaled to between 0 and 1.
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
    """The front of the tuning runs of static weights on each problem, at most `MOST_POINTS` of its points.

    Args:
        scores: The scores table.
        metrics: ``problem``, ``metric``, ``task``, ``higher_is_better``; a task's first metric is its axis.
        balancer: The label of the static weights whose trials these are, told apart by their learning rates.

    Returns:
        ``problem``, ``balancer``, ``lr``, ``task``, ``metric``, ``higher_is_better``, ``validation`` (the mean over
        the tuning seeds at the last checkpoint), point by point. Trials of which a run failed are in no front, and
        problems with fewer than two tasks that have metrics have none.
    """
    axes = _axes(metrics)
    rows = _last(scores, "tuning", "validation").merge(axes, on=["problem", "metric"], validate="many_to_one")
    rows = rows[rows["balancer"] == balancer]
    found = []
    for problem, of_problem in rows.groupby("problem", sort=False):
        mine = axes[axes["problem"] == problem]
        means = of_problem.groupby(["lr", "metric"])["value"].agg(_mean).unstack("metric")
        table = means.reindex(columns=list(mine["metric"])).astype(float)
        table = table.loc[np.isfinite(table.to_numpy()).all(axis=1)]
        if len(mine) < 2 or table.empty:
            continue
        cost = table.to_numpy() * np.where(mine["higher_is_better"], -1.0, 1.0)
        front = np.flatnonzero(nondominated(cost))
        for place in front[spread(cost[front], MOST_POINTS)]:
            point = mine.assign(balancer=balancer, lr=table.index[place], validation=table.to_numpy()[place])
            found.append(point[POINTS])
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=POINTS)


def improvements(method: Floats, front: Floats, higher_is_better: Sequence[bool]) -> Floats:
    """How much better a method is than each point, by task and seed: ``(P, T, seeds)``, positive is better.

    Args:
        method: ``(T, seeds)``, the tasks' metrics.
        front: ``(P, T, seeds)``, those of its points.
        higher_is_better: of each task.
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
    """How far beyond a front a method lies, and the place of the point that it is least beyond."""

    improvement: Estimate
    nearest: int
    verdict: Reached


def beyond_front(improvements: Floats) -> Distance:
    """The epsilon indicator of ``improvements``, ``(P, T, seeds)``, with its 95 % interval; see the top of the file.

    A method is beyond the front where the whole interval is above zero, and not beyond where none of it is.
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
    return np.asarray(behind <= CLOSE * np.hypot(errors, others))


def _quantile(count: NDArray[np.int_], seeds: int) -> Floats:
    """Student's quantile of one end of an interval, corrected for ``count`` of them."""
    return np.asarray(stats.t.ppf(1 - (1 - CONFIDENCE) / 2 / count, seeds - 1))


def beyond(scores: pd.DataFrame, metrics: pd.DataFrame, balancers: Sequence[str]) -> pd.DataFrame:
    """How far beyond the front of static weights each method lies, on the test split at the last checkpoint.

    Args:
        scores: The scores table; the front's points are its rows of phase "front".
        metrics: as for `front_points`.
        balancers: the labels of the methods, in their order.

    Returns:
        One row per problem that has a front and balancer: ``seeds``, ``improvement`` with ``low`` and ``high`` (a
        tenth is about ten percent), ``nearest`` (the point it is least beyond) and ``verdict``. A point that failed on
        a seed is none; a method that did is not beyond.
    """
    axes = _axes(metrics)
    front = _last(scores, "front", "test").merge(axes, on=["problem", "metric"], validate="many_to_one")
    ours = _last(scores, "reported", "test").merge(axes, on=["problem", "metric"], validate="many_to_one")
    rows = []
    for problem, of_problem in front.groupby("problem", sort=False):
        mine = axes[axes["problem"] == problem]
        points = _arrays(of_problem, mine)
        points = {label: values for label, values in points.items() if np.isfinite(values).all()}
        methods = _arrays(ours[ours["problem"] == problem], mine)
        for label in (label for label in balancers if label in methods):
            values = methods[label]
            row = {"problem": problem, "balancer": label, "seeds": values.shape[1], "improvement": np.nan}
            row |= {"low": np.nan, "high": np.nan, "nearest": "", "verdict": ""}
            if not np.isfinite(values).all():
                row["verdict"] = "not beyond"
            elif points:
                better = improvements(values, np.stack(list(points.values())), mine["higher_is_better"].tolist())
                found = beyond_front(better)
                row |= {"improvement": found.improvement.mean, "low": found.improvement.low}
                row |= {"high": found.improvement.high, "nearest": list(points)[found.nearest]}
                row["verdict"] = found.verdict
            rows.append(row)
    return pd.DataFrame(rows, columns=BEYOND)


def _axes(metrics: pd.DataFrame) -> pd.DataFrame:
    """The first metric of each task."""
    of_tasks = metrics[metrics["task"].notna()].drop_duplicates(["problem", "task"])
    return of_tasks[["problem", "task", "metric", "higher_is_better"]]


def _last(scores: pd.DataFrame, phase: str, split: str) -> pd.DataFrame:
    """The last checkpoints' scores; what was imputed for a failed run is not-a-number again."""
    rows = scores[(scores["phase"] == phase) & (scores["checkpoint"] == "last") & (scores["split"] == split)]
    rows = rows.assign(value=rows["value"].astype(float).mask(rows["imputed"].astype(bool)))
    return rows[["problem", "balancer", "lr", "seed", "metric", "value"]]


def _arrays(rows: pd.DataFrame, axes: pd.DataFrame) -> dict[str, Floats]:
    """The values of one problem, ``(T, seeds)``, by balancer."""
    return {
        str(label): mine.pivot(index="metric", columns="seed", values="value").loc[axes["metric"]].to_numpy(float)
        for label, mine in rows.groupby("balancer", sort=False)
    }


def _mean(values: pd.Series) -> float:
    """Not a number as soon as one value is."""
    return float(values.to_numpy(dtype=float).mean())
