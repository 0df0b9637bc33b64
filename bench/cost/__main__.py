"""``python -m bench.cost``: the limits table, and how costs grow. Takes a quarter of an hour on one core.

Into ``results/cost`` go ``limits.csv``, ``growth.csv`` and ``growth.png``, with ``--compile`` ``compiled.csv`` too, and
``environment.json``, what they were measured on; what was measured on CUDA has ``-cuda`` in its name. Nothing else
should be running.
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

from . import compiled, cost_figures, cost_growth, cost_limits, cost_terminal, devices
from .devices import DeviceName
from .step_clock import single_thread
from .subject import SubjectError


def main(
    device: DeviceName = DeviceName.CPU,
    quick: Annotated[bool, typer.Option("--quick", help="A few rounds of the smallest cases.")] = False,
    with_compile: Annotated[bool, typer.Option("--compile", help="Measure under torch.compile too.")] = False,
    out: Annotated[Path, typer.Option(help="The folder for tables and figure.")] = Path("results/cost"),
) -> None:
    """Measure what GradNorm adds to a step of equal weighting, beside the least that it has to."""
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
        table = keep(_all(cost_limits.measure(place, quick)), "limits")
        shown = cost_terminal.limits(table)
        console.print(Text(f"The limits: {machine}", style="bold"), shown, Text(cost_terminal.KEY))
        grown = keep(_all(cost_growth.measure(place, quick)), "growth")
        with figure_style.theme():
            figure_style.save(cost_figures.growth(grown, machine), out, f"growth{suffix}")
        if with_compile:
            table = keep(_all(compiled.measure(place, quick)), "compiled")
            console.print(Text(f"Trunk and heads compiled: {machine}", style="bold"), cost_terminal.times(table))
    console.print(Text(f"tables and figure: {out}"))


def _all(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The parts as one table; each is told of as it comes."""
    messages = Console(stderr=True, highlight=False)
    kept = []
    for part in parts:
        kept.append(part)
        messages.print(f"measured {part['problem'].iloc[0]}, batch {part['batch'].iloc[0]}")
    return pd.concat(kept, ignore_index=True)


if __name__ == "__main__":
    typer.run(main)
