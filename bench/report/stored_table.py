"""Read what a results folder holds: its tables, from Parquet or from CSV, and its JSON files."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from bench.run.atomic_file import BadFileError

TEXT = frozenset(
    {
        *("problem", "balancer", "key", "phase", "status", "reason", "checkpoint", "split", "metric", "task", "name"),
        *("summary", "description", "tasks", "samples", "data", "primary", "unit", "device", "part", "what", "options"),
        *("searched", "scale", "against", "verdict", "again_verdict", "static_verdict"),
        *("static", "why_not", "table", "equal_table", "kind", "family", "column"),
        *("beyond", "low_beyond", "high_beyond", "q_low_beyond", "q_high_beyond"),
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

    Raises:
        BadFileError: The file is damaged.
    """
    for suffix, read in ((".parquet", pd.read_parquet), (".csv", _from_csv)):
        path = (folder / "tables" / name).with_suffix(suffix)
        if path.is_file():
            try:
                return read(path)
            except (ValueError, OSError) as error:
                raise BadFileError(f"{path} can't be read: {error}") from error
    return None


def read_json(path: Path) -> dict[str, Any]:
    """Read an object from a JSON file.

    Raises:
        BadFileError: The file does not hold one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadFileError(f"{path} can't be read: {error}") from error
    if not isinstance(value, dict):
        raise BadFileError(f"{path} holds no object")
    return value


def require_same_runs(folder: Path, runs: pd.DataFrame, scores: pd.DataFrame, problems: pd.DataFrame) -> None:
    """Check that three tables of the results folder ``folder`` are whole, as far as they say so of each other.

    Raises:
        BadFileError: A problem of the runs has no row in the table of problems, a score belongs to no run, or a run
            says neither that it succeeded nor that it failed.
    """
    if unknown := sorted({*runs["problem"], *scores["problem"]} - {*problems["problem"]}):
        raise BadFileError(f"the table problems in {folder} has no row for {unknown[0]!r}: it is damaged")
    if missing := len({*scores["key"]} - {*runs["key"]}):
        raise BadFileError(f"the table runs in {folder} is damaged: it lacks {missing} of the runs that have scores")
    if not runs["status"].isin(["ok", "failed"]).all():
        raise BadFileError(f"the table runs in {folder} is damaged: it has a run without a status")


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
