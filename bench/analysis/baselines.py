"""What each task's metrics are without balancing: of a constant, of equal weighting, of the task trained alone."""

import numpy as np
import pandas as pd

COLUMNS = [
    *("problem", "task", "metric", "unit", "higher_is_better", "seeds"),
    *("constant", "equal", "equal_sd", "single_task", "single_task_sd"),
]


def baselines(scores: pd.DataFrame, constants: pd.DataFrame, metrics: pd.DataFrame, equal: str | None) -> pd.DataFrame:
    """Means over seeds on the test split, at the last checkpoint.

    Args:
        scores: The scores table; its rows of phase "baseline" have the task that was trained alone as ``balancer``.
        constants: The constant predictor's metrics: ``problem``, ``seed``, ``split``, ``metric``, ``value``.
        metrics: ``problem``, ``metric``, ``task``, ``unit``, ``higher_is_better``.
        equal: The label of equal weighting, None where there is none.

    Returns:
        A frame of ``COLUMNS``, a row per metric that belongs to a task, in the order of ``metrics``. ``seeds`` counts
        those of equal weighting; ``_sd`` are standard deviations over seeds. What there is none of is not-a-number.
    """
    last = scores[(scores["checkpoint"] == "last") & (scores["split"] == "test")]
    ours = last[(last["phase"] == "reported") & (last["balancer"] == equal)]
    alone = last[(last["phase"] == "baseline") & (last["balancer"] == last["task"])]
    constants = constants[constants["split"] == "test"]
    rows = metrics[metrics["task"].notna()].set_index(["problem", "metric"])
    for name, source in (("constant", constants), ("equal", ours), ("single_task", alone)):
        values = source.astype({"value": float}).groupby(["problem", "metric"])["value"]
        rows[name] = values.mean()
        rows[f"{name}_sd"] = values.std()
    rows["seeds"] = ours.groupby(["problem", "metric"])["seed"].nunique()
    return rows.reset_index().replace([np.inf, -np.inf], np.nan)[COLUMNS]
