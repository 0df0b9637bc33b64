"""Tell whether a method pays: whether it gives more than the same time spent on longer training with equal weights.

A step of the method costs c steps of equal weighting. In the time that the method takes, equal weighting could train c
times the steps; to match the method's score, it has to train q times the steps. The method pays if q / c is above 1. If
it is below 1, training for longer with equal weights reaches the same score sooner.
"""

import numpy as np
import pandas as pd

from .suite_tables import SuiteTables

COLUMNS = [
    *("problem", "balancer", "q", "beyond", "q_low", "q_low_beyond", "q_high", "q_high_beyond"),
    *("cost", "cost_low", "cost_high", "q_per_cost", "low", "high", "verdict"),
]
QUANTITIES = {
    **{"low": "q_low", "low_beyond": "q_low_beyond", "high": "q_high", "high_beyond": "q_high_beyond"},
    **{"ratio_to_equal": "cost", "ratio_low": "cost_low", "ratio_high": "cost_high"},
}
"""Columns of the equivalent steps and of the costs, and their names here."""


def paying_methods(steps: pd.DataFrame, tables: SuiteTables) -> pd.DataFrame:
    """Divide the equivalent steps of each method by the cost of its step.

    Args:
        steps: The table that `equivalent_steps` returns.
        tables: ``costs`` is read: whole steps on the CPU.

    Returns:
        A frame of ``COLUMNS``, one row per row of ``steps`` and in its order.

        - ``q`` with its interval and flags are those of ``steps``.
        - ``cost`` is the time of a step over the time of a step of equal weighting, with its interval; not-a-number if
          it was not measured.
        - ``q_per_cost`` is their ratio. ``low`` is the lowest q over the highest cost, and ``high`` the highest q over
          the lowest cost. Both parts are 95 % intervals. The ratio's coverage is at least 90 % whatever the dependence
          between the two, and at least 95 % if their estimates are jointly normal. The interval of the cost is over
          rounds of timing on one machine; other machines may differ by more. The flags of q are those of these numbers
          too: a ratio whose q is "above" is at least that large.
        - ``verdict`` is "pays" if the interval lies above 1, "train longer" if it lies below 1, else "not settled". A
          lower end that is flagged "below" bounds nothing, and neither does an upper end that is flagged "above".
          The verdict is empty without an interval of q or a cost.

    Raises:
        ValueError: The costs of a method on a problem were measured more than once.
    """
    costs = tables.costs[(tables.costs["part"] == "step") & (tables.costs["device"] == "cpu")]
    costs = costs[["problem", "balancer", "ratio_to_equal", "ratio_low", "ratio_high"]]
    if costs.duplicated(["problem", "balancer"]).any():
        raise ValueError("the costs have more than one row for the step of a balancer on a problem on the CPU")
    table = steps.merge(costs, on=["problem", "balancer"], how="left", validate="one_to_one").rename(columns=QUANTITIES)
    numbers = ["q", "q_low", "q_high", "cost", "cost_low", "cost_high"]
    table = table.astype(dict.fromkeys(numbers, float))
    table["q_per_cost"] = table["q"] / table["cost"]
    table["low"] = table["q_low"] / table["cost_high"]
    table["high"] = table["q_high"] / table["cost_low"]
    missing = table["low"].isna() | table["high"].isna()
    pays = (table["low"] > 1) & (table["q_low_beyond"] != "below")
    longer = (table["high"] < 1) & (table["q_high_beyond"] != "above")
    table["verdict"] = np.select([missing, pays, longer], ["", "pays", "train longer"], "not settled")
    return table[COLUMNS]
