"""Compare each task's metrics without balancing: a constant predictor, equal weighting, and the task trained alone."""

import numpy as np
import pandas as pd

from .roles import Roles
from .suite_tables import SuiteTables

COLUMNS = [
    *("problem", "task", "metric", "unit", "higher_is_better", "seeds"),
    *("constant", "equal", "equal_sd", "single_task", "single_task_sd"),
]
COUNTS = ["failed", "single_task_seeds", "single_task_failed"]
"""Further columns, which results folders of earlier versions lack."""


def baselines(tables: SuiteTables, roles: Roles) -> pd.DataFrame:
    """Return the means over seeds of each task's metrics, on the test split at the last checkpoint.

    Args:
        tables: ``runs``, ``scores``, ``constants`` and ``metrics`` are read.
        roles: Names equal weighting.

    Returns:
        A frame of ``COLUMNS`` and ``COUNTS``, one row per metric that belongs to a task, in the order of ``metrics``.
        A failed run has no metrics of single tasks, so the means are over the runs that did not fail: those of equal
        weighting over ``seeds`` seeds, beside ``failed`` runs, and those of the task alone over ``single_task_seeds``,
        beside ``single_task_failed``. The columns ``_sd`` are standard deviations over seeds. A value that was not
        measured is not-a-number.
    """
    scores, metrics = tables.scores, tables.metrics
    last = scores[(scores["checkpoint"] == "last") & (scores["split"] == "test")]
    equal = last[(last["phase"] == "reported") & (last["balancer"] == roles.equal)]
    alone = last[(last["phase"] == "baseline") & (last["balancer"] == last["task"])]
    constants = tables.constants[tables.constants["split"] == "test"]
    rows = metrics[metrics["task"].notna()].set_index(["problem", "metric"])
    for name, source in (("constant", constants), ("equal", equal), ("single_task", alone)):
        values = source.astype({"value": float}).groupby(["problem", "metric"])["value"]
        rows[name] = values.mean().reindex(rows.index)
        rows[f"{name}_sd"] = values.std().reindex(rows.index)
    for name, source in (("seeds", equal), ("single_task_seeds", alone)):
        rows[name] = source.groupby(["problem", "metric"])["value"].count().reindex(rows.index, fill_value=0)
    failed = tables.runs[tables.runs["status"] == "failed"]
    of_equal = failed[(failed["phase"] == "reported") & (failed["balancer"] == roles.equal)].groupby("problem").size()
    of_tasks = failed[failed["phase"] == "baseline"].groupby(["problem", "balancer"]).size()
    rows = rows.reset_index()
    rows["failed"] = [of_equal.get(problem, 0) for problem in rows["problem"]]
    rows["single_task_failed"] = [of_tasks.get(cell, 0) for cell in zip(rows["problem"], rows["task"], strict=True)]
    return rows.replace([np.inf, -np.inf], np.nan)[[*COLUMNS, *COUNTS]]
