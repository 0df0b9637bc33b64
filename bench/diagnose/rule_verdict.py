"""State the result of the rule's test: whether the rule succeeds, as rule 34 of the protocol defines it."""

from typing import Literal

import pandas as pd

from bench.style.numbers import join

from . import regret

Verdict = Literal["succeeds", "fails", "not decided"]


def verdict(table: pd.DataFrame) -> Verdict:
    """Return whether the rule succeeds; it is not decided while that depends on a missing problem.

    Args:
        table: One row per problem that the test needs: ``problem``, whether it is ``reserved``, whether its regrets are
            ``there``, and these: ``regret`` and ``opponent_regret``.

    Raises:
        ValueError: The evidence has fewer problems than the rule must win.
    """
    folds, reserved, there = table.assign(fold=table["problem"]), table["reserved"].astype(bool), table["there"]
    if (~reserved).sum() < regret.NEEDED:
        raise ValueError(f"there are {(~reserved).sum()} folds, but the advice must be better in {regret.NEEDED}")
    missing = ~there.astype(bool)
    for these, needed in ((~reserved, regret.NEEDED), (reserved, int(reserved.sum()))):
        won = regret.verdict(folds[these & ~missing], needed=0).lower
        if won + (these & missing).sum() < needed:
            return "fails"
    return "not decided" if missing.any() else "succeeds"


def sentence(table: pd.DataFrame) -> str:
    """Return the verdict in words, with what is missing, what was counted, and what the rule needs.

    Args:
        table: One row per problem that the test needs: ``problem``, ``reserved``, ``there``, ``lower`` (which of both
            has the lower regret, see `regret.regrets`), and the ``verdict``, which is the same in all rows.
    """
    there, reserved = table["there"].astype(bool), table["reserved"].astype(bool)
    lower = there & (table["lower"] == "advice")
    absent = table.loc[~there, "problem"]
    are_missing = "" if absent.empty else f"{join(absent)} {'is' if len(absent) == 1 else 'are'} missing"
    needs = f"it needs {regret.NEEDED} of {(~reserved).sum()}, and all {reserved.sum()} reserved ones"
    counts = f"{(lower & ~reserved).sum()} of {(there & ~reserved).sum()} problems of the evidence"
    if (there & reserved).any():
        counts += f" and on {(lower & reserved).sum()} of {(there & reserved).sum()} reserved ones"
    match table["verdict"].iloc[0]:
        case "succeeds":
            found = "The rule that reads the profile succeeds in its test"
        case "fails":
            found = "The rule that reads the profile fails its test"
            needs += f" ({are_missing}, and can't change that)" if are_missing else ""
        case _:
            found = f"The test of the rule that reads the profile is not decided yet: {are_missing}"
    return (
        f"{found}. Its choice is better than always advising the method that is best on the other problems on {counts}"
        f"; {needs}."
    )
