"""The tables of a suite that the analysis reads, as one object, and their columns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import pandas as pd

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "problems": (
        *("problem", "name", "summary", "num_tasks", "tasks", "samples"),
        *("primary", "higher_is_better", "unit", "steps", "batch_size", "control"),
    ),
    "metrics": ("problem", "metric", "task", "unit", "higher_is_better"),
    "runs": ("key", "problem", "balancer", "phase", "lr", "seed", "status", "reason", "steps"),
    "scores": (
        *("key", "problem", "balancer", "phase", "lr", "seed"),
        *("checkpoint", "split", "metric", "task", "value", "imputed"),
    ),
    "curves": ("key", "problem", "balancer", "phase", "lr", "seed", "step", "metric", "task", "value"),
    "constants": ("problem", "seed", "split", "metric", "value"),
    "selection": ("problem", "balancer", "lr", "mean_validation_score", "chosen", "grid_edge"),
    "retuning": ("problem", "balancer", "lr", "mean_validation_score", "chosen", "grid_edge"),
    "costs": (
        *("problem", "balancer", "device", "threads", "part", "median_ms", "q25_ms", "q75_ms"),
        *("ratio_to_equal", "ratio_low", "ratio_high", "flops", "operator_calls", "peak_bytes"),
    ),
}
"""The columns that each table has at least, by the table's name."""


def empty_table(name: str) -> pd.DataFrame:
    """Return the table ``name`` without rows."""
    return pd.DataFrame(columns=list(COLUMNS[name]))


@dataclass(frozen=True)
class SuiteTables:
    """The tables of a suite that all derived tables are made from. A table that is not given is empty.

    The columns of each table are in `COLUMNS`. In all of them ``problem`` and ``balancer`` are labels of the suite.

    Attributes:
        problems: One row per problem, in the suite's order. ``primary`` names the metric by which methods are compared,
            ``higher_is_better`` gives its direction, and ``control`` is true of a problem on which there is nothing to
            balance.
        metrics: One row per metric of a problem. ``task`` is missing for a metric that belongs to no single task.
        runs: One row per run. ``phase`` is the run's purpose: "tuning", "reported", "repeated", "baseline", "front" or
            "retuning"; runs of the last are the table ``retuning``'s, and in no other table. ``status`` is "ok" or
            "failed". In the phase "baseline", ``balancer`` names the task trained alone.
        scores: One row per run, ``checkpoint`` ("last" or "best"), ``split`` ("validation" or "test") and metric. The
            primary scores of failed runs are imputed, see `bench.analysis.impute_failures`; ``imputed`` marks them.
        curves: One row per run, evaluation and metric, on the validation split.
        constants: The metrics of the constant predictors, one row per problem, seed, split and metric. A results folder
            does not keep this table.
        selection: One row per problem, balancer and learning rate that was tried; ``chosen`` marks the best. Empty for
            a suite that tunes nothing. ``origin``, if there, says why a rate was tried: "grid" for one that all methods
            tried, "finer" for one near the method's best, "trial" for one that belongs to searched weights, "around"
            for one near another method's best.
        retuning: The same for the rates that the repeated runs chose from. Empty if they have the reported runs' rates.
        costs: One row per problem, balancer, device and ``part`` of a training step ("step" is the whole). Empty for a
            suite that times nothing.
    """

    problems: pd.DataFrame = field(default_factory=partial(empty_table, "problems"))
    metrics: pd.DataFrame = field(default_factory=partial(empty_table, "metrics"))
    runs: pd.DataFrame = field(default_factory=partial(empty_table, "runs"))
    scores: pd.DataFrame = field(default_factory=partial(empty_table, "scores"))
    curves: pd.DataFrame = field(default_factory=partial(empty_table, "curves"))
    constants: pd.DataFrame = field(default_factory=partial(empty_table, "constants"))
    selection: pd.DataFrame = field(default_factory=partial(empty_table, "selection"))
    retuning: pd.DataFrame = field(default_factory=partial(empty_table, "retuning"))
    costs: pd.DataFrame = field(default_factory=partial(empty_table, "costs"))

    @property
    def step_costs(self) -> pd.DataFrame:
        """The rows of ``costs`` about whole steps on the device that was measured first."""
        if self.costs.empty:
            return self.costs
        on_first_device = self.costs["device"] == self.costs["device"].iloc[0]
        rows: pd.DataFrame = self.costs[on_first_device & (self.costs["part"] == "step")]
        return rows
