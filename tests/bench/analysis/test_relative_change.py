"""Check the relative change to single-task training, and its mean over problems, against independent computations."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bench.analysis import delta_m, interquartile_mean, mean_change

METRICS = pd.DataFrame(
    [
        {"problem": "p", "metric": "mIoU", "task": "segmentation", "higher_is_better": True},
        {"problem": "p", "metric": "accuracy", "task": "segmentation", "higher_is_better": True},
        {"problem": "p", "metric": "error", "task": "depth", "higher_is_better": False},
        {"problem": "p", "metric": "primary", "task": None, "higher_is_better": False},
    ]
)


def rows(values: dict[str, float], phase: str, balancer: str, seed: int) -> list[dict[str, object]]:
    tasks = METRICS.set_index("metric")["task"]
    about = {"problem": "p", "phase": phase, "seed": seed, "checkpoint": "last", "split": "test"}
    return [
        {**about, "balancer": balancer, "metric": metric, "task": tasks[metric], "value": value}
        for metric, value in values.items()
    ]


def scores_of(ours: dict[str, float], alone: dict[str, float]) -> pd.DataFrame:
    everything = rows({**ours, "primary": 1.0}, "reported", "ours", 1)
    for task in ("segmentation", "depth"):
        everything += rows({**alone, "primary": 1.0}, "baseline", task, 1)
    return pd.DataFrame(everything)


def test_a_worked_example() -> None:
    """Segmentation gains 10 % and 2 %, on average 6; the error of depth is 4 % larger: -4; the mean of both is +1."""
    found = delta_m(
        scores_of({"mIoU": 0.44, "accuracy": 0.765, "error": 0.52}, {"mIoU": 0.4, "accuracy": 0.75, "error": 0.5}),
        METRICS,
    )
    assert found[["problem", "balancer", "seed"]].to_dict("records") == [
        {"problem": "p", "balancer": "ours", "seed": 1}
    ]
    assert found["delta_m"].item() == pytest.approx(1.0)


def test_each_task_is_compared_with_its_own_run_of_the_same_seed() -> None:
    everything = []
    for seed, error in ((1, 0.5), (2, 0.25)):
        everything += rows({"error": 0.5, "mIoU": 0.2, "accuracy": 0.2}, "reported", "ours", seed)
        everything += rows({"error": error, "mIoU": 9.0, "accuracy": 9.0}, "baseline", "depth", seed)
        everything += rows({"error": 9.0, "mIoU": 0.2, "accuracy": 0.2}, "baseline", "segmentation", seed)
    found = delta_m(pd.DataFrame(everything), METRICS).set_index("seed")["delta_m"]
    assert found.to_dict() == pytest.approx({1: 0.0, 2: -50.0})


@pytest.mark.parametrize(("ours", "alone"), [((0.4, 0.5, np.nan), (0.4, 0.5, 0.5)), ((0.4, 0.5, 0.1), (0.4, 0.5, 0.0))])
def test_what_cannot_be_compared_is_absent(ours: tuple[float, ...], alone: tuple[float, ...]) -> None:
    names = ("mIoU", "accuracy", "error")
    found = delta_m(scores_of(dict(zip(names, ours, strict=True)), dict(zip(names, alone, strict=True))), METRICS)
    assert np.isnan(found["delta_m"].item())


def test_without_single_task_runs_there_are_no_rows() -> None:
    scores = pd.DataFrame(rows({"error": 0.5}, "reported", "ours", 1))
    assert delta_m(scores, METRICS).empty


def test_agrees_with_plain_arithmetic() -> None:
    random = np.random.default_rng(0)
    names = ("mIoU", "accuracy", "error")
    ours, alone = random.uniform(0.1, 1, (2, 5, 3))
    everything = []
    for seed in range(5):
        everything += rows(dict(zip(names, ours[seed], strict=True)), "reported", "ours", seed)
        for task in ("segmentation", "depth"):
            everything += rows(dict(zip(names, alone[seed], strict=True)), "baseline", task, seed)
    found = delta_m(pd.DataFrame(everything), METRICS).sort_values("seed")["delta_m"]
    change = 100 * (ours - alone) / alone
    expected = ((change[:, 0] + change[:, 1]) / 2 - change[:, 2]) / 2
    np.testing.assert_allclose(found, expected)


def test_the_mean_is_of_the_middle_half() -> None:
    values = np.random.default_rng(1).normal(size=(4, 6))
    middle = np.sort(values.ravel())[6:18]
    assert interquartile_mean(values).mean == pytest.approx(middle.mean())
    assert interquartile_mean(values) == interquartile_mean(values)
    values[0, 0] = 1e9
    assert abs(interquartile_mean(values).mean) < 1


def test_the_interval_is_for_seeds_within_problems() -> None:
    """If problems differ a lot and seeds do not, the interval is narrow."""
    problems = np.array([[-50.0], [-10.0], [0.0], [20.0]])
    alike = interquartile_mean(np.repeat(problems, 5, axis=1))
    assert (alike.low, alike.high) == pytest.approx((alike.mean, alike.mean))
    assert np.isnan(interquartile_mean(problems).low)
    assert np.isnan(interquartile_mean(np.full((2, 3), np.nan)).mean)
    with pytest.raises(ValueError, match=r"values has shape \(0, 3\)"):
        interquartile_mean(np.empty((0, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("problems", [4, 5])
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(([-8, -3, -1, 0.5, 4], [2, 0.7, 1, 1, 1.5]), id="apart"),
        pytest.param(([0, 0, 0, 0, 0], [1, 1, 1, 1, 1]), id="alike"),
    ],
)
def test_the_interval_covers_as_often_as_it_says(
    problems: int, seeds: int, kind: tuple[list[float], list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draw problems with different means and noise, and with equal ones, in the numbers that suites have."""
    monkeypatch.setattr("bench.analysis.relative_change.RESAMPLES", 400)
    random = np.random.default_rng(seeds)
    means, noise = (np.array(column)[:problems, None] for column in kind)
    truth = stats.trim_mean(means + noise * random.normal(size=(problems, 200_000)), 0.25, axis=None)
    found = [interquartile_mean(means + noise * random.normal(size=(problems, seeds))) for _ in range(1000)]
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert 0.93 <= covered <= 0.97


