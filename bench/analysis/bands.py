"""A line and a band over seeds, for curves and weight trajectories."""

from collections.abc import Sequence

import numpy as np
import pandas as pd


def band(frame: pd.DataFrame, by: Sequence[str], value: str, log: bool) -> pd.DataFrame:
    """Centre and range of ``frame[value]`` in each group of the columns ``by`` (which leave the seeds together).

    The centre is the arithmetic mean, or with ``log`` the geometric mean, which is the arithmetic one of what a
    logarithmic axis shows. The band runs from the lowest to the highest seed: with a handful of seeds a quantile would
    be interpolated, and a standard deviation could leave the positive numbers. Values that aren't finite (or with
    ``log`` not positive) are left out, so behind a step where a run failed the line is that of the others.

    Returns:
        The columns ``by``, then ``centre``, ``low``, ``high`` and ``seeds`` (how many values there were).
    """
    usable = np.isfinite(frame[value].astype(float))
    if log:
        usable &= frame[value] > 0
    kept = frame[usable]
    shown = np.log(kept[value].astype(float)) if log else kept[value].astype(float)
    groups = kept.assign(shown=shown).groupby(list(by), sort=False, dropna=False)["shown"]
    table = groups.agg(centre="mean", low="min", high="max", seeds="count").reset_index()
    if log:
        table[["centre", "low", "high"]] = np.exp(table[["centre", "low", "high"]])
    return table


def at_common_steps(frame: pd.DataFrame, most: int) -> pd.DataFrame:
    """The rows of ``frame`` (with ``key`` and ``step``) at no more than ``most`` steps of its longest runs.

    For rows of which each run has its own evenly spaced steps: at those of a run that ended early, and nowhere else, a
    mean over seeds would be that run alone.
    """
    last = frame.groupby("key")["step"].transform("max")
    steps = np.sort(frame.loc[last == last.max(), "step"].unique())
    return frame[frame["step"].isin(steps[:: max(1, -(-len(steps) // most))])]
