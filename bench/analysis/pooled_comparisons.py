"""Compare every row of a table with equal weighting, over both sets of seeds, and put the effects on one axis."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .pooled_scores import pooled_scores
from .suite_tables import SuiteTables

COLUMNS = ["problem", "balancer", "seeds", "scale", "relative", "low", "high", "verdict", "effect"]


def pooled_comparisons(tables: SuiteTables, equal: str, balancers: Sequence[str]) -> pd.DataFrame:
    """Compare ``balancers`` with equal weighting on every problem.

    Args:
        tables: ``problems`` and ``scores`` are read.
        equal: The label of equal weighting; a problem without it has no rows.
        balancers: The labels of the others.

    Returns:
        A frame of ``COLUMNS``, in the order of ``problems`` and ``balancers``. ``relative`` to ``verdict`` are as in
        the leaderboard. ``effect`` is for a picture: negative is better. It is the mean logarithm of the ratio, or on
        the scale "difference" the mean loss over the size of equal weighting's mean score.
    """
    rows = []
    for problem in tables.problems["problem"]:
        (scores,) = pooled_scores(problem, tables)
        for balancer in (label for label in balancers if {label, equal} <= set(scores.values) and label != equal):
            found, gains = scores.against(balancer, equal), scores.gains(balancer, equal)
            size = 1.0 if scores.scale == "ratio" else abs(float(scores.values.loc[gains.index, equal].mean()))
            effect = -float(gains.mean()) / size if len(gains) and size else np.nan
            values = (len(gains), scores.scale, found.mean, found.low, found.high, found.verdict, effect)
            rows.append(dict(zip(COLUMNS, (problem, balancer, *values), strict=True)))
    return pd.DataFrame(rows, columns=COLUMNS)
