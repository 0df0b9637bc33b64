"""The rule succeeds if it wins six of seven problems and all reserved ones; it fails once it can't any more."""

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
        ("aaaaaaa", "aaaa", "succeeds", "on 7 of 7 problems of the evidence and on 4 of 4 reserved ones;"),
        ("aaaoaaa", "aaaa", "succeeds", "on 6 of 7 problems of the evidence and on 4 of 4 reserved ones;"),
        ("aaaoa=a", "aaaa", "fails", "on 5 of 7 problems of the evidence and on 4 of 4 reserved ones;"),
        ("aaaaaaa", "oooo", "fails", "on 7 of 7 problems of the evidence and on 0 of 4 reserved ones;"),
        ("aaaaaaa", "aaa=", "fails", "on 7 of 7 problems of the evidence and on 3 of 4 reserved ones;"),
        ("aaaaaa-", "a---", "not decided", "on 6 of 6 problems of the evidence and on 1 of 1 reserved ones;"),
        ("aaaaaoa", "aaa-", "not decided", "on 6 of 7 problems of the evidence and on 3 of 3 reserved ones;"),
        ("aaa-oa-", "aaaa", "not decided", "on 4 of 5 problems of the evidence and on 4 of 4 reserved ones;"),
        ("aaaaoo-", "aaaa", "fails", "on 4 of 6 problems of the evidence and on 4 of 4 reserved ones;"),
        ("aaaoo-a", "----", "fails", "on 4 of 6 problems of the evidence;"),
        ("aaaaaaa", "a--o", "fails", "on 7 of 7 problems of the evidence and on 1 of 2 reserved ones;"),
    ],
)
def test_the_verdict_comes_first_with_both_counts_and_the_criterion(
    evidence: str, reserved: str, verdict: str, counts: str
) -> None:
    table = judged(evidence, reserved)
    assert set(table["verdict"]) == {verdict}
    told = rule_verdict.sentence(table)
    words = {"succeeds": "profile succeeds in its test. ", "fails": "profile fails its test. "}
    assert words.get(verdict, "profile is not decided yet: ") in told
    assert counts in told
    assert "it needs 6 of 7, and all 4 reserved ones" in told


def test_what_is_missing_is_named() -> None:
    assert "yet: p6, r1, r2 and r3 are missing." in rule_verdict.sentence(judged("aaaaaa-", "a---"))
    assert "yet: r3 is missing." in rule_verdict.sentence(judged("aaaaaaa", "aaa-"))
    failed = rule_verdict.sentence(judged("aaoaaoa", "aa--"))
    assert failed.endswith("all 4 reserved ones (r2 and r3 are missing, and can't change that).")
    assert rule_verdict.sentence(judged("aaoaaoa", "aaaa")).endswith("all 4 reserved ones.")


def test_a_complete_test_on_fewer_problems_than_must_be_won_is_refused() -> None:
    with pytest.raises(ValueError, match="there are 3 folds, but the advice must be better in 6"):
        judged("aaa", "aaaa")
