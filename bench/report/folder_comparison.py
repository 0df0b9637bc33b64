"""Compare two results folders: which scores changed beyond noise."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from bench.analysis import CONFIDENCE, Comparison, compare, compare_unpaired, comparison_scale, primary_rows
from bench.analysis.intervals import Scale, Verdict
from bench.run.atomic_file import BadFileError
from bench.style.numbers import NOTHING, rate, relative

from .stored_table import read_json, read_table, require_same_runs

ABOUT = ("commit", "torch", "processor", "gpu", "protocol")
"""Keys of ``environment.json`` that may explain a change."""
HASH_OF_VERSION_1 = "2cfc1de24852147316716ee3a9a9cdd437ba33780b3e04197139e4be8e18858a"
"""The hash of the protocol's text, which results made before there were versions hold in place of version 1."""
TABLES = ("runs", "scores", "problems")


@dataclass(frozen=True)
class ComparedCell:
    """The scores of one method on one problem in both folders, compared.

    Attributes:
        rates: learning rate in the first and in the second folder.
        failed: number of failed runs in the first and in the second folder.
        paired: True if both folders have the same seeds.
        identical: True if both folders have the same scores, bit for bit.
        lost: True if the second folder lacks a score that the first has.
        comparison: the second folder compared with the first, on the scores that are there.
    """

    problem: str
    balancer: str
    rates: tuple[float, float]
    failed: tuple[int, int]
    paired: bool
    identical: bool
    lost: bool
    comparison: Comparison

    @property
    def verdict(self) -> Verdict:
        """The verdict on the second folder. A score that it lost counts as worse."""
        return "worse" if self.lost else self.comparison.verdict


@dataclass(frozen=True)
class Differences:
    """All differences between two folders.

    Attributes:
        notes: sentences about everything that is not a score.
        cells: one comparison per problem and method that both folders have.
    """

    notes: list[str]
    cells: list[ComparedCell]

    @property
    def worse(self) -> bool:
        """True if any score of the second folder is worse beyond noise, or lost."""
        return any(cell.verdict == "worse" for cell in self.cells)


def differences(first: Path, second: Path) -> Differences:
    """Compare the reported test scores of the last checkpoints in ``second`` with those in ``first``.

    Scores are paired by seed if both folders have the same seeds; otherwise the interval is Welch's. The scale, ratio
    or difference, is the one that the leaderboard uses. A score is missing where every run failed and no constant
    predictor is known, so that nothing could be imputed.

    Raises:
        FileNotFoundError: a folder lacks the table of runs, scores or problems.
        BadFileError: the folders have no problem and method in common, score a problem by different metrics, or have
            damaged tables.
    """
    runs, scores, problems = ([_table(folder, name) for folder in (first, second)] for name in TABLES)
    for folder, *tables in zip((first, second), runs, scores, problems, strict=True):
        require_same_runs(folder, *tables)
    common = sorted(set(problems[0]["problem"]) & set(problems[1]["problem"]), key=list(problems[0]["problem"]).index)
    facts = [table.set_index("problem") for table in problems]
    for problem in common:
        scored_by = [tuple(table.loc[problem, ["primary", "higher_is_better"]]) for table in facts]
        if scored_by[0] != scored_by[1]:
            old, new = scored_by[0][0], scored_by[1][0]
            raise BadFileError(f"{problem} is scored by {old!r} in {first}, by {new!r} in {second}")
    finals = [_finals(table, facts) for table, facts in zip(scores, problems, strict=True)]
    cells = []
    for problem in common:
        sides = [table[table["problem"] == problem] for table in finals]
        higher_is_better = bool(facts[0].loc[problem, "higher_is_better"])
        scale = comparison_scale(pd.concat(sides)["value"].dropna(), higher_is_better)
        for balancer in [label for label in dict.fromkeys(sides[0]["balancer"]) if label in set(sides[1]["balancer"])]:
            old, new = (side[side["balancer"] == balancer].set_index("seed")["value"] for side in sides)
            paired = set(old.index) == set(new.index)
            if paired:
                new = new[old.index]
            comparison = _compared(old, new, paired, higher_is_better, scale)
            of_cell = [table[(table["problem"] == problem) & (table["balancer"] == balancer)] for table in runs]
            of_cell = [table[table["phase"] == "reported"] for table in of_cell]
            cells.append(
                ComparedCell(
                    problem,
                    balancer,
                    (float(of_cell[0]["lr"].iloc[0]), float(of_cell[1]["lr"].iloc[0])),
                    (int((of_cell[0]["status"] == "failed").sum()), int((of_cell[1]["status"] == "failed").sum())),
                    paired,
                    paired and bool(np.array_equal(old.to_numpy(), new.to_numpy(), equal_nan=True)),
                    _lost(old, new, paired),
                    comparison,
                )
            )
    if not cells:
        raise BadFileError(f"{first} and {second} have no problem and method in common")
    return Differences(
        [*_about(first, second), *_alone(first, finals[0], finals[1]), *_alone(second, *finals[::-1])], cells
    )


