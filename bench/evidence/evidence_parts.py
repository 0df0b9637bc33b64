"""List the parts of the evidence: each problem in each of its tables."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from bench.analysis import label_of
from bench.run import suite_text
from bench.suite import suite_file
from bench.suite.suite_entries import Suite
from bench.suite.toml_table import SuiteError, closest

TABLES = {"A": "core", "B": "core-published", "reserved": "core-reserved"}
"""The suite that each table comes from. Table C is made from A and B; the reserved problems are in a table like A."""


@dataclass(frozen=True)
class EvidencePart:
    """A problem in a table; ``suite`` is the table's suite with this problem alone, and times no steps."""

    table: str
    suite: Suite

    @property
    def problem(self) -> str:
        """The problem's label."""
        return self.suite.problems[0].label

    @property
    def name(self) -> str:
        """The part's name, which is also its path below a folder of results: ``A/digit-pairs``."""
        return part_name(self.table, self.problem)

    def folder(self, results: Path) -> Path:
        """Return the part's folder below ``results``."""
        return results / "evidence" / self.name


def part_name(table: str, problem: str) -> str:
    """Return the name of the part of a problem, given by its label, in a table."""
    return f"{table}/{re.sub(r'[^a-z0-9]+', '-', problem.lower())}"


def planned(table: str) -> dict[str, str]:
    """Return the names of the problems of a table by their labels, as its suite's file has them."""
    entries = suite_text.read(suite_file.find(TABLES[table])).values["problems"]
    return {label_of(entry): str(entry["name"]) for entry in entries}


def is_kept(table: str, problem: str, kept: Path) -> bool:
    """Return whether the folder ``kept`` has the part of a problem, given by its label, in a table."""
    return (kept / part_name(table, problem) / "scores.parquet").is_file()


def missing(kept: Path, tables: Iterable[str] = ("A", "B")) -> list[str]:
    """Return the names of the parts of ``tables`` that the folder ``kept`` lacks."""
    return [
        part_name(table, problem) for table in tables for problem in planned(table) if not is_kept(table, problem, kept)
    ]


def parts(only: Iterable[str] = (), reserved: bool = False) -> list[EvidencePart]:
    """Return the parts, problem by problem, A before B; controls first.

    Args:
        only: names of parts, of tables, or labels of problems; if there are none, all parts are returned.
        reserved: whether the parts are those of the reserved problems.

    Raises:
        SuiteError: nothing is called so.
    """
    tables = ["reserved"] if reserved else ["A", "B"]
    suites = {table: suite_file.load(suite_file.find(TABLES[table])) for table in tables}
    everything = [
        EvidencePart(table, replace(suite, problems=(suite.problems[k],), cost_rounds=0))
        for k in range(max(len(suite.problems) for suite in suites.values()))
        for table, suite in suites.items()
        if k < len(suite.problems)
    ]
    everything.sort(key=lambda part: not part.suite.problems[0].problem.control)
    names = {name for part in everything for name in (part.name, part.table, part.problem)}
    chosen = list(only)
    if unknown := [name for name in chosen if name not in names]:
        raise SuiteError(f"no part of the evidence is called {unknown[0]!r}{closest(unknown[0], names)}")
    return [part for part in everything if not chosen or {part.name, part.table, part.problem} & {*chosen}]
