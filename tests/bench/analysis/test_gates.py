"""Check that a method passes its gate only where its equivalent steps are settled to be close to one."""

import numpy as np
import pandas as pd
import pytest

from bench.analysis import compare, equivalent_steps, failed_gates, gates, passed_gates

from .pooled_tables import LENGTHS, correlated, pooled_tables

MARGIN = 0.1


def scores(seed: int, deviation: float, **factors: float) -> dict[str, np.ndarray]:
    """Return losses that fall as one over the steps, and of methods that are worth so many ``factors`` of them."""
    noise = np.exp(correlated(np.random.default_rng(seed), deviation, len(LENGTHS) + len(factors), 20))
    worth = {**{label: factor for factor, label in LENGTHS.items()}, **factors}
    return {label: noise[place] / factor for place, (label, factor) in enumerate(worth.items())}


@pytest.fixture
def table() -> pd.DataFrame:
    quiet = scores(0, 0.01, same=1.0, faster=1.3, slower=0.75, tiny=0.2)
    quiet["second"] = quiet["equal"]
    noisy = scores(1, 0.8, same=1.0, faster=1.0, slower=1.0, tiny=1.0)
    noisy["second"] = noisy["equal"]
    tables = pooled_tables({"quiet": quiet, "problem": quiet, "noisy": noisy}, controls=["quiet", "noisy"])
    return gates(tables, LENGTHS, ["equal", "second", "same", "faster", "slower", "tiny"])


def test_only_controls_are_gates(table: pd.DataFrame) -> None:
    assert set(table["problem"]) == {"quiet", "noisy"}
    assert len(table) == 12


def test_passing_needs_a_settled_interval_within_the_margin(table: pd.DataFrame) -> None:
    quiet = table[table["problem"] == "quiet"].set_index("balancer")
    assert quiet["passes"].to_dict() == {
        **{"equal": True, "second": True, "same": True},
        **{"faster": False, "slower": False, "tiny": False},
    }
    within = (quiet["low"] >= 1 - MARGIN) & (quiet["high"] <= 1 + MARGIN)
    assert (quiet["passes"] == within).all()
    assert quiet.loc["tiny", "low_beyond"] == "below"


def test_a_noisy_control_is_passed_by_nobody_who_is_not_identical(table: pd.DataFrame) -> None:
    noisy = table[table["problem"] == "noisy"].set_index("balancer")["passes"]
    assert noisy.index[noisy.astype(bool)].tolist() == ["equal", "second"]
    assert passed_gates(table) == {"equal", "second"}
    assert passed_gates(table[table["problem"] == "quiet"]) == {"equal", "second", "same"}


def test_a_method_that_misses_a_control_does_not_pass(table: pd.DataFrame) -> None:
    missing = table[(table["problem"] == "quiet") | (table["balancer"] != "second")]
    assert passed_gates(missing) == {"equal"}
    assert passed_gates(table[:0]) == set()
    assert failed_gates(missing) == {"second", "same", "faster", "slower", "tiny"}
    assert failed_gates(table[:0]) == set()


def test_values_are_those_of_the_equivalent_steps_and_of_the_comparison() -> None:
    values = scores(2, 0.05, m=1.05)
    tables = pooled_tables({"control": values}, controls=["control"])
    row = gates(tables, LENGTHS, ["m"]).iloc[0]
    expected = equivalent_steps(tables, LENGTHS, ["m"]).iloc[0]
    pd.testing.assert_series_equal(row[expected.index], expected)
    found = compare(values["m"], values["equal"], higher_is_better=False, scale="ratio")
    assert tuple(row[["relative", "relative_low", "relative_high"]]) == pytest.approx(
        (found.mean, found.low, found.high)
    )
