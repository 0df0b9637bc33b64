"""``python -m bench.peers.peer_markdown``: print a table beside other packages as the documentation shows it."""

import itertools
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from bench.style.markdown_table import markdown_table
from bench.style.numbers import NOTHING
from bench.style.place_names import PLACE_NAMES

from . import step_summary
from .contender import OurStep
from .step_table import BY_HAND, LIBMTL, METHODS, PLACES, TORCHJD
from .trunk_networks import NETWORKS

KEPT = Path("results/reference/peers")
SHOWN = ("pcgrad", "nash-mtl", "upgrad")
"""The methods of the table of steps; the file has all."""
NETWORK_NAMES = {
    "toy": "toy problem",
    "mlp": "MLP of 4 × 512",
    "conv": "small convolutional network",
    "resnet-18": "ResNet-18",
    "transformer": "transformer",
}
GRADNORMS = {
    "our GradNorm": "ours",
    "double backward (apart)": "double backward, losses kept apart",
    "double backward (stacked)": "double backward, losses stacked",
    "gradnorm-pytorch": "`gradnorm-pytorch` {}",
    "LibMTL": "`LibMTL` {} (patched to run; all shared parameters)",
}
"""The implementations of GradNorm, by their names in ``peers.csv``; with a place for the version of a package."""


class PeerTable(StrEnum):
    """A table of the documentation."""

    STEPS = "steps"
    COUNTS = "counts"
    SLOWER = "slower"
    BY_HAND = "by-hand"
    SOLVERS = "solvers"
    GRADNORM = "gradnorm"


def steps(kept: Path) -> str:
    """Return what a step at all shared parameters takes over one of equal weighting: ours / TorchJD / LibMTL."""
    table = _steps(kept)
    table = table[(table["place"] == "parameters") & table["method"].isin(SHOWN)]
    num_tasks = sorted(table["num_tasks"].unique())
    ratios = table.set_index(["method", "network", "num_tasks", "contender"])["ratio"]
    lines = []
    for method in SHOWN:
        for network in NETWORKS:
            cells = []
            for T in num_tasks:
                names = (OurStep.name, TORCHJD.name, LIBMTL.name)
                sides = [_ratio(ratios.get((method, network, T, name), np.nan)) for name in names]
                while sides and sides[-1] == NOTHING:
                    sides.pop()
                cells.append(" / ".join(sides))
            lines.append([f"`{method}`, {NETWORK_NAMES[network]}", *cells])
    return markdown_table(["", *(f"{T} tasks" for T in num_tasks)], lines)


def counts(kept: Path) -> str:
    """Return how our steps compare with TorchJD's, by place: how often which is the faster, and means."""
    table = _steps(kept)
    memory = _memory_over_torchjd(table)
    lines = []
    for place in PLACES:
        some = table[table["place"] == place]
        found, ratios = step_summary.summarise(some), step_summary.over_torchjd(some)
        of_memory = memory[memory.index.get_level_values("place") == place]
        figures = (found.cells, found.faster, int((ratios > 1).sum()), found.slower)
        means = (_geometric_mean(ratios), _geometric_mean(of_memory))
        lines.append([PLACE_NAMES[place], *map(str, figures), *means])
    header = ["", "cells", "faster, settled", "slower, by the median", "of these settled", "time", "peak memory"]
    return markdown_table(header, lines)


def slower(kept: Path) -> str:
    """Return where our step takes longer than TorchJD's, by the median: in how many methods, and by how much."""
    table = _steps(kept)
    ratios = step_summary.over_torchjd(table)
    cells = ratios.reset_index(name="ratio").assign(settled=step_summary.is_slower(table)[ratios.index].to_numpy())
    lines = []
    for (network, name), T, place in itertools.product(NETWORK_NAMES.items(), sorted(set(cells["num_tasks"])), PLACES):
        some = cells[(cells["network"] == network) & (cells["num_tasks"] == T) & (cells["place"] == place)]
        longer = some[some["ratio"] > 1].sort_values("ratio")
        if longer.empty:
            continue
        above, count = longer["ratio"] - 1, int(longer["settled"].sum())
        lines.append(
            [
                f"{name}, {T} tasks",
                PLACE_NAMES[place],
                f"{len(longer)} of {len(some)}",
                str(count) if count else NOTHING,
                _percent(above.median()),
                f"{_percent(above.max())}, `{longer['method'].iloc[-1]}`",
            ]
        )
    return markdown_table(["", "place", "methods", "settled", "slower by, median", "at most"], lines)


