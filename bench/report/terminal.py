"""The leaderboard in the terminal, a table per problem, for 100 columns."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import evidence
from .front import print_search
from .labels import short
from .load import Results, load
from .words import NOTHING, interval, rate, relative, seeds, step_ratio, title

WIDTH = 100  # where the output isn't a terminal, which would know its own


def print_leaderboard(results: Path) -> None:
    """Print the leaderboard of ``results/<suite>``.

    Raises:
        FileNotFoundError: The folder isn't one that a suite wrote.
    """
    loaded = load(results)
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    console.print(Text(f"{title(loaded)}: {loaded.name}", style="bold"))
    if loaded.board.empty:
        console.print("No reported run has finished yet.")
    for problem, rows in loaded.board.groupby("problem", sort=False):
        facts = loaded.facts(str(problem))
        head = f"{problem}: {facts.score} on test at the last checkpoint ({facts.direction}), {seeds(rows)}"
        console.print("", Text(head), _table(rows, loaded), sep="\n", end="")
    print_search(loaded, console)
    notes = [f"Control {'holds' if one['holds'] else 'FAILED'}: {one['text']}" for one in evidence.controls(loaded)]
    if changed := evidence.repeated(loaded):
        notes.append(f"On other seeds: {changed}")
    if claimed := evidence.claims(loaded):
        notes.append(claimed)
    if notes:
        console.print("")
    for note in notes:
        console.print(Text(note, style="bold red" if " FAILED" in note else ""))


def _table(rows: pd.DataFrame, results: Results) -> Table:
    each = [row for _, row in rows.iterrows()]
    columns = {
        "method": [row["balancer"] for row in each],
        "rate": [rate(row["lr"]) + ("*" if row["grid_edge"] else "") for row in each],
        "score [95 %]": [interval(row["score"], row["score_low"], row["score_high"]) for row in each],
    }
    if results.baseline:
        columns[f"against {short(results.baseline, 13)}"] = [
            relative(row["scale"], row["relative"], row["relative_low"], row["relative_high"]) for row in each
        ]
    if results.ranking:
        columns["verdict"] = [row["verdict"] or NOTHING for row in each]
        if (rows["static_verdict"] != "").any():
            columns["against\nstatic"] = [row["static_verdict"] or NOTHING for row in each]
    if np.isfinite(rows["step_ratio"].astype(float)).any():
        columns["step\ntime"] = [step_ratio(row["step_ratio"], np.nan, np.nan) for row in each]

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for head in columns:
        if head == "method":
            table.add_column(head, overflow="fold", min_width=12, max_width=26)
        elif head in ("verdict", "against\nstatic"):
            table.add_column(Text(head), justify="right", min_width=7)  # "not settled" is broken rather than a number
        else:
            table.add_column(Text(head), justify="right", no_wrap=True)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*(Text(cell) for cell in cells))
    notes = ["* at the edge of the grid of learning rates"] if rows["grid_edge"].any() else []
    notes += [f"{row['failed']} of {row['seeds']} runs of {row['balancer']} failed" for row in each if row["failed"]]
    if notes:
        table.caption = Text("\n".join(notes))
        table.caption_justify = "left"
    return table
