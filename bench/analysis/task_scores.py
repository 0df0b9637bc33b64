"""Compare the methods task by task: each task's metrics under every method, and their change against equal weights."""

import numpy as np
import pandas as pd

from .intervals import compare, comparison_scale, summarise
from .roles import Roles

COLUMNS = [
    *("problem", "balancer", "task", "metric", "unit", "higher_is_better", "seeds", "mean"),
    *("scale", "relative", "low", "high", "verdict"),
]


def task_scores(scores: pd.DataFrame, metrics: pd.DataFrame, roles: Roles, ranking: bool) -> pd.DataFrame:
    """Return every method's metrics of single tasks, on the test split at the last checkpoint.

    Args:
        scores: The scores table; the rows of reported runs are read.
        metrics: ``problem``, ``metric``, ``task``, ``unit``, ``higher_is_better``.
        roles: Names equal weighting, and gives the order of the methods.
        ranking: Whether there are verdicts, as in the leaderboard.

    Returns:
        A frame of ``COLUMNS``, one row per metric that belongs to a task and method, in the order of ``metrics`` and
        then of the suite. ``mean``, geometric where ``scale`` is "ratio", is over the ``seeds`` that have a finite
        value; a run that failed has none. ``relative``, ``low``, ``high`` and ``verdict`` compare the method with equal
        weighting, seed by seed, on ``scale`` (see `bench.analysis.intervals`). They are not corrected for the number of
        tasks. There is no verdict where the method or equal weighting lacks a seed.
    """
    last = scores[
        (scores["phase"] == "reported") & (scores["split"] == "test") & (scores["checkpoint"] == "last")
    ].astype({"value": float})
    rows = []
    for _, metric in metrics[metrics["task"].notna()].iterrows():
        of_metric = last[(last["problem"] == metric["problem"]) & (last["metric"] == metric["metric"])]
        values = of_metric.pivot(index="seed", columns="balancer", values="value")
        values = values.where(np.isfinite(values))
        higher = bool(metric["higher_is_better"])
        scale = comparison_scale(of_metric["value"][np.isfinite(of_metric["value"])], higher)
        for label in (label for label in roles.by_label if label in values):
            own = values[label].dropna()
            facts = metric[["problem", "task", "metric", "unit", "higher_is_better"]].to_dict()
            row = {**facts, "balancer": label, "seeds": len(own), "mean": summarise(own, scale).mean, "scale": scale}
            row |= {"relative": np.nan, "low": np.nan, "high": np.nan, "verdict": ""}
            if roles.equal in values and label != roles.equal:
                pairs = values[[label, roles.equal]].dropna()
                found = compare(pairs[label].tolist(), pairs[roles.equal].tolist(), higher, scale)
                whole = len(pairs) == len(values)
                row |= {"relative": found.mean, "low": found.low, "high": found.high}
                row["verdict"] = found.verdict if ranking and whole else ""
            rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)
