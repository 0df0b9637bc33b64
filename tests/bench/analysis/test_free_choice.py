"""Check that table C takes the better of two tables by validation alone, and compares what it took."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bench.analysis import compare, free_choice, free_comparisons, free_tables

from .pooled_tables import pooled_tables

NOISE = np.linspace(0.95, 1.05, 20)
A, B = "short memory", "as published"


def tables(scores, validation, **facts):
    """Return tables with test scores of one problem, and with these mean validation scores of the chosen rates."""
    rows = []
    for balancer, mean in validation.items():
        for lr, value, chosen in ((0.1, mean, True), (0.2, mean - 100, False)):
            row = {"problem": "p", "balancer": balancer, "lr": lr, "mean_validation_score": value, "chosen": chosen}
            rows.append({**row, "scale": "ratio", "grid_edge": False})
    made = pooled_tables({"p": {label: value * NOISE for label, value in scores.items()}}, **facts)
    return replace(made, selection=pd.DataFrame(rows))


SHORT = tables({"equal": 1.0, "m": 0.9, "only a": 0.5}, {"equal": 1.0, "m": 0.8, "only a": 0.4})
PUBLISHED = tables({"equal": 0.7, "m": 0.8}, {"equal": 0.6, "m": 0.9})


def test_validation_decides_for_each_method_in_its_direction():
    choice = free_choice(SHORT, PUBLISHED).set_index("balancer")
    assert choice["table"].to_dict() == {"equal": B, "m": A, "only a": A}
    assert tuple(choice.loc["m", ["short_memory", "as_published"]]) == (0.8, 0.9)
    upward = [replace(each, problems=each.problems.assign(higher_is_better=True)) for each in (SHORT, PUBLISHED)]
    assert free_choice(*upward).set_index("balancer")["table"].to_dict() == {"equal": A, "m": B, "only a": A}


def test_a_method_that_failed_or_was_not_run_in_one_table_has_the_other():
    failed = tables({"equal": 1.0, "m": 0.9}, {"equal": np.nan, "m": np.nan})
    assert free_choice(failed, PUBLISHED).set_index("balancer")["table"].to_dict() == {"equal": B, "m": B}
    assert free_choice(SHORT, failed)["table"].unique().tolist() == [A]
    assert free_choice(failed, failed)["table"].unique().tolist() == [A]
    assert free_choice(SHORT, SHORT)["table"].unique().tolist() == [A]


def test_means_on_different_scales_are_refused():
    other = replace(PUBLISHED, selection=PUBLISHED.selection.assign(scale="difference"))
    with pytest.raises(ValueError, match="p: one table has geometric means"):
        free_choice(SHORT, other)


def test_comparisons_are_between_what_each_side_chose():
    table = free_comparisons(SHORT, PUBLISHED, "equal", ["equal", "m", "absent"]).set_index("balancer")
    assert list(table.index) == ["equal", "m"]
    row = table.loc["m"]
    expected = compare(0.9 * NOISE, 0.7 * NOISE, higher_is_better=False, scale="ratio")
    assert tuple(row[["relative", "low", "high"]]) == pytest.approx((expected.mean, expected.low, expected.high))
    assert (row["table"], row["equal_table"], row["verdict"], row["seeds"]) == (A, B, "worse", 20)
    assert table.loc["equal", "verdict"] == ""
    assert np.isnan(table.loc["equal", "relative"])


def test_merged_tables_have_the_rows_of_the_chosen_table_and_nothing_twice():
    alone = {"problem": "p", "balancer": "left", "phase": "baseline", "seed": 1, "value": 3.0}
    short = replace(SHORT, scores=pd.concat([SHORT.scores, pd.DataFrame([alone])]))
    scores = free_tables(short, PUBLISHED).scores
    for label, source in (("equal", PUBLISHED), ("m", SHORT), ("only a", SHORT)):
        ours, theirs = (each[each["balancer"] == label].reset_index(drop=True) for each in (scores, source.scores))
        pd.testing.assert_frame_equal(ours, theirs)
    assert scores.loc[scores["balancer"] == "left", "value"].tolist() == [3.0]
