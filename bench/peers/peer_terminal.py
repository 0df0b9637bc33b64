"""The table in the terminal: figures for each number of tasks, then in words how the contenders differ from ours."""

import sys

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .gradient_check import CLEAN

WIDTH = 120  # where the output isn't a terminal, which would know its own
NOTHING = "–"
LEGEND = (
    "apart, stacked: how the losses are differentiated; equal's: a step of equal weighting, in turn with this one;\n"
    "of ours: how many times our extra milliseconds, which says little where equal's differ between rows.\n"
    "gradient off: from that of sum_i w_i L_i, relative to it, the most among parameters and steps.\n"
    "weights off: from those of ours, set alike and given the same losses, relative to how far ours moved."
)


def show(table: pd.DataFrame) -> None:
    """Prints what `table.measure` gave."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    for num_tasks, rows in table.groupby("num_tasks", sort=False):
        console.print(Text(f"{num_tasks} tasks", style="bold"), _figures(rows), sep="\n", end="")
    console.print(LEGEND, style="dim")
    told = table.drop_duplicates("contender")
    console.print(_differences(told[told["differs"] != ""]), end="")
    for row in told[told["missing"] != ""].itertuples():
        console.print(Text(f"{row.contender} was not measured: {row.missing}"))


def _figures(rows: pd.DataFrame) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("step", min_width=26)
    heads = ("ms", "equal's", "ratio [95 %]", "extra ms", "of ours", "gradient off", "weights off")
    for head in heads:
        table.add_column(Text(head), justify="right", no_wrap=True)
    for _, row in rows.iterrows():
        name = Text(f"{row['contender']} {row['version']}".rstrip())
        table.add_row(name, *([NOTHING] * len(heads) if row["missing"] else _cells(row)))
    return table


def _cells(row: "pd.Series[float]") -> list[Text]:
    gradient = _share(row["gradient_deviation"])
    return [
        Text(f"{row['median_ms']:.2f}"),
        Text(f"{row['equal_ms']:.2f}"),
        Text(f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"),
        Text(f"{row['extra_ms']:.2f}"),
        Text(f"{row['times_ours']:.1f}×"),
        Text(gradient, style="" if row["gradient_deviation"] <= CLEAN else "bold red"),
        Text(_share(row["weights_deviation"])),
    ]


def _share(value: float) -> str:
    return f"{value:.0e}" if 0 < value < 1e-4 else f"{value:.2%}"


def _differences(rows: pd.DataFrame) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in ("step", "gradients of", "how it differs from ours, set alike"):
        table.add_column(head, overflow="fold")
    for row in rows.itertuples():
        table.add_row(Text(str(row.contender)), Text(str(row.wrt)), Text(str(row.differs)))
    return table
