"""``python -m bench.cost``: measure the limits table and how costs grow. It takes a quarter of an hour on one core.

The results go to ``results/cost``: ``limits.csv``, ``growth.csv`` and ``growth.png``, and ``environment.json``, which
describes the machine; with ``--compile`` also ``compiled.csv`` and ``environment-compiled.json``. The names of files
that were measured on CUDA contain ``-cuda``. Nothing else should be running.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.console import Console
from rich.text import Text

from bench.run import machine_facts
from bench.style import figure_style
from bench.style.console import new_console

from . import compiled, cost_figures, cost_growth, cost_terminal, devices, gradnorm_overhead
from .devices import DeviceName
from .step_clock import single_thread
from .subject import SubjectError


def main(
    device: Annotated[DeviceName, typer.Option(help="Device to measure on.")] = DeviceName.CPU,
    quick: Annotated[bool, typer.Option("--quick", help="Measure a few rounds of the smallest cases only.")] = False,
    with_compile: Annotated[bool, typer.Option("--compile", help="Also measure under torch.compile.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the tables and the figure.")] = Path("results/cost"),
) -> None:
    """Measure what GradNorm adds to a step of equal weighting, next to its bounds."""
    try:
        place = devices.find(device)
    except SubjectError as error:
        raise typer.BadParameter(str(error)) from error
    machine = devices.machine(place)
    suffix = "" if device is DeviceName.CPU else f"-{device}"
    console = new_console()
    machine_facts.write(out / f"environment{suffix}.json", jobs=1)

    def keep(table: pd.DataFrame, name: str) -> pd.DataFrame:
        table.assign(machine=machine).to_csv(out / f"{name}{suffix}.csv", index=False)
        return table

    with single_thread():
        table = keep(_all(gradnorm_overhead.measure(place, quick)), "limits")
        shown = cost_terminal.limits(table)
        console.print(
            Text(f"What GradNorm adds to a step, next to its bounds: {machine}", style="bold"),
            shown,
            Text(cost_terminal.KEY),
        )
        grown = keep(_all(cost_growth.measure(place, quick)), "growth")
        with figure_style.theme():
            figure_style.save(cost_figures.growth(grown, machine), out, f"growth{suffix}")
        if with_compile:
            machine_facts.write(out / f"environment-compiled{suffix}.json", jobs=1)
            table = keep(_all(compiled.measure(place, quick)), "compiled")
            console.print(
                Text(f"The same with trunk and heads compiled: {machine}", style="bold"), cost_terminal.times(table)
            )
    console.print(Text(f"tables and figure are in {out}"))


def _all(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Return the parts as one table, and print a line as each of them arrives."""
    messages = Console(stderr=True, highlight=False)
    kept = []
    for part in parts:
        kept.append(part)
        messages.print(f"measured {part['problem'].iloc[0]}, batch {part['batch'].iloc[0]}")
    return pd.concat(kept, ignore_index=True)


if __name__ == "__main__":
    typer.run(main)
