"""A suite on a Dask cluster ends in the tables of this machine alone, whatever is lost on the way."""

import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench.cli import app
from bench.execute import run_suite
from bench.execute.workforce import Workforce
from bench.run import result_file
from bench.suite import suite_file

from .dask_processes import ROOT, DaskProcesses
from .suite_processes import command, finished, here, same_tables, start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]
pytest.importorskip("distributed")

SuiteText = Callable[..., str]


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[DaskProcesses]:
    """Return a scheduler, and three workers in empty folders of their own."""
    folder = tmp_path / "dask"
    folder.mkdir()
    processes = DaskProcesses(folder)
    for name in ("one", "two", "three"):
        processes.start_worker(name)
    yield processes
    processes.stop()


SLOW = {
    "problems": [{"name": "small", "steps": 60}],
    "balancers": [{"name": "equal"}, {"name": "slow", "options": {"seconds": 0.005}}],
    "reported": [1, 2, 3, 4],
}


def test_a_suite_with_plugins_and_one_that_comes_along(
    dask: DaskProcesses, suite_text: SuiteText, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(suite_text(rounds=2))
    for suite in (path, suite_file.find("smoke")):
        done = CliRunner().invoke(app, command(suite, tmp_path / "cluster", "--scheduler", dask.address))
        assert done.exit_code == 0, done.output
        same_tables(tmp_path / "cluster" / suite.stem, here(suite, tmp_path / "here" / suite.stem))
    costs = pd.read_parquet(tmp_path / "cluster" / "mine" / "tables" / "costs.parquet")
    assert set(costs["balancer"]) == {"equal", "gradnorm"}
    for name in ("one", "two", "three"):
        assert not list((tmp_path / "dask" / name).glob("*.parquet"))


def test_workers_are_killed_under_it(dask: DaskProcesses, suite_text: SuiteText, tmp_path: Path) -> None:
    path, results, moments = tmp_path / "mine.toml", tmp_path / "cluster", random.Random(1)
    path.write_text(suite_text(**SLOW))
    process = start(path, results, "--scheduler", dask.address)
    wait_for(results, 1, process)
    dask.workers["one"].kill()
    wait_for(results, 3, process)
    time.sleep(moments.uniform(0, 0.3))
    for name in ("two", "three"):
        dask.workers[name].kill()
    dask.start_worker("four")
    output = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, output
    same_tables(results / "mine", here(path, tmp_path / "here"))


def test_the_scheduler_and_then_the_client_are_killed(
    dask: DaskProcesses, suite_text: SuiteText, tmp_path: Path
) -> None:
    path, results = tmp_path / "mine.toml", tmp_path / "cluster"
    path.write_text(suite_text(**SLOW))
    process = start(path, results, "--scheduler", dask.address)
    wait_for(results, 2, process)
    assert dask.scheduler is not None
    dask.scheduler.kill()
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 1
    assert "the scheduler of the cluster is gone" in output
    assert "Traceback" not in output
    kept = finished(results)
    assert kept >= 2

    for worker in dask.workers.values():
        worker.kill()
    dask.start_scheduler()
    dask.start_worker("again")
    process = start(path, results, "--scheduler", dask.address)
    wait_for(results, kept + 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)

    process = start(path, results, "--scheduler", dask.address)
    output = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, output
    assert f"{finished(results)} runs" not in output  # some were stored already
    same_tables(results / "mine", here(path, tmp_path / "here"))


def test_a_worker_with_another_version_is_refused_and_the_others_do_the_suite(
    suite_text: SuiteText, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for package in ("bench", "balancers", "tasks"):
        subprocess.run(["cp", "-r", str(ROOT / package), str(other / package)], check=True)
    training = other / "bench" / "run" / "training.py"
    training.write_text(training.read_text() + "\nCHANGED = 1\n")
    (tmp_path / "dask").mkdir()
    dask = DaskProcesses(tmp_path / "dask")
    try:
        dask.start_worker("old", PYTHONPATH=str(other))
        dask.start_worker("same")
        path = tmp_path / "mine.toml"
        path.write_text(suite_text(learning_rates=None))
        done = CliRunner().invoke(app, command(path, tmp_path / "cluster", "--scheduler", dask.address))
    finally:
        dask.stop()
    assert done.exit_code == 0, done.output
    assert "old is not used: the code of lossbench or of a plugin differs from the client's" in done.output
    same_tables(tmp_path / "cluster" / "mine", here(path, tmp_path / "here"))


@pytest.mark.parametrize("where", ["here", "cluster"])
def test_runs_that_exit_hang_and_eat_memory_harm_no_other(
    request: pytest.FixtureRequest, suite_text: SuiteText, tmp_path: Path, where: str
) -> None:
    more = [] if where == "here" else ["--scheduler", request.getfixturevalue("dask").address]
    path = tmp_path / "mine.toml"
    methods = [{"name": name} for name in ("equal", "killing", "hanging", "hoarding", "gradnorm")]
    problems, limits = [{"name": "small", "steps": 60}], {"seconds": 30, "memory": 1.5}
    text = suite_text(problems, learning_rates=None, balancers=methods, reported=[1], limits=limits)
    path.write_text(text)
    done = CliRunner().invoke(app, command(path, tmp_path / "results", *more))
    assert done.exit_code == 1, done.output
    assert "hanging on small, 1 run: it took longer than the suite's limit of 30 s" in done.output
    assert "killing on small, 1 run: its process was killed by signal 9" in done.output
    assert "hoarding on small, 1 run: its process needed more than 1.5 GiB of memory" in done.output
    assert "5 runs computed, 0 already stored, 3 failed" in done.output

    path.write_text(text.replace("seconds = 30", "seconds = 31"))  # the run that failed by the limit is tried again
    done = CliRunner().invoke(app, command(path, tmp_path / "results", *more))
    assert "1 runs computed, 4 already stored, 3 failed" in done.output
    assert "the suite's limit of 31 s" in done.output


def test_a_hanging_run_is_not_done_where_no_limit_is_stated(
    suite_text: SuiteText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.execute.workforce.LEAST_SECONDS", 8.0)
    monkeypatch.setattr("bench.execute.workforce.WITHOUT_FORECAST", 8.0)
    path = tmp_path / "mine.toml"
    methods = [{"name": "equal"}, {"name": "hanging"}]
    problems = [{"name": "small", "steps": 60}]
    path.write_text(suite_text(problems, learning_rates=None, balancers=methods, reported=[1]))
    done = CliRunner().invoke(app, command(path, tmp_path / "results"))
    assert done.exit_code == 1
    assert "not done: hanging on small, 1 run: it took longer than 8 s, 2 times" in done.output
    assert "1 runs are not done" in done.output
    assert finished(tmp_path / "results") == 1


def test_damaged_files_are_made_again(suite_text: SuiteText, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(suite_text(rounds=2))
    folder = here(path, tmp_path / "here")
    scores = pd.read_parquet(folder / "tables" / "scores.parquet")
    picture = next((folder / "pictures").glob("*.json"))
    damaged = [picture, *[run for run in (folder / "runs").glob("*.parquet") if run.stem != picture.stem][:4]]
    damaged += [each for each in sorted((folder / "costs").glob("*.json")) if each.stem != "machine"][:1]
    assert len(damaged) == 6
    for each in damaged:
        each.write_bytes(each.read_bytes()[:-20])
    told: list[str] = []
    with Workforce.of(2, told.append) as workforce, (tmp_path / "told").open("w") as file:
        summary = run_suite.run(suite_file.load(path), folder, workforce, Console(file=file, width=300))
    assert summary.computed == 5
    assert (tmp_path / "told").read_text().count("is damaged: it is now") == 6
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "tables" / "scores.parquet"), scores, check_exact=True)
    for each in damaged[1:5]:
        result_file.load(each)


SLURM = """
import dask
from dask_jobqueue import SLURMCluster


def make_cluster():
    dask.config.set({"distributed.worker.daemon": False})
    cluster = SLURMCluster(
        cores=1,
        processes=1,
        memory="3GB",
        walltime="00:10:00",
        interface="lo",
        log_directory=LOGS,
        scheduler_options={"dashboard_address": None},
        job_script_prologue=["export DASK_DISTRIBUTED__WORKER__DAEMON=False"],
    )
    cluster.scale(jobs=2)
    return cluster
"""


def has_slurm() -> bool:
    """Return whether Slurm's commands are there, and a node that they can use."""
    try:
        nodes = subprocess.run(
            ["sinfo", "--noheader", "-o", "%t"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return bool({"idle", "mix"} & {*nodes.stdout.split()})


@pytest.mark.skipif(not has_slurm(), reason="needs Slurm with a node")
def test_a_suite_on_slurm(suite_text: SuiteText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    file, path = tmp_path / "slurm.py", tmp_path / "mine.toml"
    file.write_text(f"LOGS = {str(tmp_path)!r}\n{SLURM}")
    path.write_text(suite_text(rounds=2))
    done = CliRunner().invoke(app, command(path, tmp_path / "slurm", "--cluster", f"{file}:make_cluster"))
    assert done.exit_code == 0, done.output
    same_tables(tmp_path / "slurm" / "mine", here(path, tmp_path / "here"))
