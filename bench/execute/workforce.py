"""Do a suite's runs: in this process, in processes of this machine, or on a cluster.

Whoever does a run sends its results back; only the process that started the suite writes them, each as it arrives. A
finished run is therefore safe whatever happens afterwards.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

import tasks
from bench.run import code_hash, plugins, result_file
from bench.run.pace import Pace
from bench.run.result_picture import Picture
from bench.run.result_store import ResultStore
from bench.run.training import RunResult
from bench.suite.plan import Planned
from bench.suite.suite_entries import UNLIMITED, StatedLimits

from . import cluster, run_job
from .carry_out import Failed, NotDone, Verdict, carry_out
from .job import NO_LIMITS, CannotRunError, Engine, EngineError, Finished, Job, Limits, OtherVersionError, Raised
from .run_job import TIMES_FORECAST, FailedStart, PortableRun, RunOutcome
from .this_process import InThisProcess

IN_THIS_PROCESS = 0
"""The number of jobs that means: run everything in this process, one run after another."""
LEAST_SECONDS, WITHOUT_FORECAST = 60.0, 3600.0
"""A run is not given up before the first of these seconds; without a forecast it is after the second."""
FIRST_STEPS = 600.0
"""Seconds after which the first steps of a run are given up."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class RunEnd:
    """How a run ended: whether it failed, and why it was given up; ``not_done`` is empty if its result is stored."""

    run: Planned
    failed: bool
    not_done: str = ""


class WorkerLostError(Exception):
    """The worker that measured went away."""


class StepFailedError(Exception):
    """A step that was measured ended its process, or did not end."""


class Workforce:
    """Whoever does the runs of suites, until it is left.

    Args:
        engine: what does tasks.
        tell: called with a sentence about what the user should know.
    """

    def __init__(self, engine: Engine, tell: Tell = print) -> None:
        self._engine, self.tell = engine, tell

    @classmethod
    def of(cls, jobs: int, tell: Tell = print, gpus: Sequence[str] = ()) -> Self:
        """Return ``jobs`` processes of this machine, or with `IN_THIS_PROCESS` this process.

        The processes take ``gpus`` in turns, and each sees its own alone; see `visible_gpus`.
        Without the packages pebble and psutil it is this process too, and ``tell`` is called with a sentence on it.
        """
        if jobs == IN_THIS_PROCESS:
            return cls(InThisProcess(), tell)
        if missing := [name for name in ("pebble", "psutil") if find_spec(name) is None]:
            named = " and ".join(missing)
            how = "in this process, one after another and without limits of time or memory"
            tell(f"{named} not found (pip install pebble psutil): runs are done {how}")
            return cls(InThisProcess(), tell)
        from .this_machine import ThisMachine  # here, as it needs pebble

        return cls(ThisMachine(jobs, gpus), tell)

    @classmethod
    def at(cls, scheduler: str, tell: Tell = print) -> Self:
        """Return the workers of a Dask scheduler; see `cluster.at`."""
        return cls(cluster.at(scheduler, tell), tell)

    @classmethod
    def made_by(cls, named: str, tell: Tell = print) -> Self:
        """Return the workers of a Dask cluster that a function makes; see `cluster.made_by`."""
        return cls(cluster.made_by(named, tell), tell)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._engine.stop()

    @property
    def slots(self) -> int:
        """The number of runs at a time."""
        return max(1, self._engine.slots)

    def hands(self) -> tuple[int, int]:
        """Return the number of runs at a time, and of the processes or computers that do them, both of now."""
        return self.slots, self._engine.workers

    def do(
        self,
        runs: Sequence[Planned],
        store: ResultStore,
        plugin_files: Sequence[Path] = (),
        limits: StatedLimits = UNLIMITED,
        forecast: Callable[[Planned], float | None] = lambda run: None,
    ) -> Iterator[RunEnd]:
        """Do ``runs``, store each result as it arrives, and yield each run that ends, in the order of their ends.

        Args:
            runs: runs with distinct keys.
            store: where results are stored.
            plugin_files: files to load before a run.
            limits: limits that a run fails by if it exceeds them.
            forecast: returns the seconds that a run is expected to take, or None.

        Raises:
            EngineError: no further run can be done; finished runs are kept.
        """
        load = _Load(plugin_files)
        by_key = {run.key: run for run in runs}
        stated = limits.seconds is not None
        todo = [
            replace(
                load.job(run.key, run_job.do, run, limits=_limits(limits, forecast(run))),
                stated=stated,
                own_limit=None if stated else run_job.time_limit,
            )
            for run in runs
        ]
        for job, verdict in carry_out(todo, self._engine):
            yield _kept(by_key[job.key], verdict, store)

    def paces(
        self, runs: Sequence[Planned], plugin_files: Sequence[Path] = (), limits: StatedLimits = UNLIMITED
    ) -> list[Pace | FailedStart | None]:
        """Time a few steps of each of ``runs``, which may use no more than ``limits`` allow a whole run.

        Returns:
            One pace per run, a `FailedStart` for one that fails in its first steps, None if that is not known.
        """
        load, stated = _Load(plugin_files), limits.seconds is not None
        most = replace(_limits(limits, None), seconds=min(FIRST_STEPS, limits.seconds or FIRST_STEPS))
        todo = [
            replace(load.job(f"pace-{k}", run_job.first_steps, run, limits=most), stated=stated)
            for k, run in enumerate(runs)
        ]
        found: list[Pace | FailedStart | None] = [None] * len(runs)
        for job, verdict in carry_out(todo, self._engine):
            if isinstance(verdict, Finished):
                found[int(job.key.removeprefix("pace-"))] = verdict.value
            elif isinstance(verdict, Raised):
                raise _given_up(verdict)
        return found

    @contextmanager
    def one_worker(self) -> Iterator[None]:
        """Let nothing else run in the block: its jobs are done by one worker, one at a time."""
        self._engine.pin()
        try:
            yield
        finally:
            self._engine.unpin()

    def kind_of_machine(self) -> tuple[str, str | None]:
        """Return the names of the processor and the GPU that a job runs on; see `one_worker`."""
        if self._engine.is_here:
            return run_job.kind_of_machine()
        kind: tuple[str, str | None] = self._call(Job("machine", run_job.kind_of_machine, ()))
        return kind

    def busy_cores(self) -> float:
        """Return the number of cores that are in use where steps are timed, before they are; see `one_worker`."""
        if self._engine.is_here:
            return run_job.busy_cores()
        busy: float = self._call(Job("busy", run_job.busy_cores, ()))
        return busy

    def step_cost(self, run: Planned, rounds: int, plugin_files: Sequence[Path] = ()) -> list[dict[str, Any]]:
        """Measure the cost of a step; errors of the step propagate.

        Raises:
            StepFailedError: the step ended its process, or it did not end within an hour.
            WorkerLostError: the worker went away.
        """
        limits = Limits(WITHOUT_FORECAST)
        rows: list[dict[str, Any]] = self._call(
            _Load(plugin_files).job(f"cost-{run.key}", run_job.step_cost, run, rounds, limits=limits)
        )
        return rows

    def _call(self, job: Job) -> Any:
        """Return what one job returns; errors that it raises propagate."""
        [(_, verdict)] = carry_out([job], self._engine)
        match verdict:
            case Finished(value):
                return value
            case Raised(error):
                raise error
            case NotDone(why, lost=True):
                raise WorkerLostError(why)
            case NotDone(why) | Failed(why):
                raise StepFailedError(why)


