"""``python -m bench.gpu.measure_part NAME``: measure one part; `part_runner` starts it."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from .gpu_parts import MEASURE
from .part_measurement import PartMeasurement


def main(
    name: str,
    folder: Annotated[Path, typer.Option()],
    device: Annotated[str, typer.Option()],
    seconds: Annotated[float, typer.Option()],
    code: Annotated[str, typer.Option()],
    dry_run: Annotated[bool, typer.Option("--dry-run")] = False,
) -> None:
    """Measure the part NAME."""
    MEASURE[name](PartMeasurement(folder, torch.device(device), dry_run, seconds, code))


if __name__ == "__main__":
    typer.run(main)
