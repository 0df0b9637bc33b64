"""Do jobs in a child process. A job that crashes, takes too long or needs too much memory ends the child alone.

A slot does one job at a time. Its child is started at the first job, serves all further jobs, and is replaced when it
ends. Children of this machine and of the workers of a cluster are alike.
"""

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from typing import Any, TypeVar

import psutil
from pebble import ProcessExpired, ProcessFuture, ProcessPool

from .job import Limits, as_exception

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
"""Environment variables of a child. They work only if they are set before the child imports NumPy and PyTorch."""
OUT_OF_MEMORY = 77
"""Exit code by which a child says that its job needed more memory than it may."""
LOOKS = 0.05
"""Seconds between two looks at the memory of a child."""

Given = TypeVar("Given")


class ChildEndedError(Exception):
    """The child ended during the job; ``exit_code`` is negative if a signal ended it, and None if its slot did."""

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code

    @property
    def clause(self) -> str:
        """How the child ended, as a clause."""
        if self.exit_code is None:
            return "its process was stopped"
        if self.exit_code < 0:
            return f"its process was killed by signal {-self.exit_code}; perhaps it ran out of memory"
        return f"its process ended itself with exit code {self.exit_code}"


class TimeLimitError(Exception):
    """The job took longer than it may, and its child was ended."""


class MemoryLimitError(Exception):
    """The job needed more memory than it may, and its child was ended."""


class Slot:
    """A child process that does one job at a time.

    Args:
        gpu: what the child's ``CUDA_VISIBLE_DEVICES`` is set to, so that it sees one GPU; None leaves it as it is.
    """

    def __init__(self, gpu: str | None = None) -> None:
        self._gpu = gpu
        self._closed = False
        self._lock = threading.Lock()
        """Held while the child is started or given a job, so that neither happens after `close` or beside `stop`."""
        self._pool: ProcessPool | None = None
        self._doing: ProcessFuture[Any] | None = None
        """The last job that the child was given."""
        self._loaded = ""

    def do(self, limits: Limits, work: Callable[..., Given], *args: object, loads: str = "") -> Given:
        """Return what ``work`` returns in the child. Errors that it raises propagate.

        Args:
            limits: limits of the job's time and memory.
            work: a function that the child can import.
            args: its arguments.
            loads: what the job loads into the child besides this project. A child that loaded something else is
                replaced first.

        Raises:
            TimeLimitError: the job took too long.
            MemoryLimitError: the job needed too much memory.
            ChildEndedError: the child ended for another reason.
        """
        if loads and self._loaded not in ("", loads):
            self.stop()
        pool = self._ready(loads)
        try:
            self._give(pool, None, _imported, work).result()  # which takes no part of the job's time
            value, error = self._give(pool, limits.seconds, _in_child, limits.memory, work, args).result()
        except CancelledError:
            raise ChildEndedError(None) from None
        except TimeoutError:
            raise TimeLimitError from None
        except ProcessExpired as expired:
            if expired.exitcode == OUT_OF_MEMORY:
                raise MemoryLimitError from None
            raise ChildEndedError(expired.exitcode) from None
        if error is not None:
            raise error
        done: Given = value
        return done

    def stop(self) -> None:
        """End the child at once, whatever it is doing. Another thread's `do` then raises a `ChildEndedError`."""
        with self._lock:
            pool, self._pool = self._pool, None
            doing = self._doing
        if pool is not None:
            if doing is not None:
                doing.cancel()  # a pool that stops leaves waiting whoever waits for a job that has not begun
            pool.stop()
            pool.join()

    def close(self) -> None:
        """End the child, and start no other."""
        with self._lock:
            self._closed = True
        self.stop()

    def _give(
        self, pool: ProcessPool, seconds: float | None, job: Callable[..., Any], *args: object
    ) -> ProcessFuture[Any]:
        """Give the child a job, unless `stop` has ended it."""
        with self._lock:
            if pool is not self._pool:
                raise ChildEndedError(None)
            self._doing = pool.schedule(job, args, timeout=seconds)
            return self._doing

    def _ready(self, loads: str) -> ProcessPool:
        with self._lock:
            if self._closed:
                raise ChildEndedError(None)
            if self._pool is None:
                self._pool, self._loaded = _started_pool(self._gpu), ""
            self._loaded = loads or self._loaded
            return self._pool


def _started_pool(gpu: str | None) -> ProcessPool:
    # A child inherits these. Without the last one, its first imports would look in the folder that it is started from.
    os.environ |= {**ONE_THREAD, "PYTHONSAFEPATH": "1"}
    context = multiprocessing.get_context("spawn")
    return ProcessPool(max_workers=1, context=context, initializer=_begin, initargs=[os.getpid(), gpu])


# The functions below run in the child process.


def _begin(parent: int, gpu: str | None) -> None:
    """Ignore Ctrl-C, which the parent handles, see one GPU, and end this process when the parent has ended."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _imported(work: Callable[..., object]) -> None:
    """Do nothing: the child has imported the function when it gets here."""


def _in_child(
    memory: float | None, work: Callable[..., object], args: Sequence[object]
) -> tuple[Any, Exception | None]:
    """Return what ``work`` returns, or the exception that it raises in a form that can be sent."""
    done = threading.Event()
    if memory is not None:
        threading.Thread(target=_watch_memory, args=(memory, done), daemon=True).start()
    try:
        return work(*args), None
    except BaseException as error:  # pebble would send a SystemExit, which ends the thread that waits for the child
        return None, _sendable(as_exception(error))
    finally:
        done.set()


def _watch_memory(most: float, done: threading.Event) -> None:
    process = psutil.Process()
    while not done.wait(LOOKS):
        if process.memory_info().rss > most:
            os._exit(OUT_OF_MEMORY)


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
