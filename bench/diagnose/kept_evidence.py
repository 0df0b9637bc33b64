"""Read the evidence's findings on the candidates and on the rule, from tables that come with the package.

``python -m bench.evidence tables`` and ``advice`` write them, from the runs in ``results/reference/core``.
"""

from pathlib import Path

import pandas as pd

FOLDER = Path(__file__).parent / "kept"
RANGES = "ranges.csv"
"""File of each candidate's range over the problems: candidate, q_low, q_high, cost_low, cost_high."""
REGRETS = "regrets.csv"
"""File of the rule's test: `bench.evidence.tested_advice.REGRETS`. `rule_verdict.sentence` words it."""
CANDIDATES = "candidates.csv"
"""File of the regret of always advising the same: `regret.ALWAYS`."""


def ranges() -> pd.DataFrame | None:
    """Return what candidates gained and cost; None if the evidence has not been run."""
    return _read(RANGES)


def regrets() -> pd.DataFrame | None:
    """Return the result of the rule's test; None if it has not been tested."""
    table = _read(REGRETS)
    if table is None:
        return None
    nobody = table["there"].astype(bool) & table["lower"].isna()  # a CSV does not tell no name from none known
    return table.assign(lower=table["lower"].mask(nobody, ""))


def candidates() -> pd.DataFrame | None:
    """Return the regret of each candidate, the lowest first; None if the rule has not been tested."""
    return _read(CANDIDATES)


def _read(name: str) -> pd.DataFrame | None:
    return pd.read_csv(FOLDER / name) if (FOLDER / name).is_file() else None
