"""Do runs in worker processes, each of which stores the results of its runs itself.

A finished run is therefore safe whatever happens to the process that started the workers. Workers end soon after that
process ends, however it ends. A run that kills its worker, for example by using too much memory, harms no other run:
all runs that were in progress are done again, each alone, and a run that kills its worker again has failed.
"""

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import ShutdownExecutorError, _ExecutorManagerThread

import tasks
from bench.cost import measure_step
from bench.run import plugins, result_file, result_picture
from bench.run.evaluation_check import EvaluationError
from bench.run.pace import Pace, pace
from bench.run.spec import RunSpec
from bench.run.training import RunResult, Training
from bench.suite.plan import Planned

# loky replaces a worker between two runs if its memory has grown much, which happens with every data set, and warns.
warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given to the executor")

IN_THIS_PROCESS = 0
"""The number of jobs that means: run everything in this process, one run after another."""
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
KILLED = "its process was killed, and killed again when it ran alone; perhaps it ran out of memory"
"""Reason stored for a run that kills its worker."""
CHANGED = "a source file has changed since the suite was started; start it again"

P = ParamSpec("P")
Given = TypeVar("Given")


class WorkerError(Exception):
    """The workers cannot go on; finished runs are kept."""


@dataclass(frozen=True)
class FailedStart:
    """A run that failed in its first steps; ``reason`` says why, as for a stored run."""

    reason: str


def compute(runs: Sequence[Planned], folder: Path, plugin_files: Sequence[Path], jobs: int) -> Iterator[bool]:
    """Do ``runs``, ``jobs`` at a time, and yield for each run that ends whether it failed, in the order of their ends.

    Args:
        runs: runs with distinct keys.
        folder: the suite's results folder.
        plugin_files: files to load before a run.
        jobs: number of workers, or `IN_THIS_PROCESS`.

    Raises:
        WorkerError: no worker can be started, or a source file changed after the suite was started.
    """
    if jobs == IN_THIS_PROCESS:
        for run in runs:
            yield _work(run, run.key, folder, plugin_files, os.getpid())
        return
    left = {run.key: run for run in runs}
    suspects = [run for run in runs if _mark(folder, run.key).exists()]  # in progress when an earlier suite was killed
    while left:
        for run in suspects:
            yield _alone(left.pop(run.key), folder, plugin_files)
        before = len(left)
        futures = [_submit(jobs, _work, run, key, folder, plugin_files, os.getpid()) for key, run in left.items()]
        keys = dict(zip(futures, left, strict=True))
        try:
            for future in as_completed(futures):
                failed = future.result()
                del left[keys[future]]
                yield failed
        except (BrokenProcessPool, ShutdownExecutorError):
            for key in [key for key in left if _is_finished(folder, key)]:
                del left[key]
                yield result_file.load(result_file.run_path(folder, key)).status == "failed"
        suspects = [run for key, run in left.items() if _mark(folder, key).exists()]
        if left and not suspects and len(left) == before:
            raise WorkerError("the workers end as soon as they start; finished runs are kept") from None


def paces(specs: Sequence[RunSpec], plugin_files: Sequence[Path], jobs: int) -> list[Pace | FailedStart | None]:
    """Time a few steps of each of ``specs``, ``jobs`` at a time.

    Returns:
        One pace per specification, a `FailedStart` for a run that fails. If a run kills its worker, all are None.
    """
    if jobs == IN_THIS_PROCESS:
        return [_pace(spec, plugin_files, os.getpid()) for spec in specs]
    try:
        futures = [_submit(jobs, _pace, spec, plugin_files, os.getpid()) for spec in specs]
        return [future.result() for future in futures]
    except (BrokenProcessPool, ShutdownExecutorError):
        return [None for _ in specs]


def step_cost(spec: RunSpec, rounds: int, plugin_files: Sequence[Path], jobs: int) -> list[dict[str, Any]]:
    """Measure the cost of a step of ``spec``; see `bench.cost.measure_step.measure`, whose errors propagate.

    Raises:
        WorkerError: the step killed its worker.
    """
    if jobs == IN_THIS_PROCESS:
        return measure_step.measure(spec, rounds)
    try:
        return _submit(1, _step_cost, spec, rounds, plugin_files, os.getpid()).result()
    except (BrokenProcessPool, ShutdownExecutorError):
        raise WorkerError("its process was killed") from None