def changes(values: dict[tuple[str, str], list[float]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"problem": problem, "balancer": balancer, "seed": seed, "delta_m": value}
            for (problem, balancer), ours in values.items()
            for seed, value in enumerate(ours)
        ]
    )


def test_over_problems_a_control_takes_no_part() -> None:
    problems = pd.DataFrame({"problem": ["p", "control", "q", "near zero"], "control": [False, True, False, False]})
    table = changes(
        {
            ("q", "ours"): [1.0, 3.0],
            ("p", "ours"): [5.0, 7.0],
            ("control", "ours"): [99.0, 99.0],
            ("near zero", "ours"): [np.nan, 1.0],
            ("p", "other"): [1.0, np.nan],
            ("q", "other"): [1.0, 1.0],
        }
    )
    found = mean_change(table, problems, ["other", "absent", "ours"]).set_index("balancer")
    assert list(found.index) == ["other", "ours"]
    assert found["problems"].tolist() == [["p", "q"], ["p", "q"]]
    assert np.isnan(found.loc["other", "delta_m"])
    expected = interquartile_mean(np.array([[5.0, 7.0], [1.0, 3.0]]))
    assert tuple(found.loc["ours", ["delta_m", "low", "high"]]) == (expected.mean, expected.low, expected.high)


def test_every_combination_is_there() -> None:
    everything = []
    for label, seed in product(("one", "other"), (1, 2)):
        everything += rows({"error": 0.5}, "reported", label, seed)
    for seed in (1, 2):
        everything += rows({"error": 0.5}, "baseline", "depth", seed)
    found = delta_m(pd.DataFrame(everything), METRICS)
    assert sorted(zip(found["balancer"], found["seed"], strict=True)) == [
        ("one", 1),
        ("one", 2),
        ("other", 1),
        ("other", 2),
    ]
    assert (found["delta_m"] == 0).all()
