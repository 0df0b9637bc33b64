"""Time-to-target: after how many steps, and at what cost, a method is as good as equal weighting in the end.

The target is the mean final validation score of tuned equal weighting. A run is there at the first evaluation at which
the mean of three evaluations that follow one another, it being the last of them, is at least as good; one that never
is, or that failed, is there after infinitely many steps. Of the seeds the median is taken, which is infinite where half
of them or more never get there. It is also given as a part of equal weighting's whole training, which ends at the
target by definition: as steps; as time, by what a step of the method costs over one of equal weighting done next to
it; and as floating-point operations. Equal weighting itself can miss its target: it is a mean, and the three
evaluations lag behind.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .intervals import median_interval
from .primary_metric import primary_rows

SMOOTHED = 3
"""So many evaluations are averaged."""
RELATIVE = ("of_steps", "of_seconds", "of_flops")
COLUMNS = [
    *("problem", "balancer", "target", "seeds", "reached", "steps", "steps_low", "steps_high", "seconds", "flops"),
    *(f"{part}{end}" for part in RELATIVE for end in ("", "_low", "_high")),
]


def steps_to_target(
    steps: NDArray[np.float64], values: NDArray[np.float64], target: float, higher_is_better: bool
) -> float:
    """The first of ``steps`` at which the mean of this and the two ``values`` before it reaches ``target``, or inf.

    Args:
        steps: ``(n,)``, rising.
        values: ``(n,)``, the run's scores at them; one that isn't finite reaches nothing.
    """
    if len(values) < SMOOTHED:
        return np.inf
    means = np.lib.stride_tricks.sliding_window_view(values, SMOOTHED).mean(axis=1)
    there = (means >= target) if higher_is_better else (means <= target)
    return float(steps[SMOOTHED - 1 :][there.argmax()]) if there.any() else np.inf


def time_to_target(
    curves: pd.DataFrame,
    scores: pd.DataFrame,
    runs: pd.DataFrame,
    problems: pd.DataFrame,
    costs: pd.DataFrame,
    baseline: str | None,
) -> pd.DataFrame:
    """How soon each method's reported runs reach the target, a row per problem and balancer.

    Args:
        curves, scores, runs, problems, costs: The tables of those names; ``scores`` with failures imputed, ``costs`` is
            of one device and may be empty.
        baseline: The label of equal weighting; without it there is no target.

    Returns:
        A frame of ``COLUMNS``. ``reached`` of the ``seeds`` are there. ``steps`` is the median, with a 95 % interval
        (see :func:`~bench.analysis.median_interval`), and ``seconds`` and ``flops`` what these steps cost, not-a-number
        where that wasn't measured. ``of_steps``, ``of_seconds`` and ``of_flops`` are the same over equal weighting's
        whole training; their intervals take the costs for known.
    """
    rows = primary_rows(curves[curves["phase"] == "reported"], problems)
    finals = scores[(scores["phase"] == "reported") & (scores["split"] == "validation")]
    finals = primary_rows(finals[finals["checkpoint"] == "last"], problems)
    failed = set(runs.loc[runs["status"] == "failed", "key"])
    length = problems.set_index("problem")["steps"]
    found = []
    for problem, of_problem in rows.groupby("problem", sort=False):
        equal = finals[(finals["problem"] == problem) & (finals["balancer"] == baseline)]
        target = float(equal["value"].astype(float).mean())
        if not np.isfinite(target):
            continue
        higher_is_better = bool(of_problem["higher_is_better"].iloc[0])
        for balancer, mine in of_problem.groupby("balancer", sort=False):
            reached = np.array(
                [
                    np.inf
                    if key in failed
                    else steps_to_target(*_curve(run), target=target, higher_is_better=higher_is_better)
                    for key, run in mine.groupby("key", sort=False)
                ]
            )
            row = {"problem": problem, "balancer": balancer, "target": target, "seeds": len(reached)}
            row |= {"reached": int(np.isfinite(reached).sum())}
            found.append(row | _costs(reached, float(length[problem]), _step(costs, problem, balancer, baseline)))
    return pd.DataFrame(found, columns=COLUMNS)


def _curve(run: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    run = run.sort_values("step")
    return run["step"].to_numpy(dtype=float), run["value"].to_numpy(dtype=float)


def _step(costs: pd.DataFrame, problem: object, balancer: object, baseline: str | None) -> dict[str, float]:
    """What a step costs: ``seconds``, ``flops``, and each over equal weighting's."""
    steps = costs[(costs["part"] == "step") & (costs["problem"] == problem)].set_index("balancer")
    columns = steps[["median_ms", "ratio_to_equal", "flops"]].astype(float).to_dict("index")
    mine, equal = columns.get(balancer), columns.get(baseline, {})
    if mine is None:
        return dict.fromkeys(("seconds", "of_seconds", "flops", "of_flops"), np.nan)
    return {
        "seconds": mine["median_ms"] / 1000,
        "of_seconds": mine["ratio_to_equal"],
        "flops": mine["flops"],
        "of_flops": mine["flops"] / equal.get("flops", np.nan),
    }


def _costs(reached: NDArray[np.float64], length: float, step: dict[str, float]) -> dict[str, float]:
    median = median_interval(reached)
    row = {"steps": median.mean, "steps_low": median.low, "steps_high": median.high}
    row |= {"seconds": median.mean * step["seconds"], "flops": median.mean * step["flops"]}
    for part, ratio in zip(RELATIVE, (1.0, step["of_seconds"], step["of_flops"]), strict=True):
        ends = zip(("", "_low", "_high"), (median.mean, median.low, median.high), strict=True)
        row |= {f"{part}{end}": value / length * ratio for end, value in ends}
    return row