def stop() -> None:
    """End all workers at once, whatever they are doing."""
    _let_jobs_be_taken_away()
    get_reusable_executor(reuse=True).shutdown(kill_workers=True)


@cache
def _let_jobs_be_taken_away() -> None:
    """Suppress the traceback that loky's thread prints if `stop` takes away the jobs that it still has to hand out."""
    usual = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not (failure.exc_type is KeyError and isinstance(failure.thread, _ExecutorManagerThread)):
            usual(failure)

    threading.excepthook = hook


def _submit(jobs: int, work: Callable[P, Given], *args: P.args, **kwargs: P.kwargs) -> Future[Given]:
    """Submit ``work`` to one of ``jobs`` workers, which are reused unless their number changes or one was killed."""
    # Without this, a worker's first imports would look in the folder that the benchmark was started from.
    os.environ["PYTHONSAFEPATH"] = "1"
    future: Future[Given] = get_reusable_executor(max_workers=jobs, env=ONE_THREAD).submit(work, *args, **kwargs)
    return future


def _alone(run: Planned, folder: Path, plugin_files: Sequence[Path]) -> bool:
    """Do a run that may kill its worker while no other run is in progress, and return whether it failed."""
    try:
        return _submit(1, _work, run, run.key, folder, plugin_files, os.getpid()).result()
    except (BrokenProcessPool, ShutdownExecutorError):
        pass
    if not result_file.run_path(folder, run.key).is_file():
        names = tasks.get(run.spec.problem)(**run.spec.problem_options).tasks
        failed = RunResult(tasks=names, status="failed", reason=KILLED)
        result_file.save(result_file.run_path(folder, run.key), run.spec, failed)
    if run.pictured and not result_picture.path(folder, run.key).is_file():
        result_picture.save_none(result_picture.path(folder, run.key), f"No picture: {KILLED}")
    _mark(folder, run.key).unlink(missing_ok=True)
    return result_file.load(result_file.run_path(folder, run.key)).status == "failed"


def _mark(folder: Path, key: str) -> Path:
    """Return the path of a file that exists while a run is in progress, and remains if the run's process is killed."""
    return folder / "running" / key


def _is_finished(folder: Path, key: str) -> bool:
    return result_file.run_path(folder, key).is_file() and not _mark(folder, key).exists()


def _work(run: Planned, key: str, folder: Path, plugin_files: Sequence[Path], parent: int) -> bool:
    _begin(plugin_files, parent)
    if run.spec.key != key:  # this process has imported a newer source file than the process that submitted the run
        raise WorkerError(CHANGED)
    mark = _mark(folder, key)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    training = Training(run.spec)
    training.run()
    result_file.save(result_file.run_path(folder, key), run.spec, training.result)
    if run.pictured:
        result_picture.save(training, result_picture.path(folder, key))
    mark.unlink()
    return training.result.status == "failed"


def _pace(spec: RunSpec, plugin_files: Sequence[Path], parent: int) -> Pace | FailedStart:
    _begin(plugin_files, parent)
    try:
        return pace(spec)
    except EvaluationError as error:
        return FailedStart(str(error))
    except Exception as error:
        failed = Training(spec)
        failed.fail(error)  # this words the reason
        return FailedStart(failed.result.reason)


def _step_cost(spec: RunSpec, rounds: int, plugin_files: Sequence[Path], parent: int) -> list[dict[str, Any]]:
    _begin(plugin_files, parent)
    return measure_step.measure(spec, rounds)


def _begin(plugin_files: Sequence[Path], parent: int) -> None:
    if os.getpid() != parent:
        _belong_to(parent)
    plugins.load(plugin_files)


@cache
def _belong_to(parent: int) -> None:
    """Ignore Ctrl-C, which the parent handles, and end this process when the parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
