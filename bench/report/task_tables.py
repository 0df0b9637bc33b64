"""Show which task paid: every method's metrics of single tasks, compared with equal weighting."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.analysis import task_scores
from bench.style.numbers import NOTHING, join, number, relative
from bench.style.short_label import short

from .results_folder import Results

MOST_NAMED = 4
"""Maximum number of metrics that a sentence names one by one; for more, it counts verdicts."""
MOST_PROBLEMS = 2
"""Maximum number of problems whose tasks are printed in the terminal; the page has them all."""
ARROWS = {", lower is better": " ↓", ", higher is better": " ↑"}
"""The sign for a metric's direction in the terminal."""
UNSETTLED = "?"
"""Text in the terminal for a change that is not settled."""


class TaskCell(TypedDict):
    """A method's metric: its mean, its change against equal weighting, and the verdict on this change, as text."""

    mean: str
    change: str
    verdict: str


class TaskTable(TypedDict):
    """A table of all methods on the metrics of single tasks.

    Attributes:
        header: The metrics, each with its unit and its direction.
        rows: The methods, from the best primary score to the worst, each with a cell per metric.
        incomplete: The methods whose means lack a seed, because a run failed.
    """

    header: list[str]
    rows: list[tuple[str, list[TaskCell]]]
    incomplete: list[str]


def task_table(results: Results) -> TaskTable | None:
    """Return the table of one problem's tasks; None if none of its metrics belongs to a task, or none was measured."""
    changes = _changes(results)
    changes = changes[changes["mean"].notna()]
    if changes.empty:
        return None
    metrics = changes.drop_duplicates("metric")
    labels = [label for label in results.board["balancer"] if label in set(changes["balancer"])]
    cells = {(row["balancer"], row["metric"]): _cell(row) for _, row in changes.iterrows()}
    missing: TaskCell = {"mean": NOTHING, "change": "", "verdict": ""}
    fewest = changes.groupby("balancer")["seeds"].min()
    runs = results.board.set_index("balancer")["seeds"]
    return {
        "header": [_head(row) for _, row in metrics.iterrows()],
        "rows": [(label, [cells.get((label, name), missing) for name in metrics["metric"]]) for label in labels],
        "incomplete": [label for label in labels if fewest[label] < runs[label]],
    }


def finding(results: Results, balancer: str) -> str:
    """Return a sentence on which of one problem's tasks a method helps and which it harms; empty without verdicts."""
    rows = _changes(results)
    rows = rows[(rows["balancer"] == balancer) & (rows["verdict"] != "")]
    if rows.empty:
        return ""
    if len(rows) > MOST_NAMED:
        counts = rows["verdict"].value_counts()
        verdicts = (word for word in ("better", "worse", "tie", "not settled") if word in counts)
        return f"Of {len(rows)} metrics of single tasks: {join(f'{counts[word]} {word}' for word in verdicts)}."
    parts = (f"{short(row['metric'], 40)} {row['verdict']} ({_change(row)})" for _, row in rows.iterrows())
    return f"Task by task: {join(parts)}."


def print_tasks(results: Results, console: Console) -> None:
    """Print the table of one problem's tasks, or a line that the page has it if ``console`` is too narrow for it."""
    found = task_table(results)
    if found is None:
        return
    columns = {"method": [short(label) for label, _ in found["rows"]]}
    for place, head in enumerate(found["header"]):
        columns[_with_arrow(head)] = [_line(cells[place]) for _, cells in found["rows"]]
    widths = _widths(columns, console.width)
    if sum(widths) + 2 * len(widths) > console.width:
        console.print(
            "",
            Text(f"Task by task: {len(widths) - 1} metrics are too wide for this table; the page has them."),
            sep="\n",
        )
        return
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for (head, _), width in zip(columns.items(), widths, strict=True):
        table.add_column(Text(head), justify="left" if head == "method" else "right", width=width)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*(Text(cell) for cell in cells))
    console.print("", Text("Task by task, means over seeds"), table, sep="\n", end="")
    for note in _notes(found, results):
        console.print(Text(note))


def _with_arrow(head: str) -> str:
    """Return the head of a column with an arrow for its direction, which takes less room than the words."""
    for words, arrow in ARROWS.items():
        head = head.replace(words, arrow)
    return head


def _widths(columns: Mapping[str, Sequence[str]], room: int) -> list[int]:
    """Return the widths of columns that hold their cells; where there is room, their heads take two lines at most."""
    widths = [max(map(len, [*cells, *head.split(" ")])) for head, cells in columns.items()]
    while sum(widths) + 2 * len(widths) < room:
        lines = [len(textwrap.wrap(head, width)) for head, width in zip(columns, widths, strict=True)]
        if max(lines) <= 2:
            break
        widths[lines.index(max(lines))] += 1
    return widths


def _notes(found: TaskTable, results: Results) -> list[str]:
    notes = []
    if any(cell["change"] for _, cells in found["rows"] for cell in cells):
        equal = short(results.baseline or "", 40)
        notes.append(f"beside a mean: its change against {equal}, seed by seed; {UNSETTLED} is not settled")
    if found["incomplete"]:
        notes.append(f"means of the runs that did not fail: {', '.join(map(short, found['incomplete']))}")
    return notes


def _changes(results: Results) -> pd.DataFrame:
    return task_scores(results.tables["scores"], results.tables["metrics"], results.roles, results.ranking)


def _head(row: pd.Series) -> str:
    unit = f" ({row['unit']})" if row["unit"] else ""
    return f"{row['metric']}{unit}, {'higher' if row['higher_is_better'] else 'lower'} is better"


def _cell(row: pd.Series) -> TaskCell:
    return {"mean": number(row["mean"]), "change": _change(row), "verdict": row["verdict"]}


def _change(row: pd.Series) -> str:
    """Write the change without its interval; empty if there is none, as for equal weighting itself."""
    return relative(row["scale"], row["relative"], np.nan, np.nan) if np.isfinite(row["relative"]) else ""


def _line(cell: TaskCell) -> str:
    verdict = UNSETTLED if cell["verdict"] == "not settled" else cell["verdict"]
    return " ".join(part for part in (cell["mean"], cell["change"], verdict) if part)
