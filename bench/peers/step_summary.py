"""Compare our steps with TorchJD's: the ratio of each cell, and two figures on all of them."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from .contender import OurStep
from .step_table import TORCHJD, Cell

FASTER = 0.9
"""Our step over TorchJD's, up to which ours counts as faster."""


class RatioSummary(NamedTuple):
    """Two figures on all cells.

    Attributes:
        cells: number of cells in which both sides were measured.
        faster: share of these in which our step takes at most `FASTER` of TorchJD's time; nan if there are none.
        at_parameters: geometric mean of our time over TorchJD's at all shared parameters; nan if there are none.
    """

    cells: int
    faster: float
    at_parameters: float


def over_torchjd(table: pd.DataFrame) -> "pd.Series[float]":
    """Return our time over that of TorchJD's fastest way, by cell, where both sides were measured.

    Each side's time is its ratio to the steps of equal weighting that it took turns with.
    """
    measured = table[table["missing"] == ""].set_index([*Cell._fields, "contender"])["ratio"].unstack("contender")
    sides = measured.reindex(columns=[OurStep.name, TORCHJD.name]).dropna()
    return (sides[OurStep.name] / sides[TORCHJD.name]).rename("over_torchjd")


def summarise(ratios: "pd.Series[float]") -> RatioSummary:
    """Return the figures on the ratios that `over_torchjd` returned."""
    at_parameters = ratios[ratios.index.get_level_values("place") == "parameters"]
    return RatioSummary(
        len(ratios),
        float((ratios <= FASTER).mean()) if len(ratios) else float("nan"),
        float(np.exp(np.log(at_parameters).mean())) if len(at_parameters) else float("nan"),
    )
