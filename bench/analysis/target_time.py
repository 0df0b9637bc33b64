"""Compute time-to-target: how many steps, and how much time, a method needs to match equal weighting's final score.

The target is the mean final validation score of tuned equal weighting. A run reaches it at the first evaluation at
which the mean of three consecutive evaluations, the last of them being this one, is at least as good. A run that
never reaches it, or that failed, takes infinitely many steps. The median over seeds is infinite if half of the seeds
or more never reach the target.

The median is also given as a fraction of the whole training of equal weighting, which ends at the target by
definition. There are three such fractions: of steps; of time, where a step of the method counts with its cost over
that of a step of equal weighting measured next to it; and of floating-point operations. Equal weighting itself can
miss its target: the target is a mean over seeds, and the mean of three evaluations lags behind.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .intervals import median_estimate
from .primary_metric import primary_rows
from .roles import Roles
from .suite_tables import SuiteTables

SMOOTHED = 3
"""Number of consecutive evaluations that are averaged."""
RELATIVE = ("of_steps", "of_seconds", "of_flops")
"""The fractions of equal weighting's whole training."""
COLUMNS = [
    *("problem", "balancer", "target", "seeds", "reached", "steps", "steps_low", "steps_high", "seconds", "flops"),
    *(f"{part}{end}" for part in RELATIVE for end in ("", "_low", "_high")),
]


def steps_to_target(
    steps: NDArray[np.float64], values: NDArray[np.float64], target: float, higher_is_better: bool
) -> float:
    """Return the first step at which the mean of the last three values reaches ``target``; inf if there is none.

    Args:
        steps: ``(n,)``, rising.
        values: ``(n,)``, the run's scores at these steps. A mean that includes not-a-number never reaches the target.
    """
    if len(values) < SMOOTHED:
        return np.inf
    means = np.lib.stride_tricks.sliding_window_view(values, SMOOTHED).mean(axis=1)
    there = (means >= target) if higher_is_better else (means <= target)
    return float(steps[SMOOTHED - 1 :][there.argmax()]) if there.any() else np.inf


def time_to_target(tables: SuiteTables, roles: Roles) -> pd.DataFrame:
    """Compute how soon the reported runs of each method reach the target.

    Args:
        tables: ``curves``, ``scores``, ``runs``, ``problems`` and ``costs`` are read; ``costs`` may be empty, and only
            the device that was measured first counts.
        roles: Names equal weighting; without it there is no target, and no row.

    Returns:
        A frame of ``COLUMNS``, one row per problem and balancer. ``reached`` counts the ``seeds`` that reach the
        target. ``steps`` is the median with a 95 % interval (see :func:`~bench.analysis.median_estimate`);
        ``seconds`` and ``flops`` are the cost of that many steps, not-a-number if it was not measured. ``of_steps``,
        ``of_seconds`` and ``of_flops`` are the same as fractions of equal weighting's whole training; their intervals
        treat the costs as known.
    """
    problems, scores, equal = tables.problems, tables.scores, roles.equal
    rows = primary_rows(tables.curves[tables.curves["phase"] == "reported"], problems)
    finals = scores[(scores["phase"] == "reported") & (scores["split"] == "validation")]
    finals = primary_rows(finals[finals["checkpoint"] == "last"], problems)
    failed = set(tables.runs.loc[tables.runs["status"] == "failed", "key"])
    length = problems.set_index("problem")["steps"]
    found = []
    for problem, of_problem in rows.groupby("problem", sort=False):
        of_equal = finals[(finals["problem"] == problem) & (finals["balancer"] == equal)]
        target = float(of_equal["value"].astype(float).mean())
        if not np.isfinite(target):
            continue
        higher_is_better = bool(of_problem["higher_is_better"].iloc[0])
        for balancer, of_balancer in of_problem.groupby("balancer", sort=False):
            reached = np.array(
                [
                    np.inf
                    if key in failed
                    else steps_to_target(*_curve(run), target=target, higher_is_better=higher_is_better)
                    for key, run in of_balancer.groupby("key", sort=False)
                ]
            )
            row = {"problem": problem, "balancer": balancer, "target": target, "seeds": len(reached)}
            row |= {"reached": int(np.isfinite(reached).sum())}
            step = _step_cost(tables.step_costs, problem, balancer, equal)
            found.append(row | _until_target(reached, float(length[problem]), step))
    return pd.DataFrame(found, columns=COLUMNS)


def _curve(run: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the steps and the values of one run, in the order of steps."""
    run = run.sort_values("step")
    return run["step"].to_numpy(dtype=float), run["value"].to_numpy(dtype=float)


def _step_cost(costs: pd.DataFrame, problem: object, balancer: object, equal: str | None) -> dict[str, float]:
    """Return the cost of a step: ``seconds``, ``flops``, and each over that of equal weighting."""
    steps = costs[costs["problem"] == problem].set_index("balancer")
    columns = steps[["median_ms", "ratio_to_equal", "flops"]].astype(float).to_dict("index")
    own, of_equal = columns.get(balancer), columns.get(equal, {})
    if own is None:
        return dict.fromkeys(("seconds", "of_seconds", "flops", "of_flops"), np.nan)
    return {
        "seconds": own["median_ms"] / 1000,
        "of_seconds": 1.0 if balancer == equal else own["ratio_to_equal"],
        "flops": own["flops"],
        "of_flops": own["flops"] / of_equal.get("flops", np.nan),
    }


def _until_target(reached: NDArray[np.float64], length: float, step: dict[str, float]) -> dict[str, float]:
    """Return the columns about steps, seconds and floating-point operations.

    Args:
        reached: ``(seeds,)``, the steps at which each run reached the target.
        length: Steps of the whole training.
        step: The cost of a step, see `_step_cost`.
    """
    median = median_estimate(reached)
    row = {"steps": median.mean, "steps_low": median.low, "steps_high": median.high}
    row |= {"seconds": median.mean * step["seconds"], "flops": median.mean * step["flops"]}
    for part, ratio in zip(RELATIVE, (1.0, step["of_seconds"], step["of_flops"]), strict=True):
        ends = zip(("", "_low", "_high"), (median.mean, median.low, median.high), strict=True)
        row |= {f"{part}{end}": value / length * ratio for end, value in ends}
    return row
