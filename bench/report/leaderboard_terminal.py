"""Print the leaderboard in the terminal, 100 columns wide where the width is unknown: a table or two per problem."""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from bench.style.console import new_console
from bench.style.numbers import NOTHING, interval, rate, relative
from bench.style.short_label import short

from . import evidence, step_ratios, task_tables
from .answer import caveat, edge_remedy, far_apart, mixed
from .front_report import print_search
from .results_folder import Results, load
from .verdict_wording import seeds, title

WIDTH = 100
"""Width in characters where the output is not a terminal."""
SCORE, AGAINST = "score [95 %]", "against "
"""The heads of columns with intervals; the latter is the beginning of one."""
NARROW = {"method": 12, "verdict": 7, "against\nstatic": 7}
"""Columns of words, which are narrowed before columns of numbers are, and their least widths."""
WIDEST = 26
"""Maximum width of the column of methods."""


def print_leaderboard(results: Path) -> None:
    """Print the leaderboard of the results folder of a suite, and what supports its verdicts.

    Raises:
        FileNotFoundError: no suite wrote this folder.
    """
    loaded = load(results)
    console = new_console(WIDTH)
    console.print(Text(f"{title(loaded)}: {loaded.name}", style="bold"))
    if loaded.board.empty:
        console.print("No reported run has finished yet.")
    for problem, rows in loaded.board.groupby("problem", sort=False):
        facts = loaded.facts(str(problem))
        head = f"{problem}: {facts.score} on test at the last checkpoint ({facts.direction}), {seeds(rows)}"
        console.print("", Text(head), _table(rows, loaded, console.width), sep="\n", end="")
        if len(loaded.problems_in(loaded.board)) <= task_tables.MOST_PROBLEMS:
            task_tables.print_tasks(loaded.only(str(problem)), console)
    print_search(loaded, console)
    outcomes = evidence.controls(loaded)
    notes = [f"Control {'holds' if control['holds'] else 'FAILED'}: {control['text']}" for control in outcomes]
    if changed := evidence.repeated(loaded):
        notes.append(f"Repeated on other seeds: {changed}")
    notes += [
        sentence
        for sentence in (
            *(evidence.claims(loaded), caveat(loaded), mixed(loaded), step_ratios.warning(loaded)),
            *far_apart(loaded),
        )
        if sentence
    ]
    if notes:
        console.print("")
    for note in notes:
        console.print(Text(note, style="bold red" if " FAILED" in note else ""))


def _fit(columns: dict[str, list[str]], width: int) -> dict[str, int]:
    """Return the width of each column, so that the table fits into ``width`` characters.

    The column of methods is narrowed first, then the verdicts. If that is not enough, scores in ``columns`` are changed
    in place, and then what they are against equal weighting: their intervals move to a second line.
    """

    def needed(head: str) -> int:
        return max(len(line) for cell in (head, *columns[head]) for line in cell.split("\n"))

    widths = {head: needed(head) for head in columns}
    widths["method"] = min(widths["method"], WIDEST)

    def over() -> int:
        return sum(widths.values()) + 2 * len(widths) - width  # two spaces between columns, one at each side

    for head, least in NARROW.items():
        if head in widths and over() > 0:
            widths[head] = max(min(widths[head], least), widths[head] - over())
    for head in columns:
        if over() > 0 and (head == SCORE or head.startswith(AGAINST)):
            columns[head] = [cell.replace(" [", "\n[") for cell in columns[head]]
            widths[head] = needed(head)
    return widths


def _table(rows: pd.DataFrame, results: Results, width: int) -> Table:
    each = [row for _, row in rows.iterrows()]
    columns = {
        "method": [row["balancer"] for row in each],
        "lr": [rate(row["lr"]) + ("*" if row["grid_edge"] else "") for row in each],
        SCORE: [interval(row["score"], row["score_low"], row["score_high"]) for row in each],
    }
    if results.baseline:
        columns[f"{AGAINST}{short(results.baseline, 13)}"] = [
            relative(row["scale"], row["relative"], row["relative_low"], row["relative_high"]) for row in each
        ]
    if results.ranking:
        columns["verdict"] = [row["verdict"] or NOTHING for row in each]
        if (rows["static_verdict"] != "").any():
            columns["against\nstatic"] = [row["static_verdict"] or NOTHING for row in each]
    if np.isfinite(rows["step_ratio"].astype(float)).any():
        columns["step\ntime"] = [step_ratios.brief(row, results).replace(" [", "\n[") for row in each]

    widths = _fit(columns, width)
    tight = sum(widths.values()) + 2 * len(widths) > width
    table = Table(box=SIMPLE_HEAD, padding=(0, 0 if tight else 1, 0, 0), pad_edge=False)
    for head in columns:
        justify: Literal["left", "right"] = "left" if head == "method" else "right"
        table.add_column(Text(head), justify=justify, overflow="fold", width=widths[head])
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*(Text(cell) for cell in cells))
    edge = f"* at the edge of the grid: a better learning rate may lie beyond; {edge_remedy(rows, results)}"
    notes = [edge] if rows["grid_edge"].any() else []
    notes += [f"{row['failed']} of {row['seeds']} runs of {row['balancer']} failed" for row in each if row["failed"]]
    if notes:
        table.caption = Text("\n".join(notes))
        table.caption_justify = "left"
    return table
