"""Print the table of whole steps: for each network and place the methods' times with each number of tasks."""

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from bench.style.console import new_console
from bench.style.numbers import NOTHING, counted
from bench.style.place_names import PLACE_NAMES

from .contender import OurStep
from .gradient_check import CLEAN
from .step_summary import over_torchjd, summarise
from .step_table import BY_HAND, LEFT_OUT, LIBMTL, TORCHJD, Cell

LEGEND = (
    "ours, TorchJD, LibMTL: a step's time over equal weighting's, with which it took turns; of a package's ways the\n"
    "fastest. ours / TorchJD: the ratio of these two. by hand: a few lines that do PCGrad alone, and check nothing.\n"
    f"≠: the first step's gradient of the trunk differs from ours by {CLEAN:.1%} or more. Methods with random numbers\n"
    "are not compared, and Nash-MTL's gradients in direction only."
)


def show(table: pd.DataFrame) -> None:
    """Print the table that `step_table.measure_all` returned, the summary, and what was not measured."""
    console = new_console()
    ratios = over_torchjd(table)
    for (network, place), rows in table.groupby(["network", "place"], sort=False):
        title = Text(f"{network}: {PLACE_NAMES[str(place)]}", style="bold")
        console.print(title, _figures(rows, ratios), sep="\n", end="")
    console.print(LEGEND, style="dim")
    found = summarise(table)
    if found.cells:
        of_cells, open_cells = counted(found.cells, "cell"), found.cells - found.faster - found.slower
        text = f"Our step is faster than TorchJD's in {found.faster} of {of_cells}, and slower in {found.slower}."
        text += f" In {open_cells}, their 95 % intervals overlap."
        if np.isfinite(found.at_parameters):
            text += f" At all shared parameters it takes {found.at_parameters:.2f} of TorchJD's time (geometric mean)."
        console.print(Text(text, style="bold"))
    for package, rows in table[table["gradient_deviation"] >= CLEAN].groupby("contender", sort=False):
        largest = rows.groupby("method", sort=False)["gradient_deviation"].max()
        methods = ", ".join(f"{method} {_deviation(value)}" for method, value in largest.items())
        console.print(Text(f"Gradients of {package} that differ, by up to: {methods}"))
    for (method, place), reason in LEFT_OUT.items():
        console.print(Text(f"{method} at the {PLACE_NAMES[place]} is left out: {reason}"))
    missing = table[table["missing"] != ""]
    for (name, why), rows in missing.groupby(["contender", "missing"], sort=False):
        methods = ", ".join(rows["method"].drop_duplicates())
        console.print(Text(f"{name} was not measured in {counted(len(rows), 'cell')} ({methods}): {why}"))


def _figures(rows: pd.DataFrame, ratios: "pd.Series[float]") -> Table:
    """Return a table with a row for each method, and columns for each number of tasks."""
    shown = [name for name in (OurStep.name, TORCHJD.name, LIBMTL.name, BY_HAND.name) if name in set(rows["contender"])]
    num_tasks = sorted(rows["num_tasks"].unique())
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method")
    for T in num_tasks:
        for name in (*shown, "ours /\nTorchJD"):
            table.add_column(Text(f"T={T}\n{name}" if name == shown[0] else f"\n{name}"), justify="right", no_wrap=True)
    times = {(row["method"], row["num_tasks"], row["contender"]): _time(row) for _, row in rows.iterrows()}
    for method, of_method in rows.groupby("method", sort=False):
        cells: list[str] = []
        for T in num_tasks:
            cells += [times.get((method, T, name), NOTHING) for name in shown]
            cell = Cell(of_method["network"].iloc[0], T, of_method["place"].iloc[0], str(method))
            cells.append(f"{ratios[cell]:.2f}" if cell in ratios.index else NOTHING)
        table.add_row(str(method), *map(Text, cells))
    return table


def _deviation(value: float) -> str:
    return f"{value:.1%}" if np.isfinite(value) else "(not finite)"


def _time(row: "pd.Series[float]") -> str:
    if row["missing"]:
        return NOTHING
    return f"{row['ratio']:.2f}" + ("≠" if row["gradient_deviation"] >= CLEAN else "")
