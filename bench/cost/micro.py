"""The table of the micro-benchmark, from the JSON that pytest-benchmark saved."""

import json
from pathlib import Path

import pandas as pd

from bench.run import atomic_file
from bench.run.atomic_file import BadFileError

MICRO = "micro.json"
"""Where in a results folder the micro-benchmark saves its times."""


def table(path: Path) -> pd.DataFrame:
    """Median times of each measurement: ``num_tasks``, ``what``, ``cpu_ms``; on CUDA ``cuda_ms`` and ``ratio`` too.

    ``ratio`` is the CPU's time over the CUDA device's. What was not measured has no column.

    Raises:
        BadFileError: the file is not one that ``gradient_norm.py`` in this folder was measured into.
    """
    try:
        measured = [
            {**one["extra_info"], "median_ms": one["stats"]["median"] * 1000}
            for one in json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
        ]
        times = pd.DataFrame(measured).pivot(index=["what", "num_tasks"], columns="device", values="median_ms")
    except (KeyError, TypeError, ValueError) as error:
        raise BadFileError(f"{path} is not a result of bench/cost/gradient_norm.py") from error
    times = times.rename(columns="{}_ms".format).rename_axis(columns=None).reset_index()
    if "cuda_ms" in times:
        times["ratio"] = times["cpu_ms"] / times["cuda_ms"]
    return times[["num_tasks", *times.columns.drop("num_tasks")]]


def add_table(folder: Path) -> None:
    """Write the micro-benchmark's table into the results ``folder``, if it holds the micro-benchmark's times.

    Raises:
        BadFileError: see `table`.
    """
    if (folder / MICRO).is_file():
        atomic_file.write_table(folder / "tables" / "micro", table(folder / MICRO))
