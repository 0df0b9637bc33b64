"""``python -m bench.gpu``: measure on a GPU, within a time budget, what the rest of `bench` measures on a CPU."""

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.text import Text

from bench.cost.devices import DeviceName
from bench.run import machine_facts
from bench.style.console import new_console

from .gpu_parts import PARTS
from .gpu_summary import GpuSummary, OtherMachineError, table
from .part_runner import Part, packages_code, run

REFERENCE = machine_facts.ROOT / "results" / "reference" / "gpu"
NAMES = [part.name for part in PARTS]


def main(
    only: Annotated[
        list[str] | None,
        typer.Argument(metavar="PART...", help=f"Parts to run: {', '.join(NAMES)}.", show_default="all"),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0, help="Time for all parts together.")] = 8,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = REFERENCE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Go through all parts on the CPU, with as little as possible of each.")
    ] = False,
) -> None:
    """Run the balancers' tests on a GPU, and measure there what steps cost and how the default suite goes.

    What is measured is saved at once, and a part that fails does not stop the
    others. Call again to go on: parts that are done are not measured again,
    unless the code has changed. To measure a part anew, remove the folder of the
    results, or its entry in summary.json and its own folder.

    Exit codes: 0, all parts are done; 1, a part is not; 2, nothing can be run.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if unknown := [name for name in only or () if name not in NAMES]:
        console.print(Text(f"error: there is no part {unknown[0]}; the parts are {', '.join(NAMES)}"))
        raise typer.Exit(2)
    if not dry_run and not torch.cuda.is_available():
        console.print("error: PyTorch finds no CUDA device on this machine; --dry-run tries all parts on the CPU")
        raise typer.Exit(2)
    if dry_run and out.resolve() == REFERENCE.resolve():
        console.print("error: a dry run needs a folder of its own: name one with --out")
        raise typer.Exit(2)
    device = DeviceName.CPU if dry_run else DeviceName.CUDA
    out, code = out.resolve(), packages_code()
    try:
        summary = GpuSummary(out, dry_run)
    except OtherMachineError as error:
        console.print(Text(f"error: {error}"))
        raise typer.Exit(2) from None

    def command(part: Part, seconds: float) -> list[str]:
        options = ["--folder", str(out / part.name), "--device", device, "--seconds", f"{seconds:.0f}", "--code", code]
        dry = ["--dry-run"] if dry_run else []
        return [sys.executable, "-m", "bench.gpu.measure_part", part.name, *options, *dry]

    machine_facts.write(out / "environment.json", jobs=1)
    chosen = [part for part in PARTS if not only or part.name in only]
    run(chosen, out, summary, 60 * minutes, code, command, lambda line: console.print(Text(line)))
    new_console().print(table(summary.records))
    if note := summary.machine["note"]:
        console.print(Text(f"note: {note}"))
    console.print(Text(f"results: {out}"))
    if any(summary.records[part.name].status != "done" for part in chosen):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