def visible_gpus() -> list[str]:
    """Return the GPUs that this process sees, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    number = torch.cuda.device_count()
    return named.split(",")[:number] if named else [str(k) for k in range(number)]


class _Load:
    """Makes jobs that load plugins."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._sources = plugins.sources(files)
        self._loads = code_hash.digest([[source.stem, source.content.hex()] for source in self._sources])

    def job(
        self,
        key: str,
        work: Callable[..., object],
        run: Planned,
        *more: object,
        limits: Limits = NO_LIMITS,
    ) -> Job:
        portable = PortableRun.of(run, self._sources)
        return Job(key, work, (portable, *more), limits, loads=self._loads)


def _limits(stated: StatedLimits, forecast: float | None) -> Limits:
    seconds = stated.seconds
    if seconds is None:
        seconds = WITHOUT_FORECAST if forecast is None else max(LEAST_SECONDS, TIMES_FORECAST * forecast)
    return Limits(seconds, None if stated.memory is None else stated.memory * 2**30)


def _kept(run: Planned, verdict: Verdict, store: ResultStore) -> RunEnd:
    """Store what is to be kept of a run that ended."""
    match verdict:
        case Finished(RunOutcome() as outcome):
            store.keep(run.key, outcome.result, outcome.picture)
            return RunEnd(run, outcome.failed)
        case Failed(why, limit):
            names = tasks.create(run.spec.problem, **run.spec.problem_options).tasks
            result = RunResult(tasks=names, status="failed", reason=why, limit=limit)
            picture = Picture(b"", f"No picture: {why}") if run.pictured else None
            store.keep(run.key, result_file.encode(run.spec, result), picture)
            return RunEnd(run, True)
        case NotDone(why):
            return RunEnd(run, False, why)
        case Raised():
            raise _given_up(verdict)
    raise TypeError(verdict)


def _given_up(raised: Raised) -> Exception:
    """Return what to raise where a job raised an exception, which runs do not."""
    error = raised.error
    remedy = "; start the suite again" if isinstance(error, OtherVersionError) else ""
    return EngineError(f"{error}{remedy}") if isinstance(error, CannotRunError) else error
