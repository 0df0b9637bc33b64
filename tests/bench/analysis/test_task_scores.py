"""Test the comparison of methods task by task."""

import numpy as np
import pandas as pd
import pytest

from bench.analysis import Roles, compare, task_scores
from bench.analysis.intervals import summarise

METRICS = pd.DataFrame(
    [
        ("p", "error", None, "", False),
        ("p", "loss of a", "a", "m", False),
        ("p", "accuracy of b", "b", "", True),
    ],
    columns=["problem", "metric", "task", "unit", "higher_is_better"],
)
ROLES = Roles("equal", None, None, None, dict.fromkeys(("equal", "gradnorm"), "exploratory"))
LOSS = {"equal": [1.0, 1.1, 0.9], "gradnorm": [0.5, 0.56, 0.44]}
ACCURACY = {"equal": [0.9, 0.8, 0.85], "gradnorm": [0.7, 0.6, 0.66]}


def scores(**changes: float) -> pd.DataFrame:
    """Return a table of scores with these metrics; ``changes`` replaces GradNorm's loss of a by seed."""
    rows = []
    for metric, task, values in (("loss of a", "a", LOSS), ("accuracy of b", "b", ACCURACY), ("error", None, LOSS)):
        for balancer, of_balancer in values.items():
            for seed, value in enumerate(of_balancer):
                about = {"problem": "p", "balancer": balancer, "phase": "reported", "seed": seed, "metric": metric}
                about |= {"task": task, "split": "test", "checkpoint": "last", "value": value}
                rows.append(about)
                for other in ({"split": "validation"}, {"checkpoint": "best"}, {"phase": "repeated"}):
                    rows.append({**about, **other, "value": 100.0})
    table = pd.DataFrame(rows)
    for seed, value in changes.items():
        place = (table["metric"] == "loss of a") & (table["balancer"] == "gradnorm") & (table["value"] < 100)
        table.loc[place & (table["seed"] == int(seed.removeprefix("seed"))), "value"] = value
    return table


def test_each_tasks_metric_is_compared_with_that_of_equal_weighting_seed_by_seed() -> None:
    found = task_scores(scores(), METRICS, ROLES, ranking=True)
    assert list(found["metric"]) == ["loss of a"] * 2 + ["accuracy of b"] * 2
    assert list(found["balancer"]) == ["equal", "gradnorm"] * 2
    loss, accuracy = (
        found[(found["metric"] == name) & (found["balancer"] == "gradnorm")].iloc[0] for name in METRICS["metric"][1:]
    )
    for row, values, higher, scale, verdict in (
        (loss, LOSS, False, "ratio", "better"),
        (accuracy, ACCURACY, True, "difference", "worse"),
    ):
        expected = compare(values["gradnorm"], values["equal"], higher, scale)
        assert tuple(row[["relative", "low", "high"]]) == (expected.mean, expected.low, expected.high)
        assert (row["scale"], row["verdict"], expected.verdict) == (scale, verdict, verdict)
        assert row["mean"] == pytest.approx(summarise(values["gradnorm"], scale).mean)
        assert row["seeds"] == 3
    of_equal = found[found["balancer"] == "equal"]
    assert of_equal["relative"].isna().all()
    assert (of_equal["verdict"] == "").all()


@pytest.mark.parametrize("lost", [float("nan"), float("inf")])
def test_a_run_without_a_finite_metric_takes_the_verdict_away(lost: float) -> None:
    found = task_scores(scores(seed1=lost), METRICS, ROLES, ranking=True).set_index(["metric", "balancer"])
    row = found.loc[("loss of a", "gradnorm")]
    assert (row["seeds"], row["verdict"]) == (2, "")
    assert row["mean"] == pytest.approx(np.sqrt(0.5 * 0.44))
    assert row["relative"] == pytest.approx(np.sqrt(0.5 / 1.0 * 0.44 / 0.9))
    assert found.loc[("accuracy of b", "gradnorm"), "verdict"] == "worse"


def test_defaults_get_no_verdict_and_without_equal_weighting_there_is_no_change() -> None:
    assert (task_scores(scores(), METRICS, ROLES, ranking=False)["verdict"] == "").all()
    alone = Roles(None, None, None, None, ROLES.by_label)
    found = task_scores(scores(), METRICS, alone, ranking=True)
    assert found["relative"].isna().all()
    assert found["mean"].notna().all()


def test_metrics_of_the_whole_problem_and_empty_tables_have_no_rows() -> None:
    assert task_scores(scores(), METRICS[:1], ROLES, ranking=True).empty
    assert task_scores(scores()[:0], METRICS, ROLES, ranking=True).empty
