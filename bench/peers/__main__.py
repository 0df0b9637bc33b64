"""``python -m bench.peers``: measure all peers, write the table as CSV, and print it."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from bench.run import atomic_file, machine_facts

from .peer_table import NUM_TASKS, measure
from .peer_terminal import show


def main(
    results: Annotated[Path, typer.Option(help="Folder for peers.csv and environment.json.")] = Path("results/peers"),
    seconds: Annotated[float, typer.Option(min=0, help="Seconds to time each peer, at each number of tasks.")] = 8,
) -> None:
    """Compare our GradNorm with others on PyPI, each next to equal weighting on one CPU thread. Takes some minutes."""
    table = measure(NUM_TASKS, seconds)
    path = results / "peers.csv"
    atomic_file.write(path, table.to_csv(index=False).encode())
    machine_facts.write(results / "environment.json", jobs=1)
    show(table)
    Console(soft_wrap=True).print(Text(f"table: {path}"))


if __name__ == "__main__":
    typer.run(main)
