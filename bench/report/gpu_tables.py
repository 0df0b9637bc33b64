"""Show in a report what ``python -m bench.gpu`` measured, if its folder is beside the report's or among the references.

Results of a dry run are not shown.
"""

from pathlib import Path
from typing import TypedDict

import pandas as pd

from bench.style.numbers import NOTHING, number

from .stored_table import read_json
from .text_grid import TextGrid

FOLDERS = ("gpu", "reference/gpu")
"""Where the results of a GPU can be, relative to the folder of all results."""
MODES = ("eager", "captured", "compiled update", "compiled")


class GpuResults(TypedDict):
    """The tables that the page shows of a GPU, and the machine in words."""

    machine: str
    grids: list[TextGrid]


def find(results: Path) -> GpuResults | None:
    """Return what was measured on a GPU, for the results folder of a suite; None if nothing was.

    Raises:
        BadFileError: the summary can't be read.
    """
    for folder in (results.parent / name for name in FOLDERS):
        if not (folder / "summary.json").is_file():
            continue
        machine = read_json(folder / "summary.json")["machine"]
        grids = [grid for grid in (_norm_step(folder), _limits(folder)) if grid]
        if machine["gpu"] and not machine["dry_run"] and grids:
            driver = f", driver {machine['driver']}" if machine["driver"] else ""
            machine_words = f"{machine['gpu']}{driver}, {machine['processor']}, PyTorch {machine['torch']}"
            return {"machine": f"{machine_words}, Python {machine['python']}", "grids": grids}
    return None


def _norm_step(folder: Path) -> TextGrid | None:
    """Return the times of the gradient-norm step on the CPU and on CUDA, and their ratio."""
    path = folder / "norm-step" / "norm-step.csv"
    if not path.is_file():
        return None
    table = pd.read_csv(path)
    if "cuda_ms" not in table:
        return None
    rows = [
        [str(row["what"]), str(row["num_tasks"]), *(number(row[column]) for column in ("cpu_ms", "cuda_ms", "ratio"))]
        for _, row in table.sort_values(["what", "num_tasks"]).iterrows()
    ]
    header = ["Timed part of GradNorm", "Tasks", "CPU, ms", "CUDA, ms", "CPU time / CUDA time"]
    return {"title": "On the CPU and on CUDA", "header": header, "rows": rows, "marked": set()}


def _limits(folder: Path) -> TextGrid | None:
    """Return the step of GradNorm over equal weighting's, run in each way."""
    path = folder / "limits" / "limits.csv"
    if not path.is_file():
        return None
    table = pd.read_csv(path).drop_duplicates(["problem", "heads", "batch", "method", "mode"])
    about = ["problem", "batch", "heads", "method"]
    ratios = table[table["method"] != "equal"].set_index([*about, "mode"])["ratio"].unstack().reindex(columns=MODES)
    order = table[table["method"] != "equal"].drop_duplicates(about)[about].itertuples(index=False, name=None)
    rows = [
        [*map(str, place), *(NOTHING if pd.isna(ratio) else number(ratio) for ratio in ratios.loc[place])]
        for place in order
    ]
    header = ["Problem", "Batch", "Heads", "Method", *MODES]
    return {
        "title": "A step's time over that of equal weighting, run alike",
        "header": header,
        "rows": rows,
        "marked": set(),
    }
