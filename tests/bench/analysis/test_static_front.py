"""Check the front of static weights against brute force, and the coverage of the interval of the distance to it."""

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

from bench.analysis.static_front import beyond, beyond_front, front_points, improvements, nondominated, spread

from ...slow_params import others_slow

Floats = NDArray[np.float64]


@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_a_front_holds_what_nothing_dominates(tasks: int) -> None:
    points = np.random.default_rng(tasks).integers(5, size=(40, tasks)).astype(float)  # some points are equal
    expected = [
        not any(all(a <= b for a, b in zip(other, one, strict=True)) and tuple(other) != tuple(one) for other in points)
        for one in points
    ]
    assert nondominated(points).tolist() == expected


def test_few_points_of_a_front_have_its_ends_and_no_gaps() -> None:
    first = np.sort(np.random.default_rng(1).random(60)) ** 3
    points = np.stack([first, 1 - first], axis=1)
    taken = spread(points, 8)
    assert taken == sorted(taken)
    assert taken[0] == 0
    assert taken[-1] == 59
    assert len(taken) == 8
    assert np.diff(first[taken]).max() < 3 * (first[-1] - first[0]) / 7
    assert spread(points[:3], 8) == [0, 1, 2]
    assert len(spread(np.eye(10), 8)) == 8  # has more ends than 8


def test_equal_points_are_spread_without_an_error() -> None:
    assert spread(np.ones((3, 2)), 2) == [0, 1]


@pytest.mark.parametrize("seeds", [1, 4])
def test_the_indicator_is_that_of_brute_force(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    method, front = rng.uniform(1, 2, (3, seeds)), rng.uniform(1, 2, (5, 3, seeds))
    found = beyond_front(improvements(method, front, [False, True, False]))
    least = np.inf
    for point in front:
        ratios = []
        for task, (ours, theirs) in enumerate(zip(method, point, strict=True)):
            better = ours / theirs if task == 1 else theirs / ours
            ratios.append(float(np.prod(better) ** (1 / seeds)))
        least = min(least, max(ratios))
    assert np.exp(found.improvement.mean) == pytest.approx(least)
    assert (found.verdict == "") == (seeds == 1)


def test_metrics_that_are_not_positive_are_compared_by_differences() -> None:
    better = improvements(np.array([[0.5, -0.1]]), np.array([[[0.3, -0.5]]]), [True])
    assert better[0, 0] == pytest.approx(np.array([0.2, 0.4]) / 0.4)


def test_one_task_and_one_point_give_the_paired_t_interval() -> None:
    values = np.random.default_rng(5).normal(size=6)
    found = beyond_front(values[None, None]).improvement
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))


def _covered(truth: Floats, seeds: int, repeats: int = 1500) -> tuple[float, float, float]:
    """Return how often the interval covers the indicator of ``truth``, ``(P, T)``, lies above it, and lies below it."""
    rng = np.random.default_rng(seeds)
    indicator = truth.max(axis=1).min()
    above = below = 0
    for _ in range(repeats):
        noise = rng.normal(size=(1, truth.shape[1], seeds)) + rng.normal(size=(*truth.shape, seeds))
        found = beyond_front(truth[..., None] + noise / np.sqrt(2)).improvement
        above += found.low > indicator
        below += found.high < indicator
    return 1 - (above + below) / repeats, above / repeats, below / repeats


@pytest.mark.parametrize("seeds", others_slow([3, 5, 10], 5))
def test_the_interval_covers_in_95_percent_where_one_task_of_one_point_decides(seeds: int) -> None:
    place = np.arange(5.0)
    truth = np.stack([30 * place, 30 * place[::-1]], axis=1) - np.array([65.0, 20.0])
    covered, above, below = _covered(truth, seeds)
    assert 0.93 <= covered <= 0.97
    assert max(above, below) < 0.04


