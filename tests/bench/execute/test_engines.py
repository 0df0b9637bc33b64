"""Both engines, a machine and a Dask cluster, do the same jobs with the same endings."""

import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bench.execute import cluster, this_machine, worker_side
from bench.execute.carry_out import Failed, NotDone, carry_out
from bench.execute.job import Engine, EngineError, Finished, Job, Limits, Raised
from bench.execute.this_machine import ThisMachine
from bench.execute.this_process import InThisProcess
from bench.execute.workforce import Workforce

from . import engine_jobs
from .dask_processes import DaskProcesses

pytestmark = pytest.mark.xdist_group("processes")


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskProcesses]:
    """Return a scheduler with two workers."""
    pytest.importorskip("distributed")
    processes = DaskProcesses(tmp_path_factory.mktemp("dask"))
    for name in ("one", "two"):
        processes.start_worker(name)
    yield processes
    processes.stop()


@pytest.fixture(params=["this machine", "cluster"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Return each engine."""
    if request.param == "this machine":
        made: Engine = ThisMachine(2)
    else:
        made = cluster.at(request.getfixturevalue("dask").address, print)
    yield made
    made.stop()


@pytest.mark.slow
def test_all_jobs_are_done(engine: Engine) -> None:
    todo = [Job(f"{k}", engine_jobs.add, (k, 1)) for k in range(100)]
    found = {job.key: verdict for job, verdict in carry_out(todo, engine)}
    assert {key: verdict.value for key, verdict in found.items() if isinstance(verdict, Finished)} == {
        f"{k}": k + 1 for k in range(100)
    }


@pytest.mark.slow
def test_a_job_fails_by_its_own_deed_only(engine: Engine, tmp_path: Path) -> None:
    todo = [
        Job("exits", engine_jobs.end, (3,)),
        Job("exits once", engine_jobs.end_once, (tmp_path / "marker",)),
        Job("raises", engine_jobs.refuse, ()),
        Job("hangs", engine_jobs.sleep, (600.0,), Limits(seconds=1.0)),
        Job("hangs here too", engine_jobs.sleep, (600.0,), Limits(seconds=1.0), own_limit=engine_jobs.half_a_second),
        Job("is slow here", engine_jobs.sleep, (1.5,), Limits(seconds=1.0), own_limit=engine_jobs.ten_seconds),
        Job("is limited", engine_jobs.sleep, (600.0,), Limits(seconds=1.0), stated=True),
        Job("eats", engine_jobs.eat, (3_000_000_000,), Limits(memory=400e6)),
        *(Job(f"fine {k}", engine_jobs.sleep, (0.01,)) for k in range(20)),
    ]
    found = {job.key: verdict for job, verdict in carry_out(todo, engine)}
    assert found["exits"] == Failed("its process ended itself with exit code 3, and again when it ran alone")
    assert isinstance(raised := found["raises"], Raised)
    assert repr(raised.error) == "TimeoutError('mine')"
    assert found["hangs"] == NotDone("it took longer than 1 s, 2 times")
    assert found["hangs here too"] == NotDone("it took longer than 1 s, 2 times")
    assert found["is slow here"] == Finished("awake")
    assert found["is limited"] == Failed("it took longer than the suite's limit of 1 s", 1.0)
    assert found["eats"] == Failed("its process needed more than 0.373 GiB of memory, and again when it ran alone")
    fine = {key: verdict for key, verdict in found.items() if key == "exits once" or key.startswith("fine")}
    assert len(fine) == 21
    assert all(isinstance(verdict, Finished) for verdict in fine.values())


def test_a_job_that_nobody_waits_for_is_ended_on_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_side, "LOOKS", 0.05)
    begun = time.monotonic()
    packed = worker_side.attempt_here(pickle.dumps(Job("a", engine_jobs.sleep, (600.0,))), lambda: False)
    assert not isinstance(pickle.loads(packed), Finished)
    assert time.monotonic() - begun < 60.0
    packed = worker_side.attempt_here(pickle.dumps(Job("b", engine_jobs.add, (1, 2))), lambda: True)
    assert pickle.loads(packed) == Finished(3)


@pytest.mark.slow
def test_a_client_that_stops_leaves_no_job_to_the_workers(dask: DaskProcesses, tmp_path: Path) -> None:
    engine = cluster.at(dask.address, print)
    for k in range(4):
        engine.start(Job(f"{k}", engine_jobs.sleep_as, (tmp_path, 600.0)))
    end = time.monotonic() + 30.0
    while len(doing := list(tmp_path.iterdir())) < 2:
        assert time.monotonic() < end
        time.sleep(0.1)
    engine.stop()
    while any(psutil.pid_exists(int(file.name)) for file in doing):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_engine_can_be_stopped_in_the_midst(engine: Engine) -> None:
    for k in range(4):
        engine.start(Job(f"{k}", engine_jobs.sleep, (600.0,)))
    engine.stop()


@pytest.mark.slow
def test_a_worker_that_may_have_no_children_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    processes = DaskProcesses(tmp_path, daemonic=True)
    told: list[str] = []
    try:
        processes.start_worker("daemonic")
        engine = cluster.at(processes.address, told.append)
        with pytest.raises(EngineError, match=r"no worker can be used\. daemonic is not used: its process may have no"):
            list(carry_out([Job("a", engine_jobs.add, (1, 1))], engine))
        engine.stop()
    finally:
        processes.stop()
    assert "DASK_DISTRIBUTED__WORKER__DAEMON=False" in told[0]


@pytest.mark.slow
def test_a_lost_worker_fails_no_job(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    processes = DaskProcesses(tmp_path)
    try:
        lost = processes.start_worker("lost")
        engine = cluster.at(processes.address, print)
        verdicts = carry_out([Job(f"{k}", engine_jobs.sleep, (0.3,)) for k in range(12)], engine)
        found = [next(verdicts)]
        lost.kill()
        processes.start_worker("another")
        found += verdicts
        engine.stop()
    finally:
        processes.stop()
    assert sorted(job.key for job, _ in found) == sorted(f"{k}" for k in range(12))
    assert all(isinstance(verdict, Finished) for _, verdict in found)


@pytest.mark.slow
def test_a_lost_scheduler_is_told(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    processes = DaskProcesses(tmp_path)
    try:
        processes.start_worker("one")
        engine = cluster.at(processes.address, print)
        verdicts = carry_out([Job(f"{k}", engine_jobs.sleep, (0.5,)) for k in range(20)], engine)
        next(verdicts)
        assert processes.scheduler is not None
        processes.scheduler.kill()
        with pytest.raises(EngineError, match="the scheduler of the cluster is gone"):
            list(verdicts)
        engine.stop()
    finally:
        processes.stop()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError()])
def test_an_attempt_ends_whatever_ends_its_thread(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(this_machine, "attempt", fail)
    engine = ThisMachine(1)
    try:
        for key in "ab":
            engine.start(Job(key, engine_jobs.process, ()))
            job, ending = engine._ended.get(timeout=10)  # what `next` waits for
            assert job.key == key
            assert isinstance(ending, Raised)
            assert type(error).__name__ in repr(ending.error)
    finally:
        engine.stop()


def test_a_job_that_exits_does_not_end_this_process() -> None:
    engine = InThisProcess()
    engine.start(Job("exits", engine_jobs.leave, ("no data",)))
    _, ending = engine.next()
    assert isinstance(ending, Raised)
    assert repr(ending.error) == "RuntimeError('SystemExit: no data')"


def test_without_the_packages_for_processes_runs_are_done_in_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.execute.workforce.find_spec", lambda name: None if name == "pebble" else name)
    told: list[str] = []
    with Workforce.of(4, told.append) as workforce:
        assert workforce.slots == 1
    assert told == [
        "pebble not found (pip install pebble psutil): runs are done in this process, one after another and without "
        "limits of time or memory"
    ]


@pytest.mark.slow
def test_no_scheduler_and_no_cluster_are_told_in_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    with pytest.raises(EngineError, match=r"there is no scheduler at tcp://127\.0\.0\.1:9"):
        cluster.at("tcp://127.0.0.1:9", print)
    file = tmp_path / "mine.py"
    file.write_text("def make():\n    raise OSError('no queue')\n")
    with pytest.raises(EngineError, match="made no cluster: OSError: no queue"):
        cluster.made_by(f"{file}:make", print)
    silent, exits = tmp_path / "silent.py", tmp_path / "exits.py"
    silent.write_text("def make():\n    pass\n")
    with pytest.raises(EngineError, match=r"silent\.py:make returned nothing; it must return the cluster"):
        cluster.made_by(f"{silent}:make", print)
    exits.write_text("import sys\n\nsys.exit(0)\n")
    with pytest.raises(EngineError, match="made no cluster: SystemExit: 0"):
        cluster.made_by(f"{exits}:make", print)
    with pytest.raises(EngineError, match="has no function other"):
        cluster.made_by(f"{file}:other", print)
    with pytest.raises(EngineError, match="there is no Python file"):
        cluster.made_by(f"{tmp_path / 'none.py'}:make", print)
    with pytest.raises(EngineError, match=r"takes FILE\.py:function"):
        cluster.made_by("mine", print)


@pytest.mark.slow
def test_a_cluster_that_a_function_makes(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    file = tmp_path / "mine.py"
    file.write_text(
        "import dask\n"
        "from distributed import LocalCluster\n\n\n"
        "def make_cluster():\n"
        "    dask.config.set({'distributed.worker.daemon': False})\n"
        "    return LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)\n"
    )
    engine = cluster.made_by(f"{file}:make_cluster", print)
    found = list(carry_out([Job(f"{k}", engine_jobs.add, (k, 1)) for k in range(10)], engine))
    engine.stop()
    assert sorted(verdict.value for _, verdict in found if isinstance(verdict, Finished)) == list(range(1, 11))
