"""Compute a line and a band over seeds, for curves and weight trajectories."""

from collections.abc import Sequence

import numpy as np
import pandas as pd


def band(frame: pd.DataFrame, by: Sequence[str], value: str, log: bool) -> pd.DataFrame:
    """Return centre and range of ``frame[value]`` in each group of equal values in the columns ``by``.

    The columns ``by`` should not include the seed, so that a group holds all seeds. The centre is the arithmetic mean,
    or with ``log`` the geometric mean, which is the arithmetic mean of what a logarithmic axis shows. The band runs
    from the lowest to the highest seed: with a handful of seeds a quantile would be interpolated, and a standard
    deviation could leave the positive numbers. Values that are not finite (or with ``log`` not positive) are left out.
    After the step at which a run failed, the line is therefore the mean of the other runs.

    Returns:
        The columns ``by``, then ``centre``, ``low``, ``high`` and ``seeds`` (the number of values).
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
    """Return the rows of ``frame`` at no more than ``most`` steps, which are steps of its longest runs.

    Each run in ``frame`` has its own evenly spaced steps. A mean over seeds at the steps of a run that ended early
    would be that run's value alone, so those steps are left out.

    Args:
        frame: Has the columns ``key`` (of the run) and ``step``.
        most: Maximum number of steps.
    """
    last = frame.groupby("key")["step"].transform("max")
    steps = np.sort(frame.loc[last == last.max(), "step"].unique())
    return frame[frame["step"].isin(steps[:: max(1, -(-len(steps) // most))])]
