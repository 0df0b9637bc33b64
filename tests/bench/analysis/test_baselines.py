"""The counts beside baselines say which runs their means are over."""

import numpy as np
import pandas as pd
import pytest

from bench.analysis import SuiteTables, baselines
from bench.analysis.roles import Roles

VALUES = {"even": [1.0, 2.0, np.nan, 4.0, 6.0], "t": [3.0, np.nan, np.nan, 5.0, 9.0]}
"""Scores of equal weighting and of the task alone by seed; the metrics of failed runs are not-a-number."""


def test_they_count_the_runs_that_the_means_are_over_and_those_that_failed() -> None:
    runs, scores = [], []
    for balancer, phase in (("even", "reported"), ("t", "baseline")):
        for seed, value in enumerate(VALUES[balancer]):
            run = {"problem": "p", "balancer": balancer, "phase": phase, "seed": seed}
            runs.append({**run, "status": "failed" if np.isnan(value) else "ok"})
            scores.append({**run, "checkpoint": "last", "split": "test", "metric": "m", "task": "t", "value": value})
    runs.append({"problem": "p", "balancer": "even", "phase": "repeated", "seed": 9, "status": "failed"})
    runs.append({"problem": "other", "balancer": "even", "phase": "reported", "seed": 9, "status": "failed"})
    facts = {"problem": ["p"], "task": ["t"], "metric": ["m"], "unit": [""], "higher_is_better": [False]}
    tables = SuiteTables(runs=pd.DataFrame(runs), scores=pd.DataFrame(scores), metrics=pd.DataFrame(facts))
    (row,) = baselines(tables, Roles("even", None, None, None, {})).to_dict("records")
    assert (row["seeds"], row["failed"]) == (4, 1)
    assert (row["single_task_seeds"], row["single_task_failed"]) == (3, 2)
    assert row["equal"] == pytest.approx((1 + 2 + 4 + 6) / row["seeds"])
    assert row["single_task"] == pytest.approx((3 + 5 + 9) / row["single_task_seeds"])


def test_a_metric_that_no_run_has_is_the_mean_of_no_seed() -> None:
    facts = {"problem": ["p"], "task": ["t"], "metric": ["m"], "unit": [""], "higher_is_better": [False]}
    (row,) = baselines(SuiteTables(metrics=pd.DataFrame(facts)), Roles("even", None, None, None, {})).to_dict("records")
    assert [row[name] for name in ("seeds", "failed", "single_task_seeds", "single_task_failed")] == [0, 0, 0, 0]
    assert np.isnan(row["equal"])