def _compared(old: pd.Series, new: pd.Series, paired: bool, higher_is_better: bool, scale: Scale) -> Comparison:
    """Compare the ``new`` scores with the ``old`` ones, without those that are missing."""
    if paired:
        both = old.notna() & new.notna()
        return compare(new[both].tolist(), old[both].tolist(), higher_is_better, scale)
    return compare_unpaired(new.dropna().tolist(), old.dropna().tolist(), higher_is_better, scale)


def _lost(old: pd.Series, new: pd.Series, paired: bool) -> bool:
    """Tell whether ``new`` lacks a score that ``old`` has on the same seed; on other seeds, where ``old`` has all."""
    return bool((old.notna() & new.isna()).any() if paired else new.isna().any() and not old.isna().any())


def table(found: Differences) -> Table:
    """Return a terminal table of the cells that are not identical."""
    lines = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    lines.add_column("problem", overflow="fold")
    lines.add_column("method", overflow="fold")
    for head in ("learning rate", "failed runs", "B against A", "seeds", "verdict on B"):
        lines.add_column(head, justify="right")
    for cell in found.cells:
        if cell.identical:
            continue
        c = cell.comparison
        lines.add_row(
            Text(cell.problem),
            Text(cell.balancer),
            _change(*map(rate, cell.rates)),
            _change(*map(str, cell.failed)) if any(cell.failed) else NOTHING,
            relative(c.scale, c.mean, c.low, c.high),
            "same" if cell.paired else "different",
            cell.verdict or NOTHING,
        )
    return lines


def summary(found: Differences) -> str:
    """Return ``37 of 42 scores are identical to the bit; of the others: 2 worse, 1 better, 1 tie, 1 not settled.``

    If some are worse or better, it also says how many would be by chance.
    """
    same = sum(cell.identical for cell in found.cells)
    text = f"{same} of {len(found.cells)} scores are identical to the bit"
    unnamed = "without a verdict"
    verdicts = pd.Series([cell.verdict or unnamed for cell in found.cells if not cell.identical], dtype=str)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.value_counts().items())
    if not counts:
        return f"{text}."
    told = f"{text}; of the others: {counts}."
    if not {"worse", "better"} & set(verdicts):
        return told
    by_chance = (1 - CONFIDENCE) * len(verdicts)
    number = "fewer than 1" if by_chance < 1 else f"about {by_chance:.0f}"
    return f"{told} Each is at {CONFIDENCE:.0%} and uncorrected: by chance alone, {number} would be better or worse."


def _table(folder: Path, name: str) -> pd.DataFrame:
    """Read a table that every results folder has."""
    table = read_table(folder, name)
    if table is None:
        raise FileNotFoundError(f"{folder} has no table of {name}: it is not the results folder of a finished suite")
    return table


def _finals(scores: pd.DataFrame, problems: pd.DataFrame) -> pd.DataFrame:
    """Return the primary test scores of the last checkpoints of reported runs."""
    chosen = (scores["phase"] == "reported") & (scores["split"] == "test") & (scores["checkpoint"] == "last")
    return primary_rows(scores[chosen], problems)


def _about(first: Path, second: Path) -> list[str]:
    files = [folder / "environment.json" for folder in (first, second)]
    if not all(file.is_file() for file in files):
        return []
    facts = [read_json(file) for file in files]
    old, new = ({**about, **about.get("versions", {})} for about in facts)
    for about in (old, new):
        if about.get("protocol") == HASH_OF_VERSION_1:
            about["protocol"] = "1"
    return [f"{fact}: {old.get(fact)} → {new.get(fact)}" for fact in ABOUT if old.get(fact) != new.get(fact)]


def _alone(folder: Path, here: pd.DataFrame, there: pd.DataFrame) -> list[str]:
    """Return notes on what only ``folder`` has: problems, methods, and methods on a problem that both have."""
    notes, rest = [], here
    for what in ("problem", "balancer"):
        if only := [label for label in dict.fromkeys(here[what]) if label not in set(there[what])]:
            notes.append(f"only in {folder}: {', '.join(only)}")
            rest = rest[~rest[what].isin(only)]
    has = set(zip(there["problem"], there["balancer"], strict=True))
    cells = dict.fromkeys(zip(rest["problem"], rest["balancer"], strict=True))
    if only := [f"{balancer} on {problem}" for problem, balancer in cells if (problem, balancer) not in has]:
        notes.append(f"only in {folder}: {', '.join(only)}")
    return notes


def _change(old: str, new: str) -> str:
    return old if old == new else f"{old} → {new}"
