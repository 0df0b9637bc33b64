"""Let each method have the better of two optimisers, chosen on validation: table C, "free"."""

from collections.abc import Sequence
from dataclasses import fields

import pandas as pd

from .pooled_scores import pooled_scores
from .suite_tables import SuiteTables

CELL = ["problem", "balancer"]
SHORT_MEMORY, AS_PUBLISHED = "short memory", "as published"
CHOICE = [*CELL, "table", "short_memory", "as_published"]
COLUMNS = [*CELL, "table", "equal_table", "seeds", "scale", "relative", "low", "high", "verdict"]


def free_choice(short_memory: SuiteTables, as_published: SuiteTables) -> pd.DataFrame:
    """Choose for each method and problem the table in which its chosen learning rate has the better validation score.

    Args:
        short_memory: Table A; ``problems`` and ``selection`` are read. The means in ``selection`` are already on the
            scale of comparisons (see `choose_learning_rates`). No test score is read.
        as_published: Table B.

    Returns:
        A frame of ``CHOICE``, one row per problem and balancer of either table. ``short_memory`` and ``as_published``
        are the mean validation scores, not-a-number where the method is not in that table or failed. ``table`` is
        `SHORT_MEMORY` or `AS_PUBLISHED`; the first if they are equal, or if neither is a number.

    Raises:
        ValueError: The two tables averaged the scores of a problem on different scales.
    """
    means = [_chosen_means(each.selection) for each in (short_memory, as_published)]
    both = means[0].merge(means[1], on=CELL, how="outer", suffixes=("_a", "_b"), sort=False)
    differ = both["scale_a"].notna() & both["scale_b"].notna() & (both["scale_a"] != both["scale_b"])
    if differ.any():
        raise ValueError(
            f"{both.loc[differ, 'problem'].iloc[0]}: one table has geometric means of the validation scores and the "
            "other arithmetic ones, because a score of one of them is not positive; the tables cannot be compared"
        )
    facts = short_memory.problems.set_index("problem")["higher_is_better"].astype(bool)
    sign = both["problem"].map(facts).map({True: -1.0, False: 1.0})
    ours, theirs = sign * both["mean_a"], sign * both["mean_b"]
    published = (theirs < ours) | (ours.isna() & theirs.notna())
    table = published.map({True: AS_PUBLISHED, False: SHORT_MEMORY})
    return both.assign(table=table, short_memory=both["mean_a"], as_published=both["mean_b"])[CHOICE]


def free_tables(short_memory: SuiteTables, as_published: SuiteTables) -> SuiteTables:
    """Return table C as a suite's tables: each method's rows on a problem are those of the table that it chose.

    Rows that belong to no method, such as those of tasks trained alone, are those of ``short_memory``; so are the
    costs, which don't depend on the optimiser's settings. Both sets of seeds follow the same choice.
    """
    choice = free_choice(short_memory, as_published)
    published = pd.MultiIndex.from_frame(choice.loc[choice["table"] == AS_PUBLISHED, CELL])
    merged = {}
    for name in (each.name for each in fields(SuiteTables)):
        ours, theirs = getattr(short_memory, name), getattr(as_published, name)
        if name != "costs" and set(CELL) <= set(ours):
            kept = ours[~pd.MultiIndex.from_frame(ours[CELL]).isin(published)]
            taken = theirs[pd.MultiIndex.from_frame(theirs[CELL]).isin(published)]
            ours = pd.concat([each for each in (kept, taken) if len(each)] or [ours], ignore_index=True)
        merged[name] = ours
    return SuiteTables(**merged)


def free_comparisons(
    short_memory: SuiteTables, as_published: SuiteTables, equal: str, balancers: Sequence[str]
) -> pd.DataFrame:
    """Compare each method with equal weighting, over both sets of seeds; each has the table that it chose.

    Returns:
        A frame of ``COLUMNS``, in the order of ``problems`` and ``balancers``. ``table`` and ``equal_table`` say which
        table the two sides come from. ``relative``, ``low``, ``high`` and ``verdict`` are as in the leaderboard. The
        row of equal weighting itself has no comparison, and its verdict is empty.
    """
    tables = free_tables(short_memory, as_published)
    choice = free_choice(short_memory, as_published).set_index(CELL)["table"].to_dict()
    rows = []
    for problem in tables.problems["problem"]:
        (scores,) = pooled_scores(problem, tables)
        if equal not in scores.values:
            continue
        for balancer in (label for label in balancers if label in scores.values):
            row = {"problem": problem, "balancer": balancer, "scale": scores.scale, "verdict": ""}
            row |= {"table": choice[problem, balancer], "equal_table": choice[problem, equal]}
            row["seeds"] = len(scores.gains(balancer, equal))
            if balancer != equal:
                found = scores.against(balancer, equal)
                row |= {"relative": found.mean, "low": found.low, "high": found.high, "verdict": found.verdict}
            rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def _chosen_means(selection: pd.DataFrame) -> pd.DataFrame:
    """Return the mean validation score of each method's chosen learning rate, and the scale of the mean."""
    chosen = selection[selection["chosen"].astype(bool)]
    means = chosen[[*CELL, "scale"]].assign(mean=chosen["mean_validation_score"].astype(float))
    if means.duplicated(CELL).any():
        raise ValueError("the selection has more than one chosen learning rate for a problem and balancer")
    return means
