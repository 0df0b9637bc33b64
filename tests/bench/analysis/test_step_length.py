"""Check the change of a method's gain between two optimisers against scipy, and its coverage."""

import numpy as np
import pytest
from scipy import stats

from bench.analysis import step_length

from .pooled_tables import correlated, pooled_tables

COLUMNS = ["change", "change_low", "change_high"]


def draw(random, deviation, gains, seeds=20):
    """Return the losses of equal weighting and of a method in both tables, with these ratios to equal weighting."""
    noise = np.exp(correlated(random, deviation, 4, seeds))
    return [{"equal": noise[2 * i], "m": gain * noise[2 * i + 1]} for i, gain in enumerate(gains)]


def found(ours, theirs, **facts):
    tables = (pooled_tables({"p": values}, **facts) for values in (ours, theirs))
    return step_length(*tables, "equal", ["m", "equal", "absent"])


def test_the_change_is_paired_by_seed_on_logarithms():
    ours, theirs = draw(np.random.default_rng(0), 0.1, (0.8, 0.6))
    table = found(ours, theirs)
    assert list(table["balancer"]) == ["m"]
    row = table.iloc[0]
    logs = [np.log(values["m"] / values["equal"]) for values in (ours, theirs)]
    interval = stats.ttest_rel(logs[1], logs[0]).confidence_interval(0.95)
    assert row["change_low"] == pytest.approx(np.exp(interval.low))
    assert row["change_high"] == pytest.approx(np.exp(interval.high))
    assert (row["short_memory"], row["as_published"]) == pytest.approx(tuple(np.exp([each.mean() for each in logs])))
    assert row["change"] == pytest.approx(row["as_published"] / row["short_memory"])
    assert (row["seeds"], row["scale"], row["step_length"]) == (20, "ratio", True)
    own = stats.ttest_rel(np.log(theirs["m"]), np.log(ours["m"])).confidence_interval(0.95)
    assert (row["own_low"], row["own_high"]) == pytest.approx((np.exp(own.low), np.exp(own.high)))
    assert row["own_change"] == pytest.approx(np.exp(np.mean(np.log(theirs["m"] / ours["m"]))))


def test_what_equal_weighting_alone_changes_is_no_change_of_the_method():
    ours, theirs = draw(np.random.default_rng(5), 0.01, (0.8, 0.8))
    theirs["equal"] = 2 * theirs["equal"]
    row = found(ours, theirs).iloc[0]
    assert row["step_length"]
    assert not row["own_changes"]
    theirs["m"] = 2 * theirs["m"]
    row = found(ours, theirs).iloc[0]
    assert not row["step_length"]
    assert row["own_changes"]


@pytest.mark.parametrize(("gains", "changes"), [((0.8, 0.8), False), ((0.8, 0.5), True), ((0.8, 1.2), True)])
def test_only_an_interval_that_excludes_no_change_is_step_length(gains, changes):
    row = found(*draw(np.random.default_rng(1), 0.1, gains)).iloc[0]
    assert row["step_length"] == changes
    assert (row["change_low"] <= 1 <= row["change_high"]) != changes


def test_an_accuracy_changes_by_a_difference_of_differences():
    ours, theirs = (
        {label: 1 - values / 4 for label, values in each.items()}
        for each in draw(np.random.default_rng(2), 0.1, (0.8, 0.6))
    )
    row = found(ours, theirs, higher=["p"]).iloc[0]
    differences = (theirs["m"] - theirs["equal"]) - (ours["m"] - ours["equal"])
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert tuple(row[COLUMNS]) == pytest.approx((differences.mean(), interval.low, interval.high))
    assert row["scale"] == "difference"


def test_both_tables_are_compared_on_one_scale():
    ours, theirs = draw(np.random.default_rng(3), 0.1, (0.8, 0.6))
    theirs["other"] = np.zeros(20)
    row = found(ours, theirs).iloc[0]
    assert row["scale"] == "difference"
    assert row["short_memory"] == pytest.approx(np.mean(ours["m"] - ours["equal"]))


def test_without_noise_in_the_change_it_is_settled():
    ours, _ = draw(np.random.default_rng(4), 0.1, (0.8, 0.8))
    row = found(ours, ours).iloc[0]
    assert tuple(row[COLUMNS]) == (1, 1, 1)
    assert not row["step_length"]
    assert not row["own_changes"]


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [10, 20])
@pytest.mark.parametrize("deviation", [0.03, 0.2])
def test_covers_the_true_change(deviation, seeds):
    random = np.random.default_rng(seeds)
    hits = []
    for _ in range(300):
        row = found(*draw(random, deviation, (0.8, 0.7), seeds)).iloc[0]
        hits.append(row["change_low"] <= 0.7 / 0.8 <= row["change_high"])
    assert 0.91 <= np.mean(hits) <= 0.985
