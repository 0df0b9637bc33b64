"""Compare the verdicts of two leaderboards of the same methods and problems on different seeds."""

import pandas as pd

from .leaderboard import AGAINST_EQUAL, AGAINST_STATIC

AGAINST = {"equal": AGAINST_EQUAL, "static": AGAINST_STATIC}
VALUES = ("relative", "low", "high", "verdict")
COLUMNS = [
    *("problem", "balancer", "against", "scale", *VALUES, *(f"again_{value}" for value in VALUES)),
    *("flipped", "changed"),
]


def repeated_verdicts(first: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """Pair the comparisons that have a verdict on both leaderboards.

    Args:
        first: The leaderboard of the reported runs.
        again: The leaderboard of the repeated runs.

    Returns:
        A frame of ``COLUMNS``, one row per problem, balancer and method that it is compared with (``against`` is
        "equal" or "static"). ``flipped`` is true if one verdict is "better" and the other "worse", ``changed`` if the
        two differ in another way. If a problem's scale differs between the two leaderboards, their bounds are not
        comparable; ``scale`` is that of ``first``.
    """
    both = first.merge(again, on=["problem", "balancer"], suffixes=("", " again"), validate="one_to_one")
    tables = []
    for against, columns in AGAINST.items():
        table = both[["problem", "balancer", "scale"]].assign(against=against)
        for column, value in zip(columns, VALUES, strict=True):
            table[value], table[f"again_{value}"] = both[column], both[f"{column} again"]
        tables.append(table[(table["verdict"] != "") & (table["again_verdict"] != "")])
    joined = pd.concat(tables, ignore_index=True)
    pairs = zip(joined["verdict"], joined["again_verdict"], strict=True)
    joined["flipped"] = [{one, other} == {"better", "worse"} for one, other in pairs]
    joined["changed"] = (joined["verdict"] != joined["again_verdict"]) & ~joined["flipped"].astype(bool)
    return joined[COLUMNS]