@pytest.mark.parametrize("seeds", others_slow([3, 5, 10], 5))
@pytest.mark.parametrize(
    "truth",
    [
        np.zeros((1, 2)),  # a method that equals the only point: noise alone must not put it beyond the front
        np.zeros((1, 10)),
        np.stack([np.zeros(8), np.linspace(-60, -20, 8)], axis=1),  # points that are equal in the task that decides
        np.stack([np.linspace(-1, 1, 8), np.linspace(1, -1, 8)], axis=1),  # a front hardly wider than the noise
    ],
)
def test_close_tasks_and_points_make_it_claim_no_more(truth: Floats, seeds: int) -> None:
    covered, above, below = _covered(truth, seeds)
    assert covered >= 0.93
    assert above < 0.06  # would be called beyond the front, wrongly
    assert below < 0.06


def _tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return scores and metrics of two tasks: four trials of static weights, and points and methods on other seeds."""
    rows = []

    def add(balancer: str, phase: str, lr: float, seed: int, split: str, a: float, b: float) -> None:
        for metric, task, value in (("error", None, a + b), ("loss of a", "a", a), ("loss of b", "b", b)):
            at = {"key": f"{balancer}{phase}{lr}{seed}", "problem": "p", "balancer": balancer, "phase": phase, "lr": lr}
            about = {"seed": seed, "checkpoint": "last", "split": split, "metric": metric, "task": task}
            rows.append({**at, **about, "value": value, "imputed": False})

    for lr, a, b in ((0.1, 1.0, 3.0), (0.2, 2.0, 2.0), (0.3, 3.0, 2.5), (0.4, 3.0, 1.0)):
        add("static", "tuning", lr, 11, "validation", a, b)
    for seed, noise in ((1, 1.0), (2, 1.01)):
        for lr, a, b in ((0.1, 1.0, 3.0), (0.2, 2.0, 2.0), (0.4, 3.0, 1.0)):
            add(f"trial {lr}", "front", lr, seed, "test", a * noise, b * noise)
        add("good", "reported", 0.2, seed, "test", 1.5 * noise, 1.8 * noise)
        add("bad", "reported", 0.2, seed, "test", 3.5 * noise, 2.0 * noise)
        add("failed", "reported", 0.2, seed, "test", np.nan if seed == 2 else 0.1, 0.1)
    metrics = pd.DataFrame(
        [("p", "error", None, False), ("p", "loss of a", "a", False), ("p", "loss of b", "b", False)],
        columns=["problem", "metric", "task", "higher_is_better"],
    )
    return pd.DataFrame(rows), metrics


def test_the_front_of_a_table() -> None:
    scores, metrics = _tables()
    points = front_points(scores, metrics, "static")
    assert points["lr"].drop_duplicates().tolist() == [0.1, 0.2, 0.4]
    assert points["task"].tolist() == ["a", "b"] * 3
    assert points["validation"].tolist() == [1.0, 3.0, 2.0, 2.0, 3.0, 1.0]


def test_a_trial_that_failed_is_in_no_front() -> None:
    scores, metrics = _tables()
    scores.loc[(scores["phase"] == "tuning") & (scores["lr"] == 0.1) & (scores["task"] == "a"), "value"] = np.nan
    assert 0.1 not in set(front_points(scores, metrics, "static")["lr"])


def test_the_verdicts_of_a_table() -> None:
    scores, metrics = _tables()
    table = beyond(scores, metrics, ["good", "bad", "failed", "unknown"]).set_index("balancer")
    assert table["verdict"].to_dict() == {"good": "beyond", "bad": "not beyond", "failed": "not beyond"}
    assert table.loc["good", "improvement"] == pytest.approx(np.log(2 / 1.5))
    assert table.loc["good", "nearest"] == "trial 0.2"
    assert table.loc["bad", "improvement"] == pytest.approx(np.log(3 / 3.5))
    assert table.loc["bad", "nearest"] == "trial 0.4"


def test_without_a_front_there_are_no_verdicts() -> None:
    scores, metrics = _tables()
    assert beyond(scores[scores["phase"] == "reported"], metrics, ["good"]).empty
    assert front_points(scores[scores["phase"] == "reported"], metrics, "static").empty
