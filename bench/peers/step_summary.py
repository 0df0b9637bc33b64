"""Compare our steps with TorchJD's: the ratio of each cell, and three figures on all of them."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from .contender import OurStep
from .step_table import TORCHJD, Cell


class RatioSummary(NamedTuple):
    """Figures on all cells in which both sides were measured.

    Attributes:
        cells: number of these cells.
        faster: number of those in which the 95 % interval of our time lies below that of TorchJD's.
        slower: number of those in which it lies above.
        at_parameters: geometric mean of our time over TorchJD's at all shared parameters; nan if there are none.
    """

    cells: int
    faster: int
    slower: int
    at_parameters: float


def over_torchjd(table: pd.DataFrame) -> "pd.Series[float]":
    """Return our time over that of TorchJD's fastest way, by cell, where both sides were measured.

    Each side's time is its ratio to the steps of equal weighting that it took turns with.
    """
    ours, theirs = _sides(table, "ratio")
    return (ours / theirs).dropna().rename("over_torchjd")


def is_slower(table: pd.DataFrame) -> "pd.Series[bool]":
    """Return by cell whether the 95 % interval of our time lies above that of TorchJD's."""
    (low, _), (_, their_high) = _sides(table, "ratio_low"), _sides(table, "ratio_high")
    return low > their_high


def summarise(table: pd.DataFrame) -> RatioSummary:
    """Return the figures on the table that `step_table.measure_all` returned."""
    ratios = over_torchjd(table)
    (_, their_low), (high, _) = _sides(table, "ratio_low"), _sides(table, "ratio_high")
    at_parameters = ratios[ratios.index.get_level_values("place") == "parameters"]
    return RatioSummary(
        len(ratios),
        int((high < their_low).sum()),
        int(is_slower(table).sum()),
        float(np.exp(np.log(at_parameters).mean())) if len(at_parameters) else float("nan"),
    )


def _sides(table: pd.DataFrame, column: str) -> tuple["pd.Series[float]", "pd.Series[float]"]:
    """Return a column of our rows and of TorchJD's, by cell; nan where it was not measured."""
    measured = table[table["missing"] == ""].set_index([*Cell._fields, "contender"])[column].unstack("contender")
    sides = measured.reindex(columns=[OurStep.name, TORCHJD.name])
    return sides[OurStep.name], sides[TORCHJD.name]
