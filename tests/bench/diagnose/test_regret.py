"""Test regrets against numbers worked out by hand."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest

from bench.diagnose.regret import CAP, AdviceVerdict, always, regrets, verdict

Scores = Mapping[str, Mapping[str, tuple[float, float]]]


def frame(given: Scores, seeds: int = 2) -> pd.DataFrame:
    """Return scores of seeds whose geometric means are those given: (reported, repeated), by problem and candidate."""
    rows = [
        (problem, candidate, phase, seed, value * 2.0 ** (seed - (seeds - 1) / 2), False)
        for problem, candidates in given.items()
        for candidate, values in candidates.items()
        for phase, value in zip(("reported", "repeated"), values, strict=True)
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows, columns=["problem", "candidate", "phase", "seed", "value", "higher_is_better"])


THREE: Scores = {
    "p": {"equal": (1.0, 1.0), "famo": (0.5, 0.6), "nash-mtl": (0.8, 0.4)},
    "q": {"equal": (1.0, 1.0), "famo": (0.9, 0.9), "nash-mtl": (9.0, 9.0)},
    "r": {"equal": (1.0, 2.0), "famo": (3.0, 1.0), "nash-mtl": (8.0, 8.0)},
}
EACH = {problem: problem for problem in THREE}


def test_regrets_of_three_problems_by_hand() -> None:
    table = regrets(frame(THREE), {"p": "famo", "q": "nash-mtl", "r": "equal"}, EACH).set_index("problem")
    # p: the best of the reported seeds is famo, of the repeated ones nash-mtl.
    on_repeated, on_reported = math.log(0.6 / 0.6), math.log(0.5 / 0.8)
    assert table.loc["p", "regret"] == pytest.approx((on_repeated + on_reported) / 2)
    # q: ten times as bad counts as four times.
    assert table.loc["q", "regret"] == pytest.approx(CAP)
    # r: equal is best on the reported seeds, famo on the repeated ones, each the worse on the other set.
    assert table.loc["r", "regret"] == pytest.approx((0 + math.log(1 / 3)) / 2)
    # The opponent on p sees q and r. Reported: equal has (log 1/0.9 + 0) / 2, famo (0 + log 3) / 2. Repeated: equal
    # has (log 1/0.9 + log 2) / 2, famo 0.
    assert table.loc["p", "opponent"] == "equal / famo"
    by_equal, by_famo = math.log(1 / 0.6), math.log(0.5 / 0.8)
    assert table.loc["p", "opponent_regret"] == pytest.approx((by_equal + by_famo) / 2)
    # On q it sees p and r. Reported: equal has (log 2 + 0) / 2, famo (0 + log 3) / 2, nash-mtl (log 1.6 + log 4) / 2.
    # Repeated: equal has (log 2.5 + log 2) / 2, famo log 1.5 / 2, nash-mtl (0 + log 4) / 2.
    assert table.loc["q", "opponent"] == "equal / famo"
    assert table.loc["q", "opponent_regret"] == pytest.approx((math.log(1 / 0.9) + 0) / 2)
    # On r it sees p and q. Reported: famo is best on both. Repeated: famo has log 1.5 / 2, and all others more.
    assert table.loc["r", "opponent"] == "famo"
    assert table.loc["r", "opponent_regret"] == pytest.approx((math.log(1 / 2) + 0) / 2)
    assert table["lower"].to_dict() == {"p": "advice", "q": "opponent", "r": "advice"}
    assert verdict(table.reset_index(), needed=2) == AdviceVerdict(lower=2, folds=3, needed=2)
    assert verdict(table.reset_index(), needed=2).succeeds
    assert not verdict(table.reset_index(), needed=3).succeeds


def test_the_regret_of_always_advising_the_same_by_hand() -> None:
    """The best is chosen on one set of seeds and judged on the other, as for advice that differs."""
    table = always(frame(THREE))
    famo = {
        "p": (math.log(0.6 / 0.6) + math.log(0.5 / 0.8)) / 2,
        "q": 0.0,
        "r": (math.log(1 / 2) + math.log(3 / 3)) / 2,
    }
    equal = {
        "p": (math.log(1 / 0.6) + math.log(1 / 0.8)) / 2,
        "q": math.log(1 / 0.9),
        "r": (math.log(2 / 2) + math.log(1 / 3)) / 2,
    }
    nash = {"p": (math.log(0.4 / 0.6) + math.log(0.8 / 0.8)) / 2, "q": CAP, "r": (CAP + math.log(8 / 3)) / 2}
    by_hand = {"famo": famo, "equal": equal, "nash-mtl": nash}
    assert list(table["candidate"]) == ["famo", "equal", "nash-mtl"]
    assert list(table["worst"]) == ["q", "p", "q"]
    for row in table.itertuples():
        assert row.regret == pytest.approx(sum(by_hand[row.candidate].values()) / 3)
        assert row.worst_regret == pytest.approx(by_hand[row.candidate][row.worst])


def test_an_opponent_sees_no_variant_of_the_problem_it_advises_on() -> None:
    """Nash-MTL is best by far on both variants of p, and the opponent must not learn it there."""
    scores: Scores = {
        "p": {"equal": (1.0, 1.0), "nash-mtl": (0.3, 0.3)},
        "p, larger": {"equal": (1.0, 1.0), "nash-mtl": (0.3, 0.3)},
        "q": {"equal": (1.0, 1.0), "nash-mtl": (1.1, 1.1)},
    }
    advised = dict.fromkeys(scores, "nash-mtl")
    apart = regrets(frame(scores), advised, {problem: problem for problem in scores}).set_index("problem")
    assert apart["opponent"].to_dict() == {"p": "nash-mtl", "p, larger": "nash-mtl", "q": "nash-mtl"}
    assert set(apart["lower"]) == {""}
    together = regrets(frame(scores), advised, {"p": "p", "p, larger": "p", "q": "q"}).set_index("problem")
    assert together["opponent"].to_dict() == {"p": "equal", "p, larger": "equal", "q": "nash-mtl"}
    assert verdict(together.reset_index(), needed=1) == AdviceVerdict(lower=1, folds=2, needed=1)


def test_a_fold_of_many_variants_weighs_as_much_as_one_of_a_single_problem() -> None:
    scores: Scores = {
        **{f"p{k}": {"equal": (1.0, 1.0), "famo": (0.9, 0.9)} for k in range(5)},
        "q": {"equal": (1.0, 1.0), "famo": (1.3, 1.3)},
        "r": {"equal": (1.0, 1.0), "famo": (1.0, 1.0)},
    }
    folds = {problem: problem[0] for problem in scores}
    table = regrets(frame(scores), dict.fromkeys(scores, "famo"), folds).set_index("problem")
    assert table.loc["r", "opponent"] == "equal"


def test_regrets_do_not_depend_on_the_scale_of_a_problem_or_on_the_order_of_rows() -> None:
    scores = frame(THREE)
    advised = {"p": "famo", "q": "nash-mtl", "r": "equal"}
    expected = regrets(scores, advised, EACH)
    scaled = scores.assign(value=scores["value"] * scores["problem"].map({"p": 1e-3, "q": 7.0, "r": 1e5}))
    shuffled = scaled.iloc[np.random.default_rng(0).permutation(len(scaled))]
    pd.testing.assert_frame_equal(regrets(shuffled, advised, EACH), expected)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda scores: scores.assign(higher_is_better=True), "higher is better"),
        (lambda scores: scores.assign(value=scores["value"].where(scores.index != 3, 0.0)), "not positive and finite"),
        (lambda scores: scores.assign(value=scores["value"].where(scores.index != 3, np.nan)), "not positive"),
        (lambda scores: scores.drop(index=3), "not every candidate has a score for each seed"),
        (lambda scores: scores[scores["phase"] == "reported"], "not every candidate has a score"),
        (
            lambda scores: scores[(scores["problem"] != "q") | (scores["candidate"] != "famo")],
            "on q, not every candidate",
        ),
        (lambda scores: pd.concat([scores, scores.iloc[:1]]), "two rows for one"),
        (lambda scores: scores[scores["problem"] != "q"], "only one has {'q'}"),
        (lambda scores: scores.assign(phase="tuning"), "phase is 'tuning'"),
    ],
)
def test_scores_that_make_no_regret_are_refused(spoil, message) -> None:
    with pytest.raises(ValueError, match=message):
        regrets(spoil(frame(THREE)), dict.fromkeys(THREE, "equal"), EACH)


def test_folds_and_advice_must_fit_the_scores() -> None:
    scores, advised = frame(THREE), dict.fromkeys(THREE, "equal")
    with pytest.raises(ValueError, match="r is in no fold"):
        regrets(scores, advised, {"p": "p", "q": "q"})
    with pytest.raises(ValueError, match="fewer than two folds"):
        regrets(scores, advised, dict.fromkeys(THREE, "all"))
    with pytest.raises(ValueError, match="'fomo', advised on q, is none of"):
        regrets(scores, {**advised, "q": "fomo"}, EACH)
    with pytest.raises(ValueError, match="there are 3 folds, but the advice must be better in 6"):
        verdict(regrets(scores, advised, EACH))
