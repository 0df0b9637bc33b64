"""Check time-to-target and the interval of a median against independent computations."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bench.analysis import Roles, SuiteTables, median_estimate, time_to_target
from bench.analysis.target_time import steps_to_target

STEPS = np.arange(0.0, 600, 100)
PROBLEMS = pd.DataFrame([{"problem": "p", "primary": "loss", "higher_is_better": False, "steps": 500}])
COSTS = pd.DataFrame(
    [
        {
            **{"problem": "p", "balancer": label, "device": device, "part": part},
            **{"median_ms": ms * slow, "ratio_to_equal": ratio * slow, "flops": flops * slow},
        }
        for device, slow in (("cpu", 1), ("cuda", 10))  # only the first device counts
        for label, ms, ratio, flops in (("equal", 2.0, 1.0, 1000), ("fast", 3.0, 1.4, 1500))
        for part in ("step", "forward")
    ]
)
ROLES = Roles("equal", None, None, None, {})


def test_three_evaluations_are_averaged_and_the_last_counts() -> None:
    values = np.array([9.0, 1.0, 2.0, 3.0, 1.0, 1.0])
    # Means of three: 4, 2, 2, 5/3, at steps 200 to 500.
    assert steps_to_target(STEPS, values, 2.0, higher_is_better=False) == 300
    assert steps_to_target(STEPS, values, 5 / 3, higher_is_better=False) == 500
    assert steps_to_target(STEPS, values, 1.0, higher_is_better=False) == np.inf
    assert steps_to_target(STEPS, values, 4.0, higher_is_better=True) == 200
    assert steps_to_target(STEPS, -values, -2.0, higher_is_better=True) == 300


def test_what_is_not_finite_reaches_nothing() -> None:
    values = np.array([9.0, np.nan, -np.inf, np.nan, 1.0, 1.0])
    assert steps_to_target(STEPS, values, 2.0, higher_is_better=False) == np.inf
    assert steps_to_target(STEPS[:2], values[:2], 99.0, higher_is_better=False) == np.inf


def tables(curves: dict[str, list[list[float]]]) -> SuiteTables:
    """Return the tables of a timed suite; each method has a list of values per seed."""
    rows, finals, runs = [], [], []
    for balancer, seeds in curves.items():
        for seed, values in enumerate(seeds):
            about = {"key": f"{balancer}/{seed}", "problem": "p", "balancer": balancer, "phase": "reported"}
            about |= {"seed": seed, "metric": "loss"}
            rows += [{**about, "step": step, "value": value} for step, value in zip(STEPS, values, strict=True)]
            for checkpoint, split in (("last", "validation"), ("best", "validation"), ("last", "test")):
                value = values[-1] if (checkpoint, split) == ("last", "validation") else 0.0
                finals.append({**about, "checkpoint": checkpoint, "split": split, "value": value})
            runs.append({"key": about["key"], "status": "ok"})
    return SuiteTables(
        problems=PROBLEMS,
        curves=pd.DataFrame(rows).sample(frac=1, random_state=0),  # the order of rows must not matter
        scores=pd.DataFrame(finals),
        runs=pd.DataFrame(runs),
        costs=COSTS,
    )


EQUAL = [[9, 8, 7, 6, 5, 3.0], [9, 8, 7, 6, 5, 5.0]]  # the mean of the last values is 4
FAST = [9, 4, 4, 4, 4, 4.0]  # reaches 4 at step 300
LATE = [9, 9, 4, 4, 4, 4.0]  # reaches 4 at step 400


def test_a_worked_example() -> None:
    table = time_to_target(tables({"equal": EQUAL, "fast": [FAST, LATE, LATE]}), ROLES).set_index("balancer")
    assert (table["target"] == 4).all()
    fast = table.loc["fast"]
    assert fast[["seeds", "reached", "steps", "of_steps"]].tolist() == [3, 3, 400, 0.8]
    assert fast["seconds"] == pytest.approx(400 * 0.003)
    assert fast["flops"] == 400 * 1500
    assert fast["of_seconds"] == pytest.approx(0.8 * 1.4)
    assert fast["of_flops"] == pytest.approx(0.8 * 1.5)
    assert np.isnan(fast["steps_low"])
    assert table.loc["equal", ["reached", "steps"]].tolist() == [0, np.inf]


def test_a_run_that_failed_and_half_that_miss_are_infinite() -> None:
    never = [9.0] * 6
    made = tables({"equal": EQUAL, "half": [FAST, FAST, never, never], "most": [FAST, FAST, never]})
    table = time_to_target(made, ROLES).set_index("balancer")
    assert table["steps"].to_dict() == {"equal": np.inf, "half": np.inf, "most": 300}
    made.runs.loc[made.runs["key"] == "most/0", "status"] = "failed"
    table = time_to_target(made, ROLES).set_index("balancer")
    assert table.loc["most", ["reached", "steps"]].tolist() == [1, np.inf]


def test_without_equal_weighting_there_is_no_target_and_without_timing_no_time() -> None:
    made = tables({"equal": EQUAL, "fast": [FAST]})
    assert time_to_target(made, replace(ROLES, equal=None)).empty
    untimed = time_to_target(replace(made, costs=COSTS[:0]), ROLES).set_index("balancer")
    assert untimed.loc["fast", "of_steps"] == 0.6
    assert np.isnan(untimed.loc["fast", ["seconds", "flops", "of_seconds", "of_flops"]].astype(float)).all()


@pytest.mark.parametrize("count", [6, 10, 30])
def test_the_medians_interval_lies_between_scipys(count: int) -> None:
    """Compare with the order statistics of just more and of just less confidence than 95 %."""
    values = np.random.default_rng(count).lognormal(size=count)
    found = median_estimate(values)
    assert found.mean == np.median(values)
    wide = stats.quantile_test(values, q=np.median(values), p=0.5).confidence_interval(0.95)
    assert wide.low <= found.low <= found.mean <= found.high <= wide.high
    ordered = np.sort(values)
    rank = int(np.flatnonzero(ordered == wide.low)[0])
    assert ordered[rank] < found.low < ordered[rank + 1]
    assert ordered[-rank - 2] < found.high < ordered[-rank - 1]


def test_the_medians_interval_worked_by_hand() -> None:
    """With ten values, a bound of 95 % lies about two thirds of the way from the second value to the third."""
    ordered = np.arange(1.0, 11)
    wide, narrow = 1 - 2 * 11 / 1024, 1 - 2 * 56 / 1024
    part = (wide - 0.95) / (wide - narrow)
    inward = (10 - 2) * part / (2 + (10 - 4) * part)
    found = median_estimate(ordered[::-1])
    assert (found.low, found.mean, found.high) == pytest.approx((2 + inward, 5.5, 9 - inward))
    assert inward == pytest.approx(0.6577, abs=5e-5)


def test_infinite_values_and_few() -> None:
    found = median_estimate([1, 2, 3, 4, 5, 6, 7, 8, np.inf, np.inf])
    assert (found.mean, found.high) == (5.5, np.inf)
    assert np.isfinite(found.low)
    assert median_estimate([1, 2, *[np.inf] * 8]).low == 2
    assert median_estimate([1, 2, 3, 4, *[np.inf] * 6]).mean == np.inf
    assert np.isnan(median_estimate([1, 2, 3, 4, 5]).low)
    assert np.isnan(median_estimate([]).mean)


@pytest.mark.parametrize("draw", ["normal", "exponential", "lognormal"])
def test_the_medians_interval_covers_as_often_as_it_says(draw: str) -> None:
    random = np.random.default_rng(0)
    sample = getattr(random, draw)
    truth = {"normal": 0.0, "exponential": np.log(2), "lognormal": 1.0}[draw]
    found = [median_estimate(values) for values in sample(size=(3000, 10))]
    assert 0.93 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.97


def test_on_a_grid_of_evaluations_the_interval_covers_no_less() -> None:
    """Draw steps that are multiples of the distance between evaluations; some runs never reach the target."""
    random = np.random.default_rng(1)
    exact = 17 * np.exp(random.normal(0, 0.2, (3000, 10)))
    steps = np.where(exact > 20, np.inf, np.ceil(exact))
    found = [median_estimate(values) for values in steps]
    assert np.mean([one.low <= 17 <= one.high for one in found]) >= 0.93
