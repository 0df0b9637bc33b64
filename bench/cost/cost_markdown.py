"""``python -m bench.cost.cost_markdown``: print a table of the costs that are kept, as the documentation shows it."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

import balancers
from bench.style.markdown_table import markdown_table
from bench.style.place_names import PLACE_NAMES

from .method_costs import BATCH, place
from .timed_methods import AGAIN, EQUAL, EVERY_TEN, FEATURES, LAYER

KEPT = Path("results/reference/cost")
PRODUCTS = "products alone"
CASES = {
    "linear 2048": "linear layer 2048 → 2048",
    "convolution 512": "convolution 512 → 512, 3 × 3, of 2 images of 4 × 4",
    "narrow heads": "layer 256 wide before narrow heads",
    "ResNet-18": "ResNet-18, dense heads",
    "transformer": "transformer of 12 blocks",
}
"""A description of each case of ``limits.csv`` other than the toy problem, by its name there."""


class CostTable(StrEnum):
    """A table of the documentation."""

    LIMITS = "limits"
    FLOOR = "floor"
    METHODS = "methods"
    GROUPS = "groups"


def limits(kept: Path) -> str:
    """Return what a step of GradNorm takes over one of equal weighting, by case."""
    table = pd.read_csv(kept / "limits.csv")
    columns = (LAYER.name, PRODUCTS, FEATURES.name, EVERY_TEN.name)
    lines = []
    for (problem, heads, batch, tasks), rows in table.groupby(["problem", "heads", "batch", "tasks"], sort=False):
        is_toy = str(problem).startswith("regression")
        if is_toy and heads == "separate":
            continue
        ratios, times = rows.set_index("method")["ratio"], rows.set_index("method")["median_ms"]
        name, equal = "toy problem" if is_toy else CASES[str(problem)], float(times[EQUAL.name])
        cells = [f"{ratios[column]:.2f}" if column in ratios else "" for column in columns]
        lines.append(
            [f"{name}, {tasks} tasks, batch {batch}", f"{equal:.2g}" if equal < 10 else f"{equal:.0f}", *cells]
        )
    header = ["", "equal, ms", "last shared layer", "its products alone", "features", "layer, `update_every=10`"]
    return markdown_table(header, lines)


def floor(kept: Path) -> str:
    """Return the time of GradNorm beside that of what it cannot do without, on the toy problem."""
    ratios, flops = _toy(kept, "ratio"), _toy(kept, "flops")
    rows = {
        "the T products and their norms alone": ratios.loc[PRODUCTS],
        "GradNorm at the layer": ratios.loc[LAYER.name],
        "GradNorm at the features": ratios.loc[FEATURES.name],
        "arithmetic with the products": flops.loc[LAYER.name] / flops.loc[EQUAL.name],
    }
    lines = [[name, *(f"{value:.2f}" for value in values)] for name, values in rows.items()]
    return markdown_table(["", *(f"{T} tasks" for T in ratios.columns)], lines)


def methods(kept: Path) -> str:
    """Return what a step takes with each method over one of equal weighting, the cheapest first."""
    ratios = _of_methods(kept)
    lines = [
        [f"`{name}`", PLACE_NAMES.get(place(name) or "", ""), *(f"{value:.2f}" for value in row)]
        for name, row in zip(ratios.index, ratios.to_numpy(), strict=True)
    ]
    return markdown_table(["", "gradients of", *(f"{T} tasks" for T in ratios.columns)], lines)


def groups(kept: Path) -> str:
    """Return what a step takes with the methods of each kind, from the cheapest to the dearest, and with GradNorm."""
    ratios, toy, columns = _of_methods(kept), _toy(kept, "ratio"), (2, 10)
    names = pd.Series({name: _kind(name) for name in ratios.index})
    lines = []
    for kind, label in KINDS.items():
        some = ratios[names == kind]
        if kind == "gradnorm":
            ways = (LAYER, FEATURES, EVERY_TEN)
            lines.append([label, *(" / ".join(f"{float(toy[T][way.name]):.2f}" for way in ways) for T in columns)])
        elif len(some):
            lines.append([label.format(len(some)), *(_span(some[T]) for T in columns)])
    return markdown_table(["Method", *(f"{T} tasks" for T in columns)], lines)


KINDS: Mapping[str, str] = {
    "losses": "{} methods that read only losses, such as `uncertainty` and `dwa`",
    "again": "`famo`, with its second forward pass",
    "gradnorm": "`gradnorm`: last shared layer / features / layer with `update_every=10`",
    "gradients": "{} methods that read gradients of the features or of a layer, such as `pcgrad` and `nash-mtl`",
    "parameters": "{} methods that read gradients of all shared parameters, such as `moco`",
    "more": "{} methods that look at a second batch or differentiate each residual, such as `auto-lambda` and `ntk`",
}
"""The kinds of methods, with the words of the table: see `_kind`."""


def _span(ratios: "pd.Series[float]") -> str:
    low, high = f"{ratios.min():.2f}", f"{ratios.max():.2f}"
    return low if low == high else f"{low} – {high}"


def _kind(name: str) -> str:
    cls = balancers.get(name)
    if name in (EQUAL.name, AGAIN.name, "static", "random", "gradnorm"):
        return ""
    if cls.looks_again:
        return "again"
    if cls.reads in ("second batch", "residuals"):
        return "more"
    if cls.reads == "losses":
        return "losses"
    return "parameters" if place(name) == "parameters" else "gradients"


def _of_methods(kept: Path) -> pd.DataFrame:
    """Return the ratios by method and number of tasks, without equal weighting itself, the cheapest method first."""
    ratios = pd.read_csv(kept / "methods.csv").pivot(index="method", columns="tasks", values="ratio")
    return ratios.loc[ratios[2].sort_values().index].drop([EQUAL.name, AGAIN.name])


def _toy(kept: Path, column: str) -> pd.DataFrame:
    """Return a column for the toy problem with heads as one product, by method and number of tasks."""
    table = pd.read_csv(kept / "limits.csv")
    is_toy = table["problem"].str.startswith("regression") & (table["heads"] == "batched") & (table["batch"] == BATCH)
    return table[is_toy].pivot(index="method", columns="tasks", values=column)


WRITERS: Mapping[CostTable, Callable[[Path], str]] = {
    CostTable.LIMITS: limits,
    CostTable.FLOOR: floor,
    CostTable.METHODS: methods,
    CostTable.GROUPS: groups,
}


def main(
    which: Annotated[CostTable, typer.Argument(help="Which table.", show_default=False)],
    kept: Annotated[Path, typer.Option(help="Folder of the costs.")] = KEPT,
) -> None:
    """Print a table of costs as the documentation shows it.

    `limits` is GradNorm on our models, `floor` beside what it cannot do without;
    `methods` has every method, `groups` their kinds.
    """
    try:
        typer.echo(WRITERS[which](kept))
    except FileNotFoundError as error:
        raise typer.BadParameter(f"{error.filename} is not there; make bench-cost measures it") from error


if __name__ == "__main__":
    typer.run(main)
