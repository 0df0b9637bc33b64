"""Two results folders side by side: what changed beyond noise."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from bench.analysis import Comparison, compare, compare_unpaired, comparison_scale, primary_rows
from bench.run.atomic_file import BadFileError
from bench.style.numbers import NOTHING, rate, relative

ABOUT = ("commit", "torch", "processor", "gpu", "protocol")
"""Facts of ``environment.json`` that may explain a change."""
TABLES = ("runs", "scores", "problems")


@dataclass(frozen=True)
class ComparedCell:
    """A method on a problem, in both folders; ``comparison`` is of the second with the first.

    ``paired`` says whether the seeds are the same. ``identical`` cells have the same scores to the bit.
    """

    problem: str
    balancer: str
    rates: tuple[float, float]
    failed: tuple[int, int]
    paired: bool
    identical: bool
    comparison: Comparison


@dataclass(frozen=True)
class Differences:
    """What is to be said of two folders; ``notes`` are sentences about all that is not a score."""

    notes: list[str]
    cells: list[ComparedCell]

    @property
    def worse(self) -> bool:
        """Whether anything is worse beyond noise."""
        return any(cell.comparison.verdict == "worse" for cell in self.cells)


def differences(first: Path, second: Path) -> Differences:
    """The reported test scores of the last checkpoints in ``second`` compared with those in ``first``.

    Seed by seed where the seeds are the same, else by Welch's interval; on the scale of ratios or differences that the
    leaderboard uses.

    Raises:
        FileNotFoundError: a folder has no ``tables`` of runs, scores and problems.
        BadFileError: they have no problem and method in common, or a problem's score is another in each.
    """
    runs, scores, problems = ([_table(folder, name) for folder in (first, second)] for name in TABLES)
    common = sorted(set(problems[0]["problem"]) & set(problems[1]["problem"]), key=list(problems[0]["problem"]).index)
    facts = [table.set_index("problem") for table in problems]
    for problem in common:
        told = [tuple(table.loc[problem, ["primary", "higher_is_better"]]) for table in facts]
        if told[0] != told[1]:
            raise BadFileError(f"{problem} is scored by {told[0][0]!r} in {first}, by {told[1][0]!r} in {second}")
    finals = [_finals(table, facts) for table, facts in zip(scores, problems, strict=True)]
    cells = []
    for problem in common:
        sides = [table[table["problem"] == problem] for table in finals]
        higher_is_better = bool(facts[0].loc[problem, "higher_is_better"])
        scale = comparison_scale(pd.concat(sides)["value"].dropna(), higher_is_better)
        for balancer in [label for label in dict.fromkeys(sides[0]["balancer"]) if label in set(sides[1]["balancer"])]:
            old, new = (side[side["balancer"] == balancer].set_index("seed")["value"].dropna() for side in sides)
            paired = set(old.index) == set(new.index)
            if paired:
                new = new[old.index]
            method = compare if paired else compare_unpaired
            mine = [table[(table["problem"] == problem) & (table["balancer"] == balancer)] for table in runs]
            mine = [table[table["phase"] == "reported"] for table in mine]
            cells.append(
                ComparedCell(
                    problem,
                    balancer,
                    (float(mine[0]["lr"].iloc[0]), float(mine[1]["lr"].iloc[0])),
                    (int((mine[0]["status"] == "failed").sum()), int((mine[1]["status"] == "failed").sum())),
                    paired,
                    paired and bool(np.array_equal(old.to_numpy(), new.to_numpy())),
                    method(new.tolist(), old.tolist(), higher_is_better, scale),
                )
            )
    if not cells:
        raise BadFileError(f"{first} and {second} have no problem and method in common")
    return Differences(
        [*_about(first, second), *_alone(first, finals[0], finals[1]), *_alone(second, *finals[::-1])], cells
    )


def table(found: Differences) -> Table:
    """The cells that are not identical."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("problem", overflow="fold")
    shown.add_column("method", overflow="fold")
    for head in ("rate", "failed", "second against first", "seeds", "verdict"):
        shown.add_column(head, justify="right")
    for cell in found.cells:
        if cell.identical:
            continue
        c = cell.comparison
        shown.add_row(
            Text(cell.problem),
            Text(cell.balancer),
            _change(*map(rate, cell.rates)),
            _change(*map(str, cell.failed)) if any(cell.failed) else NOTHING,
            relative(c.scale, c.mean, c.low, c.high),
            "same" if cell.paired else "others",
            c.verdict or NOTHING,
        )
    return shown


def summary(found: Differences) -> str:
    """``37 of 42 scores are identical to the bit; of the others 1 is better, 2 worse, 1 tie, 1 not settled.``"""
    same = sum(cell.identical for cell in found.cells)
    said = f"{same} of {len(found.cells)} scores are identical to the bit"
    verdicts = pd.Series([cell.comparison.verdict or "untold" for cell in found.cells if not cell.identical], dtype=str)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.value_counts().items())
    return f"{said}; of the others: {counts}." if counts else f"{said}."


def _table(folder: Path, name: str) -> pd.DataFrame:
    """A table from its Parquet file, or from CSV where that is all that was kept."""
    path = folder / "tables" / name
    if path.with_suffix(".parquet").is_file():
        return pd.read_parquet(path.with_suffix(".parquet"))
    if path.with_suffix(".csv").is_file():
        return pd.read_csv(path.with_suffix(".csv"))
    raise FileNotFoundError(f"{folder} has no table of {name}: it is not the results folder of a suite that was run")


def _finals(scores: pd.DataFrame, problems: pd.DataFrame) -> pd.DataFrame:
    """The primary test scores of the last checkpoints of reported runs."""
    chosen = (scores["phase"] == "reported") & (scores["split"] == "test") & (scores["checkpoint"] == "last")
    return primary_rows(scores[chosen], problems)


def _about(first: Path, second: Path) -> list[str]:
    files = [folder / "environment.json" for folder in (first, second)]
    if not all(file.is_file() for file in files):
        return []
    facts = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    old, new = ({**about, **about.get("versions", {})} for about in facts)
    return [f"{fact}: {old.get(fact)} → {new.get(fact)}" for fact in ABOUT if old.get(fact) != new.get(fact)]


def _alone(folder: Path, here: pd.DataFrame, there: pd.DataFrame) -> list[str]:
    """What only one of them has."""
    said = []
    for what in ("problem", "balancer"):
        if only := [label for label in dict.fromkeys(here[what]) if label not in set(there[what])]:
            said.append(f"only in {folder}: {', '.join(only)}")
    return said


def _change(old: str, new: str) -> str:
    return old if old == new else f"{old} → {new}"
