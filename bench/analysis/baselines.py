"""Compare each task's metrics without balancing: a constant predictor, equal weighting, and the task trained alone."""

import numpy as np
import pandas as pd

from .roles import Roles
from .suite_tables import SuiteTables

COLUMNS = [
    *("problem", "task", "metric", "unit", "higher_is_better", "seeds"),
    *("constant", "equal", "equal_sd", "single_task", "single_task_sd"),
]


def baselines(tables: SuiteTables, roles: Roles) -> pd.DataFrame:
    """Return the means over seeds of each task's metrics, on the test split at the last checkpoint.

    Args:
        tables: ``scores``, ``constants`` and ``metrics`` are read.
        roles: Names equal weighting.

    Returns:
        A frame of ``COLUMNS``, one row per metric that belongs to a task, in the order of ``metrics``. ``seeds`` counts
        the seeds of equal weighting; the columns ``_sd`` are standard deviations over seeds. A value that was not
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
    rows["seeds"] = equal.groupby(["problem", "metric"])["seed"].nunique().reindex(rows.index)
    return rows.reset_index().replace([np.inf, -np.inf], np.nan)[COLUMNS]
