"""Does runs in processes of their own, each of which stores the results of its runs itself.

A finished run is therefore safe whatever happens to the process that asked for it. Workers end soon after that process,
however it ends. A run that ends its worker's process, for lack of memory say, harms no other: the runs that were under
way then are done again, each alone, and one that does so again has failed.
"""

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import ShutdownExecutorError, _ExecutorManagerThread

import tasks
from bench.cost import measure_step
from bench.run import plugins, result_file, result_picture
from bench.run.pace import Pace, pace
from bench.run.spec import RunSpec
from bench.run.training import Result, Training
from bench.suite.plan import Planned

# A worker whose memory has grown much, as it does with each data set, is ended between two runs, and another started.
warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given to the executor")

IN_THIS_PROCESS = 0
"""So many jobs at a time: one after another, without a worker."""
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
KILLED = "its process was killed, and once more when it ran alone: for lack of memory, perhaps"
CHANGED = "a source file has changed since the suite was started; start it again"

P = ParamSpec("P")
Given = TypeVar("Given")


class WorkerError(Exception):
    """The workers can't go on; what they have finished is kept."""


def compute(runs: Sequence[Planned], folder: Path, plugin_files: Sequence[Path], jobs: int) -> Iterator[bool]:
    """Does ``runs``, ``jobs`` at a time, and tells of each one that has ended whether it failed.

    The order is that in which they end. ``folder`` is the suite's results folder.

    Raises:
        WorkerError: no worker can be started, or a source file was changed meanwhile.
    """
    if jobs == IN_THIS_PROCESS:
        for run in runs:
            yield _work(run, run.key, folder, plugin_files, os.getpid())
        return
    left = {run.key: run for run in runs}
    suspects = [run for run in runs if _mark(folder, run.key).exists()]  # under way when an earlier process was killed
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
            raise WorkerError("the workers end as soon as they start; what was finished is kept") from None


def paces(specs: Sequence[RunSpec], plugin_files: Sequence[Path], jobs: int) -> list[Pace | None]:
    """Tries each of ``specs`` out, ``jobs`` at a time; None for what fails, and for all where one ends its process."""
    if jobs == IN_THIS_PROCESS:
        return [_pace(spec, plugin_files, os.getpid()) for spec in specs]
    try:
        futures = [_submit(jobs, _pace, spec, plugin_files, os.getpid()) for spec in specs]
        return [future.result() for future in futures]
    except (BrokenProcessPool, ShutdownExecutorError):
        return [None] * len(specs)


def step_cost(spec: RunSpec, rounds: int, plugin_files: Sequence[Path], jobs: int) -> list[dict[str, Any]]:
    """What a step of ``spec`` costs, see `bench.cost.measure_step.measure`; whatever that raises, this raises.

    Raises:
        WorkerError: the step ended its process.
    """
    if jobs == IN_THIS_PROCESS:
        return measure_step.measure(spec, rounds)
    try:
        return _submit(1, _step_cost, spec, rounds, plugin_files, os.getpid()).result()
    except (BrokenProcessPool, ShutdownExecutorError):
        raise WorkerError("its process was killed") from None


def stop() -> None:
    """Ends all workers at once, whatever they are doing."""
    _let_jobs_be_taken_away()
    get_reusable_executor(reuse=True).shutdown(kill_workers=True)


@cache
def _let_jobs_be_taken_away() -> None:
    """The thread of loky's that hands out jobs ends without a traceback when those are gone that it was to hand out."""
    usual = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not (failure.exc_type is KeyError and isinstance(failure.thread, _ExecutorManagerThread)):
            usual(failure)

    threading.excepthook = hook


def _submit(jobs: int, work: Callable[P, Given], *args: P.args, **kwargs: P.kwargs) -> Future[Given]:
    """Has ``work`` done by one of ``jobs`` workers; those there are go on, if they are as many and none was killed."""
    # Without this, a worker's first imports would look into the folder that the benchmark was started from.
    os.environ["PYTHONSAFEPATH"] = "1"
    future: Future[Given] = get_reusable_executor(max_workers=jobs, env=ONE_THREAD).submit(work, *args, **kwargs)
    return future


def _alone(run: Planned, folder: Path, plugin_files: Sequence[Path]) -> bool:
    """Does a run that may end its process, with no other under way; whether it failed."""
    try:
        return _submit(1, _work, run, run.key, folder, plugin_files, os.getpid()).result()
    except (BrokenProcessPool, ShutdownExecutorError):
        pass
    if not result_file.run_path(folder, run.key).is_file():
        names = tasks.get(run.spec.problem)(**run.spec.problem_options).tasks
        failed = Result(tasks=names, status="failed", reason=KILLED)
        result_file.save(result_file.run_path(folder, run.key), run.spec, failed)
    if run.pictured and not result_picture.path(folder, run.key).is_file():
        result_picture.save_none(result_picture.path(folder, run.key), f"No picture: {KILLED}")
    _mark(folder, run.key).unlink(missing_ok=True)
    return result_file.load(result_file.run_path(folder, run.key)).status == "failed"


def _mark(folder: Path, key: str) -> Path:
    """What is there while a run is under way, and stays when its process is killed."""
    return folder / "running" / key


def _is_finished(folder: Path, key: str) -> bool:
    return result_file.run_path(folder, key).is_file() and not _mark(folder, key).exists()


def _work(run: Planned, key: str, folder: Path, plugin_files: Sequence[Path], parent: int) -> bool:
    _begin(plugin_files, parent)
    if run.spec.key != key:  # this process has read a newer file than the one that asks
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


def _pace(spec: RunSpec, plugin_files: Sequence[Path], parent: int) -> Pace | None:
    _begin(plugin_files, parent)
    try:
        return pace(spec)
    except Exception:
        return None


def _step_cost(spec: RunSpec, rounds: int, plugin_files: Sequence[Path], parent: int) -> list[dict[str, Any]]:
    _begin(plugin_files, parent)
    return measure_step.measure(spec, rounds)


def _begin(plugin_files: Sequence[Path], parent: int) -> None:
    if os.getpid() != parent:
        _belong_to(parent)
    plugins.load(plugin_files)


@cache
def _belong_to(parent: int) -> None:
    """Leaves it to the parent to react to Ctrl-C, and ends this process when the parent has."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
