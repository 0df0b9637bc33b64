"""Write the tables of the evidence as a results folder, which the report reads like that of any suite."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bench.report.results_folder import COLUMNS
from bench.run import atomic_file
from bench.run.suite_text import KEPT
from bench.suite import suite_file

from .evidence_parts import TABLES

TIMED_ON = "timed-on.json"
"""The file of a part with the facts about the machine that timed its steps."""
LARGE = ("scores", "runs")
"""Tables that are written as Parquet; all others are CSV files."""


def write(tables: Mapping[str, pd.DataFrame], kept: Path, out: Path) -> None:
    """Write the ``tables``, the suite's file and the facts about the machine into the folder ``out``.

    Tables of an earlier time that are not among them are removed at the end. Files that the report does not read stay,
    such as those of `bench.evidence advice`.

    Args:
        tables: What `evidence_tables.make` returns.
        kept: The folder of the parts, whose facts about the machines are brought together.
        out: The folder to write.
    """
    folder = out / "tables"
    written = set()
    for name, table in tables.items():
        path = folder / f"{name}{'.parquet' if name in LARGE else '.csv'}"
        if name in LARGE:
            atomic_file.write_parquet(path, table)
        elif len(table):
            atomic_file.write(path, table.to_csv(index=False).encode())
        else:
            continue
        written.add(path)
    for old in {*folder.glob("*.csv"), *folder.glob("*.parquet")} - written:
        if old.stem in (*COLUMNS, *tables):
            old.unlink()
    atomic_file.write(out / KEPT, suite_file.find(TABLES["A"]).read_bytes())
    facts = _together(_read(kept, "environment.json"))
    if timed_on := _read(kept, TIMED_ON):
        facts["steps_timed_on"] = _together(timed_on)
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    atomic_file.write(out / "environment.json", f"{text}\n".encode())


def _read(kept: Path, name: str) -> list[dict[str, Any]]:
    """Return the facts that all parts keep in files of one name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(kept.glob(f"*/*/{name}"))]


def _together(facts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the facts of all parts as one object; a fact that differs between them becomes a list of its values."""
    names = dict.fromkeys(name for each in facts for name in each)
    found: dict[str, Any] = {}
    for name in names:
        values: list[Any] = []
        for each in facts:
            if each.get(name) not in values:
                values.append(each.get(name))
        if all(isinstance(value, dict) for value in values):
            found[name] = _together(values)
        else:
            found[name] = values[0] if len(values) == 1 else values
    return found
