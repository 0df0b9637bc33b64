"""Measure how fast runs are handed out, and what ten thousand of them cost to table and report.

python -m bench.execute.scale --runs 10000 --workers 1,2,4

The runs are tiny: a model of four parameters and three steps. So what is measured is everything around them: processes,
messages, stored files. Each number of workers is measured on this machine alone, and on a Dask cluster with that many
workers of one thread each. Nothing else should be running.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console

from bench.report import report_page
from bench.run import machine_facts
from bench.run.result_store import ResultStore
from bench.suite import plan, suite_file

from . import run_suite
from .cluster import DaskCluster
from .job import Limits
from .slot import Slot
from .this_machine import ThisMachine
from .workforce import Workforce

PROBLEM = Path(__file__).with_name("scale_problem.py")
SUITE = """description = "Tiny runs"
evaluations = 1
plugins = ["{problem}"]
[seeds]
reported = {seeds}
[[problems]]
name = "scale"
[[balancers]]
name = "equal"
[[balancers]]
name = "uncertainty"
"""
PARTS = 4
"""Memory is looked at this many times, after equal parts of the runs."""
MIB = 2**20

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    runs: Annotated[int, typer.Option(min=8, help="Number of runs.")] = 10_000,
    workers: Annotated[str, typer.Option(help="Numbers of workers, with commas between.")] = "1,2,4",
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/scale"),
) -> None:
    """Measure runs a second against workers, and the time and memory of tables and report."""
    out.mkdir(parents=True, exist_ok=True)
    machine_facts.write(out / "environment.json", jobs=1)
    console, rows = Console(highlight=False, soft_wrap=True), []
    path = out / "scale.toml"
    path.write_text(SUITE.format(problem=PROBLEM, seeds=[*range(1, runs // 2 + 1)]), encoding="utf-8")
    for number in map(int, workers.split(",")):
        for where in ("this machine", "cluster"):
            folder = out / f"{where.replace(' ', '-')}-{number}"
            row = {"where": where, "workers": number, **_measured(path, folder, where, number)}
            console.print(json.dumps(row))
            rows.append(row)
    slot = Slot()
    rows.append(slot.do(Limits(), tabled, path, folder))
    slot.stop()
    console.print(json.dumps(rows[-1]))
    (out / "scale.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


def _measured(path: Path, folder: Path, where: str, number: int) -> dict[str, Any]:
    """Do all runs of the suite, store them in ``folder``, and return the runs a second and the memory on the way."""
    loaded = suite_file.load(path)
    planned = plan.reported(loaded, None)
    store = ResultStore(folder, print)
    memory: list[float] = []
    with _workforce(where, number) as workforce:
        list(workforce.do(planned[:number], store, loaded.plugins))  # processes have started
        rest = planned[number:]
        start = time.perf_counter()
        for done, _ in enumerate(workforce.do(rest, store, loaded.plugins), 1):
            if done % max(1, len(rest) // PARTS) == 0:
                memory.append(round(psutil.Process().memory_info().rss / MIB))
        seconds = time.perf_counter() - start
    return {
        "runs": len(rest),
        "seconds": round(seconds, 1),
        "runs_per_second": round(len(rest) / seconds, 1),
        "client_mib": memory,
    }


@contextmanager
def _workforce(where: str, number: int) -> Iterator[Workforce]:
    """Yield workers: processes of this machine, or a cluster whose scheduler is in this process."""
    if where == "this machine":
        with Workforce(ThisMachine(number)) as workforce:
            yield workforce
        return
    import dask
    from distributed import Client, LocalCluster

    with dask.config.set({"distributed.worker.daemon": False}):
        cluster = LocalCluster(n_workers=number, threads_per_worker=1, dashboard_address=None)
        with Workforce(DaskCluster(Client(cluster, set_as_default=False), print, cluster)) as workforce:
            yield workforce


def tabled(path: Path, folder: Path) -> dict[str, Any]:
    """Make the tables and the report of finished runs, and return the time and the largest memory of this process."""
    start = time.perf_counter()
    with Workforce.of(0) as workforce:
        run_suite.run(suite_file.load(path), folder, workforce, Console(quiet=True))
    tables = time.perf_counter() - start
    report_page.write(folder)
    peak = psutil.Process().memory_info()
    return {
        "where": "tables and report",
        "tables_seconds": round(tables, 1),
        "report_seconds": round(time.perf_counter() - start - tables, 1),
        "peak_mib": round(getattr(peak, "peak_wset", _peak()) / MIB),
    }


def _peak() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    app()
