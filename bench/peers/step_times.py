"""``python -m bench.peers.step_times``: time whole steps of combining methods, ours next to TorchJD's and LibMTL's.

Each method that we and TorchJD both have trains five networks, with 2, 10 and 40 tasks, and combines the gradients of
the features, of the last shared layer, or of all shared parameters. Each step takes turns with one of equal weighting,
on one CPU thread with fused Adam and denormal numbers set to zero. `torchjd_steps` and `libmtl_steps` say how the
packages are used, and `step_table` what is measured. `by_hand` has what a few lines take that do PCGrad alone.
``steps.csv`` and ``environment-steps.json`` go to ``results/peers``. Cells that the CSV has already, from the same
code, versions and processor, are not measured again. Nothing else should be running. All cells take some hours; those
with two tasks come first.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from . import solver_packages
from .step_table import METHODS, NUM_TASKS, PLACES, cells, measure_all
from .step_terminal import show
from .trunk_networks import NETWORKS


def main(
    results: Annotated[Path, typer.Option(help="Folder for steps.csv.")] = Path("results/peers"),
    seconds: Annotated[float, typer.Option(min=0, help="Seconds to time each contender, in six to 300 rounds.")] = 3,
    networks: Annotated[str, typer.Option(help="Networks to measure, with commas between them.")] = ",".join(NETWORKS),
    num_tasks: Annotated[str, typer.Option("--tasks", help="Numbers of tasks, 2 or more.")] = ",".join(
        map(str, NUM_TASKS)
    ),
    places: Annotated[str, typer.Option(help="Where gradients are combined.")] = ",".join(PLACES),
    methods: Annotated[str, typer.Option(help="Methods to measure.")] = ",".join(METHODS),
) -> None:
    """Compare whole steps of combining methods with TorchJD's and LibMTL's, each next to equal weighting."""
    chosen = list(
        cells(
            _selected("--networks", networks, NETWORKS),
            _numbers(num_tasks),
            [place for place in PLACES if place in _selected("--places", places, PLACES)],
            _selected("--methods", methods, METHODS),
        )
    )
    if not chosen:
        raise typer.BadParameter("no method that is chosen is defined at a place that is chosen")
    messages = Console(stderr=True, highlight=False, soft_wrap=True)
    solver_packages.write_environment(results / "environment-steps.json")
    path = results / "steps.csv"
    show(measure_all(chosen, seconds, path, lambda line: messages.print(Text(line))))
    Console(soft_wrap=True).print(Text(f"table: {path}"))


def _selected(option: str, text: str, known: Collection[str]) -> list[str]:
    """Return the names in ``text``, which must be among the known ones."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{option} has {name!r}; expected some of {', '.join(known)}")
    return names


def _numbers(text: str) -> list[int]:
    """Return the numbers of tasks in ``text``."""
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(numbers) < 2:
        raise typer.BadParameter(f"--tasks is {text!r}; expected numbers from 2 on, with commas between them")
    return numbers


if __name__ == "__main__":
    typer.run(main)
