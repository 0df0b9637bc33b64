"""Run suites by the command line, here or on a Dask scheduler, and compare the tables that they end with."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from bench.execute import run_suite
from bench.execute.workforce import Workforce
from bench.suite import suite_file

from .dask_processes import ROOT

UNTIMED = ("problems", "runs", "scores", "curves", "trajectory", "dynamics", "selection")
"""The tables that are the same to the bit wherever a suite is run."""
TIMED = ["problem", "balancer", "part"]
"""The columns of the table of step costs that are not measured."""


def here(path: Path, folder: Path) -> Path:
    """Run a suite on this machine, and return its results folder."""
    with Workforce.of(2) as workforce:
        run_suite.run(suite_file.load(path), folder, workforce, Console(quiet=True))
    return folder


def same_tables(first: Path, second: Path) -> None:
    """Assert that two results folders hold the same tables to the bit, and the costs of the same steps."""
    for name in (*UNTIMED, "costs"):
        one, other = (folder / "tables" / f"{name}.parquet" for folder in (first, second))
        assert one.exists() == other.exists(), f"only one folder has {name}"
        if not one.exists():  # such as the selection where nothing is tuned
            continue
        left, right = pd.read_parquet(one), pd.read_parquet(other)
        if name == "costs":
            left, right = (each.reindex(columns=TIMED).sort_values(TIMED, ignore_index=True) for each in (left, right))
        pd.testing.assert_frame_equal(left, right, check_exact=True)


def command(path: Path, results: Path, *more: str) -> list[str]:
    """Return the arguments that run a suite."""
    return ["run", str(path), "--results", str(results), *more]


def start(path: Path, results: Path, *more: str, within: Sequence[str] = ()) -> "subprocess.Popen[bytes]":
    """Start to run a suite by the command line; ``within`` is what the command line is put behind."""
    return subprocess.Popen(
        [*within, sys.executable, "-m", "bench", *command(path, results, *more)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finished(results: Path) -> int:
    """Return the number of stored runs of the suite ``mine``."""
    return len(list(results.glob("mine/runs/*.parquet")))


def wait_for(results: Path, runs: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until the suite ``mine`` has so many stored runs."""
    end = time.monotonic() + 120
    while finished(results) < runs:
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() < end
        time.sleep(0.01)
