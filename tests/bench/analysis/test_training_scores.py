"""Training scores stand beside test scores of the same runs, and beside those of equal weighting on the same seeds."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest

from bench.analysis import SuiteTables, training_scores

NUM_SEEDS = 8
"""Seeds of each of both sets."""


def made(factors: Mapping[str, float], failing: Mapping[str, int], higher_is_better: bool = False) -> SuiteTables:
    """Return the scores of methods on seeds that become harder, each of which fails on its hardest seeds.

    Args:
        factors: Score of each method over that of equal weighting on the same seed, on both splits.
        failing: Number of seeds of each set on which a method fails. These runs count with a test score of 100.
        higher_is_better: The direction of the score.
    """
    scores, runs = [], []
    for balancer, factor in factors.items():
        for phase in ("reported", "repeated"):
            for seed in range(NUM_SEEDS):
                run = {"problem": "p", "balancer": balancer, "phase": phase, "seed": seed}
                failed = seed >= NUM_SEEDS - failing.get(balancer, 0)
                runs.append({**run, "status": "failed" if failed else "ok"})
                about = {**run, "checkpoint": "last", "metric": "score"}
                value = factor * 2.0**seed
                scores.append({**about, "split": "test", "value": 100.0 if failed else value, "imputed": failed})
                if not failed:
                    scores.append({**about, "split": "train", "value": value / 3, "imputed": False})
    problems = pd.DataFrame([{"problem": "p", "primary": "score", "higher_is_better": higher_is_better}])
    return SuiteTables(problems=problems, runs=pd.DataFrame(runs), scores=pd.DataFrame(scores))


def row(tables: SuiteTables, balancer: str) -> pd.Series:
    table = training_scores(tables, "equal", ["equal", "famo", "lost"]).set_index("balancer")
    found: pd.Series = table.loc[balancer]
    return found


def test_a_method_that_fails_is_compared_with_equal_weighting_on_the_seeds_it_survived() -> None:
    """The survivors' seeds are the easiest, and a mean over them would look good beside one over all seeds."""
    found = row(made({"equal": 1.0, "famo": 1.25}, {"famo": 3}), "famo")
    assert (found["seeds"], found["failed"]) == (2 * (NUM_SEEDS - 3), 2 * 3)
    assert found["train_relative"] == pytest.approx(1.25)
    assert found["test_relative"] == pytest.approx(1.25)
    survived = 1.25 * 2.0 ** np.arange(NUM_SEEDS - 3)
    assert found["test"] == pytest.approx(np.exp(np.log(survived).mean()))
    assert found["train"] == pytest.approx(found["test"] / 3)


def test_a_seed_on_which_equal_weighting_fails_counts_for_no_method() -> None:
    tables = made({"equal": 1.0, "famo": 0.5}, {"equal": 2})
    for balancer, failed in (("equal", 4), ("famo", 0)):
        found = row(tables, balancer)
        assert (found["seeds"], found["failed"]) == (2 * (NUM_SEEDS - 2), failed)
    assert row(tables, "famo")["test_relative"] == pytest.approx(0.5)


def test_differences_are_paired_too() -> None:
    found = row(made({"equal": 1.0, "famo": 1.5}, {"famo": 3}, higher_is_better=True), "famo")
    assert found["scale"] == "difference"
    assert found["test_relative"] == pytest.approx(0.5 * (2.0 ** np.arange(NUM_SEEDS - 3)).mean())


def test_a_method_of_which_every_run_fails_has_a_row() -> None:
    found = row(made({"equal": 1.0, "famo": 1.0, "lost": 1.0}, {"lost": NUM_SEEDS}), "lost")
    assert (found["seeds"], found["failed"]) == (0, 2 * NUM_SEEDS)
    assert np.isnan(found[["train", "test", "train_relative", "test_relative"]].astype(float)).all()


def test_a_method_that_was_not_run_has_none() -> None:
    table = training_scores(made({"equal": 1.0, "famo": 1.0}, {}), "equal", ["equal", "famo", "lost"])
    assert list(table["balancer"]) == ["equal", "famo"]
