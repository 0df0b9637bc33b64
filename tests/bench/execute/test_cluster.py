"""What the engine of a cluster does as workers come, go and refuse jobs, with a scheduler that follows a script."""

import pickle
from collections.abc import Callable

import pytest

from bench.execute import cluster
from bench.execute.carry_out import LOST
from bench.execute.cluster import DaskCluster
from bench.execute.job import CannotRunError, EngineError, Finished, Job, Raised, WorkerLost

from . import engine_jobs

DONE = Finished(3)
ONE, TWO, THREE = ("tcp://one:1", "tcp://two:1", "tcp://three:1")


class Future:
    """An attempt: which workers may make it, and how it ended."""

    def __init__(self, key: str, where: list[str] | None) -> None:
        self.key, self.where, self.status = key, where, "pending"
        self._ended: Callable[[Future], None] = print

    def add_done_callback(self, call: Callable[["Future"], None]) -> None:
        self._ended = call

    def end(self, worker: str, error: Exception | None = None) -> None:
        self.status = "finished"
        ending = DONE if error is None else Raised(error)
        self._result = (worker, f"named {worker}", "ended", pickle.dumps(ending))
        self._ended(self)

    def done(self) -> bool:
        return self.status != "pending"

    def result(self) -> tuple[str, str, str, bytes]:
        return self._result

    def cancel(self, reason: str, force: bool) -> None:
        self.status = "cancelled"
        self._ended(self)


class Client:
    """A client of a scheduler, whose ``threads`` are those of its workers.

    At each look at them, ``then`` is called with the number of looks since it was set. Looks come to an end, so that an
    engine that waits for ever fails.
    """

    status = "running"

    def __init__(self, *workers: str) -> None:
        self.threads = dict.fromkeys(workers, 1)
        self.attempts: list[Future] = []
        self.follow(lambda look: None)

    def follow(self, then: Callable[[int], None]) -> None:
        self.then, self.looks = then, iter(range(500))

    def nthreads(self) -> dict[str, int]:
        self.then(next(self.looks))
        return self.threads

    def submit(self, call: object, packed: bytes, key: str, pure: bool, workers: list[str] | None) -> Future:
        self.attempts.append(Future(key, workers))
        return self.attempts[-1]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine look at its workers all the time."""
    pytest.importorskip("distributed")
    monkeypatch.setattr(cluster, "LOOKS", 0.001)


def job(key: str = "a") -> Job:
    return Job(key, engine_jobs.add, (1, 2))


def test_a_job_whose_workers_have_all_left_is_done_by_others() -> None:
    """Once a worker is refused, a job may only go to those used now; Dask would keep it for these."""
    client = Client(ONE, TWO)
    engine = DaskCluster(client, lambda sentence: None)
    for key in "ab":
        engine.start(job(key))
    refused, other = client.attempts
    refused.end(ONE, CannotRunError("its data are missing"))
    other.end(TWO)
    assert engine.next()[0].key == "b"
    [_, _, restricted] = client.attempts
    assert restricted.where == [TWO]

    def leave_and_join(look: int) -> None:
        client.threads = [{ONE: 1, TWO: 1}, {}, {THREE: 1}][min(look, 2)]
        if len(client.attempts) == 4 and not client.attempts[3].done():
            client.attempts[3].end(THREE)

    client.follow(leave_and_join)
    assert engine.next() == (job("a"), DONE)
    assert client.attempts[3].where == [THREE]
    assert restricted.status == "cancelled"
    assert len(client.attempts) == 4


def test_a_pinned_worker_that_refuses_a_job_counts_as_lost() -> None:
    client = Client(ONE, TWO)
    engine = DaskCluster(client, lambda sentence: None)
    engine.pin()
    engine.start(job())
    [attempt] = client.attempts
    assert attempt.where == [ONE]
    attempt.end(ONE, CannotRunError("its data are missing"))
    assert engine.next() == (job(), WorkerLost(LOST))
    engine.pin()
    engine.start(job())
    assert client.attempts[-1].where == [TWO]


def test_a_worker_to_pin_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that are timed by whatever worker is free would be of several kinds of machines."""
    client = Client(ONE)
    engine = DaskCluster(client, lambda sentence: None)
    client.threads = {}
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            client.threads = {THREE: 1}

    monkeypatch.setattr(cluster.time, "sleep", sleep)
    engine.pin()
    engine.start(job())
    assert client.attempts[-1].where == [THREE]
    assert len(slept) == 3


def test_no_worker_is_awaited_where_all_are_refused() -> None:
    client = Client(ONE)
    engine = DaskCluster(client, lambda sentence: None)
    engine.start(job())
    client.attempts[0].end(ONE, CannotRunError("its data are missing"))
    with pytest.raises(EngineError, match=r"no worker can be used\. named tcp://one:1 is not used: its data are mis"):
        engine.next()


def test_only_the_first_worker_of_a_cluster_that_a_function_makes_may_take_any_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The jobs of its workers may queue for hours."""
    now = 0.0
    monkeypatch.setattr(cluster.time, "monotonic", lambda: now)
    client, told = Client(), list[str]()
    engine = DaskCluster(client, told.append, cluster=object())

    def pass_time(look: int) -> None:
        nonlocal now
        now += 120.0
        client.threads = {ONE: 1} if 60 <= look < 70 else {}
        if look == 65:
            client.attempts[0].end(ONE)

    client.follow(pass_time)
    engine.start(job())
    assert engine.next() == (job(), DONE)
    still = "the cluster has had no worker for {} minutes: still waiting for its first one"
    assert told[:2] == [still.format(6), still.format(12)]
    assert len(told) == 20
    engine.start(job("b"))
    with pytest.raises(EngineError, match="the cluster has had no worker for 10 minutes"):
        engine.next()
    assert len(told) == 20


def test_a_scheduler_that_runs_already_must_have_workers_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(cluster.time, "monotonic", lambda: now)
    client = Client()
    engine = DaskCluster(client, print)

    def pass_time(look: int) -> None:
        nonlocal now
        now += 120.0

    client.follow(pass_time)
    engine.start(job())
    with pytest.raises(EngineError, match="the cluster has had no worker for 10 minutes"):
        engine.next()
