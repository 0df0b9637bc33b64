"""Does runs in parallel processes, each of which stores the results of its runs itself.

A finished run is therefore safe whatever happens to the process that asked for it. Workers end soon after that process,
however it ends.
"""

import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path

from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky import get_reusable_executor

from . import estimate, pictures, plugins, store
from .estimate import Pace
from .plan import Planned
from .spec import RunSpec
from .train import Trial

# A worker whose memory has grown much, as it does with each data set, is ended between two runs, and another started.
warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given to the executor")


class WorkerError(Exception):
    """The workers can't go on; what they have finished is kept."""


def compute(runs: Sequence[Planned], folder: Path, files: Sequence[Path], jobs: int) -> Iterator[bool]:
    """Does ``runs``, ``jobs`` at a time, and tells of each one that has ended whether it failed.

    The order is that in which they end. ``folder`` is the suite's results folder, ``files`` are its plugins.

    Raises:
        WorkerError: something other than this benchmark ended a worker, or a source file was changed meanwhile.
    """
    # Without this, a worker's first imports would look into the folder that the benchmark was started from.
    os.environ["PYTHONSAFEPATH"] = "1"
    work = (delayed(_work)(run, run.key, folder, files, os.getpid()) for run in runs)
    try:
        with parallel_config("loky", n_jobs=jobs, inner_max_num_threads=1):
            yield from Parallel(return_as="generator_unordered", batch_size=1)(work)
    except BrokenProcessPool:
        raise WorkerError(
            "a worker process was killed, for lack of memory perhaps; what was finished is kept, and the same command "
            "goes on from here (with a smaller --jobs it needs less memory)"
        ) from None


def paces(specs: Sequence[RunSpec], files: Sequence[Path], jobs: int) -> list[Pace | None]:
    """Tries each of ``specs`` out, ``jobs`` at a time; None for what fails, and for all where one ends its process."""
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        with parallel_config("loky", n_jobs=jobs, inner_max_num_threads=1):
            return list(Parallel(batch_size=1)(delayed(_pace)(spec, files, os.getpid()) for spec in specs))
    except BrokenProcessPool:
        return [None] * len(specs)


def _pace(spec: RunSpec, files: Sequence[Path], parent: int) -> Pace | None:
    if os.getpid() != parent:
        _belong_to(parent)
    plugins.load(files)
    try:
        return estimate.pace(spec)
    except Exception:
        return None


def stop() -> None:
    """Ends all workers at once, whatever they are doing."""
    get_reusable_executor(reuse=True).shutdown(kill_workers=True)


def _work(run: Planned, key: str, folder: Path, files: Sequence[Path], parent: int) -> bool:
    if os.getpid() != parent:
        _belong_to(parent)
    plugins.load(files)
    if run.spec.key != key:  # this process has read a newer file than the one that asks
        raise WorkerError("a source file has changed since the suite was started; start it again")
    trial = Trial(run.spec)
    trial.run()
    store.save(store.run_path(folder, key), run.spec, trial.result)
    if run.pictured:
        pictures.save(trial, pictures.path(folder, key))
    return trial.result.status == "failed"


@cache
def _belong_to(parent: int) -> None:
    """Leaves it to the parent to react to Ctrl-C, and ends this process when the parent has."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
