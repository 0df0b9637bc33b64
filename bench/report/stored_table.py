"""Read a table of a results folder, from Parquet or from CSV."""

from pathlib import Path

import pandas as pd

TEXT = frozenset(
    {
        *("problem", "balancer", "key", "phase", "status", "reason", "checkpoint", "split", "metric", "task", "name"),
        *("summary", "description", "tasks", "samples", "data", "primary", "unit", "device", "part", "what", "options"),
        *("searched", "scale", "against", "verdict", "again_verdict", "static_verdict"),
    }
)
"""Columns that hold text in every table. In a CSV file, a label such as ``1`` or ``NA`` must not become a number."""
MAY_BE_MISSING = "task"
"""Column of `TEXT` in which an empty field stands for a missing value: the metric belongs to no single task."""


def read_table(folder: Path, name: str) -> pd.DataFrame | None:
    """Read the table ``name`` of the results folder ``folder``.

    The Parquet file is read if there is one, else the CSV file, which may be all that was kept.

    Returns:
        The table, or None if the folder has neither file.
    """
    path = folder / "tables" / name
    if path.with_suffix(".parquet").is_file():
        return pd.read_parquet(path.with_suffix(".parquet"))
    if path.with_suffix(".csv").is_file():
        return _from_csv(path.with_suffix(".csv"))
    return None


def _from_csv(path: Path) -> pd.DataFrame:
    # "control" is the name of a control in the table of controls, and true or false in the table of problems.
    text = TEXT | {"control"} if path.stem == "controls" else TEXT
    columns = pd.read_csv(path, nrows=0).columns
    return pd.read_csv(
        path,
        dtype=dict.fromkeys(text, str),
        keep_default_na=False,
        na_values={column: [""] for column in columns if column not in text or column == MAY_BE_MISSING},
    )
