"""State the result of the rule's test: whether the rule succeeds, as rule 34 of the protocol defines it."""

from typing import Literal

import pandas as pd

from bench.style.numbers import join

from . import regret

Verdict = Literal["succeeds", "fails", "not decided"]


def verdict(table: pd.DataFrame) -> Verdict:
    """Return whether the rule succeeds; it is not decided while a problem is missing.

    Args:
        table: One row per problem that the test needs: ``problem``, whether it is ``reserved``, whether its regrets are
            ``there``, and these: ``regret`` and ``opponent_regret``.

    Raises:
        ValueError: No problem is missing, but there are fewer than the rule must win.
    """
    if not table["there"].all():
        return "not decided"
    folds, reserved = table.assign(fold=table["problem"]), table["reserved"].astype(bool)
    of_evidence = regret.verdict(folds[~reserved])
    of_reserved = regret.verdict(folds[reserved], needed=int(reserved.sum()))
    return "succeeds" if of_evidence.succeeds and of_reserved.succeeds else "fails"


def sentence(table: pd.DataFrame) -> str:
    """Return the verdict in words, with what is missing, what was counted, and what the rule needs.

    Args:
        table: One row per problem that the test needs: ``problem``, ``reserved``, ``there``, ``lower`` (which of both
            has the lower regret, see `regret.regrets`), and the ``verdict``, which is the same in all rows.
    """
    there, reserved = table["there"].astype(bool), table["reserved"].astype(bool)
    lower = there & (table["lower"] == "advice")
    counts = f"{(lower & ~reserved).sum()} of {(there & ~reserved).sum()} problems of the evidence"
    if (there & reserved).any():
        counts += f" and on {(lower & reserved).sum()} of {(there & reserved).sum()} reserved ones"
    match table["verdict"].iloc[0]:
        case "succeeds":
            found = "The rule succeeds in its test"
        case "fails":
            found = "The rule fails its test"
        case _:
            absent = table.loc[~there, "problem"]
            are = "is" if len(absent) == 1 else "are"
            found = f"The rule's test is not decided yet: {join(absent)} {are} missing"
    return (
        f"{found}. The rule has a lower regret than its opponent, which always advises the method that is best on the "
        f"other problems, on {counts}. By rule 34 of the protocol, it needs {regret.NEEDED} of {(~reserved).sum()}, "
        f"and all {reserved.sum()} reserved ones."
    )