def beside_hand(kept: Path) -> str:
    """Return what a step of PCGrad at all shared parameters takes, ours and by hand."""
    table = _steps(kept)
    ratios = table.set_index(["contender", "method", "place", "network", "num_tasks"])["ratio"]
    num_tasks = sorted(table["num_tasks"].unique())
    lines = []
    for network, name in NETWORK_NAMES.items():
        sides = [
            [_ratio(ratios.get((contender, "pcgrad", "parameters", network, T), np.nan)) for T in num_tasks]
            for contender in (OurStep.name, BY_HAND.name)
        ]
        cells = ["" if NOTHING in both else " / ".join(both) for both in zip(*sides, strict=True)]
        lines.append([name, *cells])
    return markdown_table(["", *(f"{T} tasks" for T in num_tasks)], lines)


def solvers(kept: Path) -> str:
    """Return how many times longer TorchJD takes to compute weights."""
    ratios = pd.read_csv(kept / "solvers.csv").pivot(index="method", columns="num_tasks", values="ratio")
    lines = [
        [f"`{method}`", *map(_ratio, ratios.loc[method])] for method in ratios[2].sort_values(ascending=False).index
    ]
    return markdown_table(["", *(f"{T} tasks" for T in ratios.columns)], lines)


def gradnorm(kept: Path) -> str:
    """Return what a step takes with each implementation of GradNorm, and how far its gradient is off."""
    table = pd.read_csv(kept / "peers.csv", keep_default_na=False, na_values={"ratio": "", "gradient_deviation": ""})
    num_tasks = list(table["num_tasks"].unique())
    lines = []
    for contender, name in GRADNORMS.items():
        rows = table[table["contender"] == contender].set_index("num_tasks")
        off = [f"{value:.0%}".replace("%", " %") for value in rows["gradient_deviation"]]
        lines.append(
            [
                name.format(rows["version"].iloc[0]),
                " / ".join(map(_ratio, rows["ratio"])),
                "0" if set(off) == {"0 %"} else " / ".join(off),
            ]
        )
    header = [
        f"{' / '.join(map(str, num_tasks))} tasks, batch 100",
        "time of a step over that of equal weighting",
        "deviation of the network's gradient from that of `sum_i w_i L_i`",
    ]
    return markdown_table(header, lines)


def _steps(kept: Path) -> pd.DataFrame:
    table = pd.read_csv(kept / "steps.csv", keep_default_na=False, na_values={"ratio": ""})
    return table[table["method"].isin(METHODS)]


def _memory_over_torchjd(table: pd.DataFrame) -> "pd.Series[float]":
    measured = table[table["missing"] == ""].set_index(["network", "num_tasks", "place", "method", "contender"])
    peaks = measured["peak_bytes"].astype(float).unstack("contender")
    return (peaks[OurStep.name] / peaks[TORCHJD.name]).dropna()


def _geometric_mean(ratios: "pd.Series[float]") -> str:
    return f"{np.exp(np.log(ratios).mean()):.2f}" if len(ratios) else NOTHING


def _percent(value: float) -> str:
    digits = 0 if value >= 0.01 else 1
    return f"{value:.{digits}%}".replace("%", " %")


def _ratio(value: float) -> str:
    if np.isnan(value):
        return NOTHING
    return f"{value:.1f}" if round(value, 1) < 10 else f"{value:.0f}"


WRITERS: Mapping[PeerTable, Callable[[Path], str]] = {
    PeerTable.STEPS: steps,
    PeerTable.COUNTS: counts,
    PeerTable.SLOWER: slower,
    PeerTable.BY_HAND: beside_hand,
    PeerTable.SOLVERS: solvers,
    PeerTable.GRADNORM: gradnorm,
}


def main(
    which: Annotated[PeerTable, typer.Argument(help="Which table.", show_default=False)],
    kept: Annotated[Path, typer.Option(help="Folder of the tables.")] = KEPT,
) -> None:
    """Print a table beside other packages as the documentation shows it.

    `steps` has whole steps at all shared parameters, `counts` sums up all places,
    `slower` lists where ours take longer, `by-hand` has PCGrad in a few lines that
    check nothing; `solvers` times the weights alone; `gradnorm` has the
    implementations of GradNorm.
    """
    try:
        typer.echo(WRITERS[which](kept))
    except FileNotFoundError as error:
        raise typer.BadParameter(f"{error.filename} is not there; make bench-peers measures it") from error


if __name__ == "__main__":
    typer.run(main)
