"""Check the division of equivalent steps by costs, and what its verdicts rest on."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from bench.analysis import EquivalentSteps, SuiteTables, paying_methods

COSTS = {"m": (1.5, 1.4, 1.6), "cheap": (0.4, 0.39, 0.41), "dear": (9.0, 8.5, 9.5)}


def tables():
    rows = [
        {"problem": "p", "balancer": label, "device": device, "part": part, "ratio_to_equal": ratio * factor,
         "ratio_low": low * factor, "ratio_high": high * factor}
        for label, (ratio, low, high) in COSTS.items()
        for device, part, factor in (("cuda", "step", 7), ("cpu", "step", 1), ("cpu", "forward", 9))
    ]  # fmt: skip
    return SuiteTables(costs=pd.DataFrame(rows))


def found(balancer="m", *values):
    steps = pd.DataFrame([{"problem": "p", "balancer": balancer, "seeds": 20, **asdict(EquivalentSteps(*values))}])
    return paying_methods(steps, tables()).iloc[0]


def test_the_interval_pairs_the_lowest_with_the_highest():
    row = found("m", 2.4, "", 2.0, "", 2.8, "")
    assert tuple(row[["q_per_cost", "low", "high"]]) == pytest.approx((1.6, 1.25, 2.0))
    assert tuple(row[["cost", "cost_low", "cost_high"]]) == COSTS["m"]
    assert row["verdict"] == "pays"


@pytest.mark.parametrize(
    ("balancer", "values", "verdict"),
    [
        ("m", (1.2, "", 1.1, "", 1.3, ""), "train longer"),
        ("m", (1.5, "", 1.4, "", 1.7, ""), "not settled"),
        ("m", (4.0, "above", 3.0, "", 4.0, "above"), "pays"),
        ("m", (4.0, "above", 4.0, "above", 4.0, "above"), "pays"),
        ("m", (0.5, "below", 0.5, "below", 0.5, "below"), "train longer"),
        ("m", (0.5, "below", 0.5, "below", 1.2, ""), "train longer"),
        # Four times the steps cost less than the method, but q may be far larger than four.
        ("dear", (4.0, "above", 4.0, "above", 4.0, "above"), "not settled"),
        ("dear", (4.0, "above", 3.0, "", 4.0, "above"), "not settled"),
        # Half the steps cost more than the method, but q may be far smaller than a half.
        ("cheap", (0.5, "below", 0.5, "below", 0.6, ""), "not settled"),
        ("m", (1.2, "", np.nan, "", np.nan, ""), ""),
        ("unmeasured", (1.2, "", 1.1, "", 1.3, ""), ""),
    ],
)
def test_a_flagged_end_bounds_only_what_it_can(balancer, values, verdict):
    assert found(balancer, *values)["verdict"] == verdict


def test_a_cost_that_was_measured_twice_is_refused():
    twice = SuiteTables(costs=pd.concat([tables().costs] * 2))
    steps = pd.DataFrame(
        [{"problem": "p", "balancer": "m", "seeds": 2, **asdict(EquivalentSteps(1, "", 1, "", 1, ""))}]
    )
    with pytest.raises(ValueError, match="more than one row"):
        paying_methods(steps, twice)


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [-0.8, 0.0, 0.8])
def test_the_conservative_interval_covers_the_ratio_at_least_as_often_as_its_parts(correlation):
    """Both parts have 95 % intervals; their errors may be related in any way."""
    random = np.random.default_rng(0)
    errors = random.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], size=20_000)
    q, cost = np.exp(np.log(1.6) + 0.08 * errors[:, 0]), np.exp(np.log(1.2) + 0.05 * errors[:, 1])
    ends = np.exp(1.96 * np.array([-0.08, 0.08])), np.exp(1.96 * np.array([-0.05, 0.05]))
    steps = pd.DataFrame(
        {"problem": "p", "balancer": [f"m{i}" for i in range(len(q))], "q": q, "low": q * ends[0][0]}
    ).assign(high=q * ends[0][1], seeds=20, beyond="", low_beyond="", high_beyond="")
    costs = steps[["problem", "balancer"]].assign(device="cpu", part="step", ratio_to_equal=cost)
    costs = costs.assign(ratio_low=cost * ends[1][0], ratio_high=cost * ends[1][1])
    table = paying_methods(steps, SuiteTables(costs=costs))
    assert ((table["low"] <= 1.6 / 1.2) & (table["high"] >= 1.6 / 1.2)).mean() >= 0.95


@pytest.mark.slow
def test_the_interval_covers_with_ninety_percent_at_least_whatever_the_dependence():
    """The worst dependence: q misses only where the cost does not, so that both misses add up to 10 %."""
    random = np.random.default_rng(0)
    place = random.uniform(size=20_000)
    # q's interval misses from below on the first 5 %, the cost's interval misses from above on the next 5 %.
    shift_q, shift_cost = np.where(place < 0.05, -0.5, 0.0), np.where((place >= 0.05) & (place < 0.1), 0.5, 0.0)
    q, cost = np.exp(np.log(1.6) + shift_q), np.exp(np.log(1.2) + shift_cost)
    steps = pd.DataFrame({"problem": "p", "balancer": [f"m{i}" for i in range(len(q))], "q": q, "low": 0.999 * q})
    steps = steps.assign(high=1.001 * q, seeds=20, beyond="", low_beyond="", high_beyond="")
    costs = steps[["problem", "balancer"]].assign(device="cpu", part="step", ratio_to_equal=cost)
    costs = costs.assign(ratio_low=0.999 * cost, ratio_high=1.001 * cost)
    table = paying_methods(steps, SuiteTables(costs=costs))
    covered = ((table["low"] <= 1.6 / 1.2) & (table["high"] >= 1.6 / 1.2)).mean()
    assert 0.895 <= covered <= 0.91
