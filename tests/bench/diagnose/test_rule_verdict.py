"""The rule succeeds if it wins six of seven problems of the evidence and all reserved ones, and not before all ran."""

import pandas as pd
import pytest

from bench.diagnose import rule_verdict

REGRETS = {"advice": (0.1, 0.2), "opponent": (0.3, 0.2), "": (0.2, 0.2)}


def judged(evidence: str, reserved: str) -> pd.DataFrame:
    """Return a table of problems: ``a`` where the advice wins, ``o`` its opponent, ``=`` neither, ``-`` missing."""
    rows = []
    for is_reserved, marks in ((False, evidence), (True, reserved)):
        for place, mark in enumerate(marks):
            lower = {"a": "advice", "o": "opponent", "=": "", "-": ""}[mark]
            pair = (float("nan"),) * 2 if mark == "-" else REGRETS[lower]
            rows.append((f"{'r' if is_reserved else 'p'}{place}", is_reserved, mark != "-", *pair, lower))
    table = pd.DataFrame(rows, columns=["problem", "reserved", "there", "regret", "opponent_regret", "lower"])
    return table.assign(verdict=rule_verdict.verdict(table))


@pytest.mark.parametrize(
    ("evidence", "reserved", "verdict", "counts"),
    [
        ("aaaaaaa", "aaaa", "succeeds", "on 7 of 7 problems of the evidence and on 4 of 4 reserved ones."),
        ("aaaoaaa", "aaaa", "succeeds", "on 6 of 7 problems of the evidence and on 4 of 4 reserved ones."),
        ("aaaoa=a", "aaaa", "fails", "on 5 of 7 problems of the evidence and on 4 of 4 reserved ones."),
        ("aaaaaaa", "oooo", "fails", "on 7 of 7 problems of the evidence and on 0 of 4 reserved ones."),
        ("aaaaaaa", "aaa=", "fails", "on 7 of 7 problems of the evidence and on 3 of 4 reserved ones."),
        ("aaaaaa-", "a---", "not decided", "on 6 of 6 problems of the evidence and on 1 of 1 reserved ones."),
        ("ooooooo", "----", "not decided", "on 0 of 7 problems of the evidence."),
    ],
)
def test_the_verdict_comes_first_with_both_counts_and_the_criterion(
    evidence: str, reserved: str, verdict: str, counts: str
) -> None:
    table = judged(evidence, reserved)
    assert set(table["verdict"]) == {verdict}
    told = rule_verdict.sentence(table)
    words = {"succeeds": "The rule succeeds in its test.", "fails": "The rule fails its test."}
    assert told.startswith(words.get(verdict, "The rule's test is not decided yet: "))
    assert counts in told
    assert told.endswith("it needs 6 of 7, and all 4 reserved ones.")


def test_what_is_missing_is_named() -> None:
    assert "yet: p6, r1, r2 and r3 are missing." in rule_verdict.sentence(judged("aaaaaa-", "a---"))
    assert "yet: r3 is missing." in rule_verdict.sentence(judged("aaaaaaa", "aaa-"))


def test_a_complete_test_on_fewer_problems_than_must_be_won_is_refused() -> None:
    with pytest.raises(ValueError, match="there are 3 folds, but the advice must be better in 6"):
        judged("aaa", "aaaa")
