"""Write the time of a step relative to equal weighting, and say how far it can be relied on."""

import numpy as np
import pandas as pd

from bench.style.numbers import step_ratio

from .results_folder import Results

WIDE = 0.2
"""The interval of a step ratio is wide if it is longer than this share of the ratio."""
AGAIN = "delete the folder `costs` in the suite's results folder and run the suite again; finished runs are kept"
"""How steps are timed again."""


def brief(row: pd.Series, results: Results) -> str:
    """Write a method's step ratio from its row of the leaderboard: ``1.20×``, or ``7.97× [2.54, 11.42]`` if it is wide.

    That of equal weighting is 1 by definition.
    """
    if row["balancer"] == results.baseline and np.isfinite(row["step_ratio"]):
        return step_ratio(1.0, np.nan, np.nan)
    ratio, low, high = (float(row[name]) for name in ("step_ratio", "step_ratio_low", "step_ratio_high"))
    wide = high - low > WIDE * ratio
    return step_ratio(ratio, *((low, high) if wide else (np.nan, np.nan)))


def full(row: pd.Series, results: Results) -> str:
    """Write a method's step ratio with its interval; that of equal weighting is 1 by definition."""
    if row["balancer"] == results.baseline:
        return brief(row, results)
    return step_ratio(row["step_ratio"], row["step_ratio_low"], row["step_ratio_high"])


def busy_cores(results: Results) -> float:
    """Return how many cores other programs used when the timing of steps began; 0 for few, nan if that is not known."""
    costs = results.tables["costs"]
    return float(costs["busy_cores"].max()) if "busy_cores" in costs else float("nan")


def warning(results: Results) -> str:
    """Return a sentence that steps were timed on a busy computer, and a remedy; empty if they were not."""
    busy = busy_cores(results)
    if not busy > 0:
        return ""
    return (
        f"Steps were timed while other programs used {busy:.1f} cores, so the times may be too long. To time them "
        f"again on a quiet computer, {AGAIN}."
    )


def noise(results: Results) -> str:
    """Return a sentence on the ratio of equal weighting to itself in the table of costs; empty if it has none."""
    costs = results.tables["costs"]
    if not (costs["balancer"] == results.baseline).any():
        return ""
    return (
        f"A step of {results.baseline} was timed next to another step of {results.baseline}: how far that ratio is "
        "from 1 shows the noise of the timing."
    )
