"""Do jobs on a Dask cluster.

The cluster can be anything that Dask has: workers on other computers by ssh, Slurm jobs, Kubernetes pods. Neither the
scheduler nor the workers see this computer's files: a job brings all that it needs, and its ending brings all that is
kept. This module is the only one that imports Dask, and only if a cluster is named.
"""

import importlib.util
import logging
import pickle
import queue
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .carry_out import LOST
from .job import CannotRunError, Ending, EngineError, Job, Raised, WorkerLost

PATIENCE = 600.0
"""Seconds to wait for a first or another worker; the first one of a cluster that a function makes may take longer."""
REMINDERS = 300.0
"""Seconds between two sentences that the first worker is still awaited."""
LOOKS = 2.0
"""Seconds between two looks at the workers."""

Tell = Callable[[str], None]


class DaskCluster:
    """The engine of a suite that is run on a cluster.

    Args:
        client: a `distributed.Client`, which is closed by `stop`.
        tell: called with a sentence about each worker that is not used, and while the first one is awaited.
        cluster: what else to close, or None. Its first worker may be a job that queues for hours, so that the wait for
            it has no end.
        patience: seconds to wait for a worker where there is none.
    """

    is_here = False

    def __init__(self, client: Any, tell: Tell, cluster: Any = None, patience: float = PATIENCE) -> None:
        self._client, self._tell, self._cluster, self._patience = client, tell, cluster, patience
        self._session = uuid.uuid4().hex[:8]
        self._attempts = 0
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._jobs: dict[str, tuple[Job, Any, list[str]]] = {}
        """By Dask's key: each job in flight, its future, and the addresses of the only workers that may do it; none if
        all may. A future that is let go is forgotten by the scheduler."""
        self._refused: dict[str, str] = {}
        """Why a worker, named by its address, is not used."""
        self._pinned: str | None = None
        """The address of the only worker that gets jobs now."""
        self._threads: dict[str, int] = {}
        self._looked = self._had_one = self._reminded = time.monotonic()
        self._first_may_queue = cluster is not None
        self._look()

    @property
    def slots(self) -> int:
        """The number of threads of all workers that are used."""
        if time.monotonic() - self._looked > LOOKS:
            self._look()
        return sum(self._used().values())

    @property
    def workers(self) -> int:
        """The number of workers that are used, as `slots` saw them."""
        return len(self._used())

    def start(self, job: Job) -> None:
        """Do the job on a worker that is not refused, as soon as one has a slot free."""
        self._attempts += 1
        key = f"{job.key}-{self._attempts}-{self._session}"
        if self._threads and not self._used():
            raise EngineError(f"no worker can be used. {self._refusals()}")
        where = [self._pinned] if self._pinned else list(self._used()) if self._refused else []
        try:
            future = self._client.submit(_on_worker(), pickle.dumps(job), key=key, pure=False, workers=where or None)
        except (OSError, RuntimeError) as error:
            raise self._gone() from error
        self._jobs[key] = job, future, where
        future.add_done_callback(self._ended.put)

    def next(self) -> tuple[Job, Ending]:
        """Wait until an attempt at one of the started jobs ends.

        Raises:
            EngineError: the scheduler is gone, there was no worker for `PATIENCE` seconds, or no worker can be used.
        """
        while True:
            try:
                future = self._ended.get(timeout=LOOKS)
            except queue.Empty:
                self._look()
                if self._pinned and self._pinned not in self._threads and self._jobs:
                    return self._lost_with_pinned()
                self._restart_stranded()
                continue
            if future.key not in self._jobs:  # an attempt that was given up
                continue
            job, _, _ = self._jobs.pop(future.key)
            ending = self._ending(future)
            if ending is not None:
                return job, ending
            if self._pinned:  # the only worker that may do the job has refused it
                return job, WorkerLost(LOST)
            self._look()
            self.start(job)

    def pin(self) -> None:
        """Do the next jobs on one worker, of the computer that has the fewest; wait for one if there is none.

        Raises:
            EngineError: as `next` does.
        """
        self._look()
        while not self._used():
            time.sleep(LOOKS)
            self._look()
        hosts = Counter(_host(address) for address in self._used())
        self._pinned = min(self._used(), key=lambda address: (hosts[_host(address)], address))

    def unpin(self) -> None:
        """Do jobs on all workers again."""
        self._pinned = None

    def stop(self) -> None:
        """Give up all attempts and leave the cluster."""
        for _, future, _ in self._jobs.values():
            future.cancel(reason="stopped", force=True) if self._client.status == "running" else None
        self._jobs.clear()
        log = logging.getLogger("distributed.client")
        level = log.level
        log.setLevel(logging.CRITICAL)  # else a client that is closed while it looks for its scheduler logs a traceback
        self._client.close(timeout=5)
        log.setLevel(level)
        if self._cluster is not None:
            self._cluster.close()

    def _lost_with_pinned(self) -> tuple[Job, Ending]:
        _, (job, future, _) = self._jobs.popitem()
        future.cancel(reason="its worker is lost", force=True)
        return job, WorkerLost(LOST)

    def _restart_stranded(self) -> None:
        """Start jobs anew whose workers have all left. Dask would keep them for these, whatever workers join."""
        for key, (job, future, where) in list(self._jobs.items()):
            if where and self._used() and self._threads.keys().isdisjoint(where) and not future.done():
                del self._jobs[key]
                future.cancel(reason="its workers have left", force=True)
                self.start(job)

    def _ending(self, future: Any) -> Ending | None:
        """Return how an attempt ended; None if its worker can't do it, so that another one must."""
        from distributed import KilledWorker

        if future.status == "cancelled" or self._client.status != "running":
            raise self._gone()
        if future.status == "error":
            error = future.exception()
            if isinstance(error, KilledWorker):
                return WorkerLost(error.allowed_failures + 1)
            raise EngineError(f"a worker of the cluster can't do jobs: {type(error).__name__}: {error}")
        address, name, kind, content = future.result()
        if kind == "refused":
            self._refuse(address, name, content)
            return None
        ending: Ending = pickle.loads(content)
        if isinstance(ending, Raised) and isinstance(ending.error, CannotRunError):
            self._refuse(address, name, str(ending.error))
            return None
        return ending

    def _refuse(self, address: str, name: str, why: str) -> None:
        if address not in self._refused:
            self._refused[address] = f"{name} is not used: {why}"
            self._tell(self._refused[address])

    def _refusals(self) -> str:
        return " ".join(dict.fromkeys(self._refused.values()))

    def _used(self) -> dict[str, int]:
        return {address: threads for address, threads in self._threads.items() if address not in self._refused}

    def _look(self) -> None:
        """Ask the scheduler for its workers.

        Raises:
            EngineError: it is gone, no worker can be used, or there was no worker for too long.
        """
        if self._client.status != "running":
            raise self._gone()
        try:
            self._threads = dict(self._client.nthreads())
        except (OSError, RuntimeError, TimeoutError) as error:
            raise self._gone() from error
        self._looked = time.monotonic()
        if self._used():
            self._had_one, self._first_may_queue = self._looked, False
        elif self._threads:
            raise EngineError(f"no worker can be used. {self._refusals()}")
        elif self._first_may_queue:
            if self._looked - self._reminded > REMINDERS:
                self._reminded = self._looked
                minutes = (self._looked - self._had_one) / 60
                self._tell(f"the cluster has had no worker for {minutes:.0f} minutes: still waiting for its first one")
        elif self._looked - self._had_one > self._patience:
            raise EngineError(f"the cluster has had no worker for {self._patience / 60:g} minutes")

    def _gone(self) -> EngineError:
        return EngineError(
            "the scheduler of the cluster is gone or out of reach; if it has ended, start it and its workers again"
        )


