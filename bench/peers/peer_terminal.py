"""Print the table of peers: the numbers for each number of tasks, then in words how each peer differs from ours."""

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from bench.style.console import new_console
from bench.style.numbers import NOTHING

from .gradient_check import CLEAN

LEGEND = (
    "apart, stacked: the losses are differentiated one by one, or as entries of one stacked tensor.\n"
    "equal weighting: its step took turns with the peer's; ratio: the peer's step over equal weighting's.\n"
    "extra: the peer's step minus equal weighting's; over ours: its ratio to our GradNorm's extra time, which says\n"
    "little if the times of equal weighting differ between rows.\n"
    "gradient error: relative difference from the gradient of sum_i w_i L_i; the largest over parameters and steps.\n"
    "weight error: difference from our GradNorm's weights, with the same settings and losses, relative to how far\n"
    "ours moved."
)


def show(table: pd.DataFrame) -> None:
    """Print the table that `peer_table.measure` returned."""
    console = new_console()
    for num_tasks, rows in table.groupby("num_tasks", sort=False):
        console.print(Text(f"{num_tasks} tasks", style="bold"), _figures(rows), sep="\n", end="")
    console.print(LEGEND, style="dim")
    peers = table.drop_duplicates("contender")
    console.print(_differences(peers[peers["differs"] != ""]), end="")
    for row in peers[peers["missing"] != ""].itertuples():
        console.print(Text(f"{row.contender} was not measured: {row.missing}"))


def _figures(rows: pd.DataFrame) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("peer", min_width=26)
    heads = (
        *("step,\nms", "equal\nweighting, ms", "ratio\n[95 % interval]"),
        *("extra\nms", "extra,\nover ours", "gradient\nerror", "weight\nerror"),
    )
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
    for head in ("peer", "measures gradients of", "how it differs from ours with the same settings"):
        table.add_column(head, overflow="fold")
    for row in rows.itertuples():
        table.add_row(Text(str(row.contender)), Text(str(row.wrt)), Text(str(row.differs)))
    return table
