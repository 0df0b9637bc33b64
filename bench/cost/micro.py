"""Make the table of the micro-benchmark from the JSON file that pytest-benchmark saved."""

import json
from pathlib import Path

import pandas as pd

from bench.run import atomic_file
from bench.run.atomic_file import BadFileError

MICRO = "micro.json"
"""Name of the file in a results folder that holds the micro-benchmark's times."""


def table(path: Path) -> pd.DataFrame:
    """Return the median times in milliseconds, with a row for each measurement and number of tasks.

    Returns:
        ``num_tasks``; ``what``, the name of the measurement; ``cpu_ms``; if CUDA was measured too, ``cuda_ms`` and
        ``ratio``, the CPU's time over the CUDA device's. A device that was not measured has no column.

    Raises:
        BadFileError: the file was not written by a run of ``bench/cost/gradient_norm.py``.
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
    """Write the micro-benchmark's table into the results ``folder``, if its times are there.

    Raises:
        BadFileError: the times can't be read, see `table`.
    """
    if (folder / MICRO).is_file():
        atomic_file.write_table(folder / "tables" / "micro", table(folder / MICRO))