def _host(address: str) -> str:
    return address.rpartition(":")[0]


def at(address: str, tell: Tell) -> DaskCluster:
    """Return the engine of the scheduler at ``address``, such as ``tcp://127.0.0.1:8786``.

    Raises:
        EngineError: Dask is not installed, or there is no scheduler.
    """
    distributed = _dask()
    try:
        client = distributed.Client(address, timeout=10, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise EngineError(f"there is no scheduler at {address}: {error}") from None
    return DaskCluster(client, tell)


def made_by(named: str, tell: Tell) -> DaskCluster:
    """Return the engine of the cluster that a function in a file returns.

    Args:
        named: ``FILE.py:function``.
        tell: see `DaskCluster`.

    Raises:
        EngineError: Dask is not installed, there is no such function, or it makes no cluster.
    """
    distributed = _dask()
    import dask

    file, _, function = named.rpartition(":")
    if not (file and function):
        raise EngineError(f"--cluster takes FILE.py:function, not {named}")
    spec = importlib.util.spec_from_file_location("lossbench_cluster", Path(file).resolve())
    if spec is None or spec.loader is None or not Path(file).is_file():
        raise EngineError(f"there is no Python file {file}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        make = getattr(module, function, None)
        if make is None:
            raise EngineError(f"{file} has no function {function}")
        # Dask would give a job to three more workers before it tells that one was lost; `carry_out` counts itself.
        with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
            cluster = make()
        if cluster is None:  # `Client(None)` would start a cluster on this machine
            raise EngineError(f"{named} returned nothing; it must return the cluster")
        return DaskCluster(distributed.Client(cluster, set_as_default=False), tell, cluster)
    except EngineError:
        raise
    except (Exception, SystemExit) as error:
        raise EngineError(f"{named} made no cluster: {type(error).__name__}: {error}") from error


def _dask() -> Any:
    try:
        import distributed
    except ImportError:
        raise EngineError("a cluster needs Dask: pip install 'lossbench[cluster]'") from None
    return distributed


def _on_worker() -> Callable[[bytes], tuple[str, str, str, Any]]:
    """Return the function that a worker calls. It imports only inside, as the scheduler has to read it too."""

    def call(packed: bytes) -> tuple[str, str, str, Any]:
        from distributed import get_worker

        worker = get_worker()
        key, tasks = worker.get_current_task(), worker.state.tasks

        def is_wanted() -> bool:  # a job that its client cancelled, or left, is "cancelled" here until it ends
            return key in tasks and tasks[key].state != "cancelled"

        try:
            from bench.execute.worker_side import attempt_here

            return worker.address, str(worker.name), "ended", attempt_here(packed, is_wanted)
        except Exception as error:
            named = type(error).__name__
            why = str(error) if named == "CannotRunError" else f"{named}: {error}"
            return worker.address, str(worker.name), "refused", why

    return call
