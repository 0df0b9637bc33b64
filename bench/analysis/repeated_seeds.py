"""The verdicts of the same cells on other seeds, beside those of the first."""

import pandas as pd

from .leaderboard import AGAINST_EQUAL, AGAINST_STATIC

AGAINST = {"equal": AGAINST_EQUAL, "static": AGAINST_STATIC}
VALUES = ("relative", "low", "high", "verdict")
COLUMNS = [
    *("problem", "balancer", "against", "scale", *VALUES, *(f"again_{value}" for value in VALUES)),
    *("flipped", "changed"),
]


def repeated_verdicts(first: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """The comparisons of two leaderboards of the same problems and methods that have verdicts on both.

    Args:
        first: The leaderboard of the reported runs.
        again: The leaderboard of the repeated ones.

    Returns:
        A frame of ``COLUMNS``, a row per problem, balancer and what it is compared with (``against`` "equal" or
        "static"). ``flipped`` is true where one verdict is "better" and the other "worse", ``changed`` where they are
        different but not that. Bounds of a problem whose scale isn't the same on both are not comparable; ``scale`` is
        that of the first.
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
