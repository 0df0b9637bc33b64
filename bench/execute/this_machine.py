"""Do jobs in child processes of this one: each slot in a thread that waits for its child."""

import queue
import threading
from collections.abc import Sequence
from dataclasses import replace

import psutil

from .job import Crashed, Ending, Finished, Job, Limits, Raised, TookTooLong, as_exception
from .slot import ChildEndedError, MemoryLimitError, Slot, TimeLimitError

MOST_MEMORY = 0.9
"""The share of the machine's memory that a job may use where no limit is stated."""


class ThisMachine:
    """The engine of a suite that no cluster is named for.

    Args:
        slots: number of jobs at a time.
        gpus: the GPUs, as ``CUDA_VISIBLE_DEVICES`` names them. Slots take them in turns, and each sees its own alone.
    """

    is_here = True

    def __init__(self, slots: int, gpus: Sequence[str] = ()) -> None:
        self.slots = self.workers = slots
        self._slots = [Slot(gpus[k % len(gpus)] if gpus else None) for k in range(slots)]
        self._todo: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[tuple[Job, Ending]] = queue.SimpleQueue()
        self._stopped = False
        for slot in self._slots:  # as daemons, they don't keep a process alive that is to end
            threading.Thread(target=self._serve, args=(slot,), name="slot", daemon=True).start()

    def start(self, job: Job) -> None:
        """Do the job as soon as a slot is free."""
        self._todo.put(job)

    def next(self) -> tuple[Job, Ending]:
        """Wait until an attempt at one of the started jobs ends."""
        return self._ended.get()

    def pin(self) -> None:
        """End the processes that wait for tasks."""
        for slot in self._slots:
            slot.stop()

    def unpin(self) -> None:
        """Do nothing: processes start when they are needed."""

    def stop(self) -> None:
        """End all attempts at once."""
        self._stopped = True
        for slot in self._slots:
            self._todo.put(None)
            slot.close()

    def _serve(self, slot: Slot) -> None:
        while (job := self._todo.get()) is not None and not self._stopped:
            try:
                ending = attempt(job, slot)
            except BaseException as error:  # else this thread ends, and `next` waits for ever
                ending = Raised(as_exception(error))
            self._ended.put((job, ending))


def attempt(job: Job, slot: Slot) -> Ending:
    """Do the job in a slot, and return how that ended."""
    ending = _attempt(job, slot, job.limits.seconds)
    if not isinstance(ending, TookTooLong) or job.own_limit is None:
        return ending
    timed = _attempt(replace(job, work=job.own_limit), slot, ending.seconds)
    if isinstance(timed, Finished) and timed.value > ending.seconds:  # a slower computer than the one that timed
        return _attempt(job, slot, timed.value)
    return ending


def _attempt(job: Job, slot: Slot, seconds: float | None) -> Ending:
    memory = job.limits.memory or MOST_MEMORY * psutil.virtual_memory().total
    try:
        return Finished(slot.do(Limits(seconds, memory), job.work, *job.args, loads=job.loads))
    except TimeLimitError:
        return TookTooLong(seconds or 0.0)
    except MemoryLimitError:
        return Crashed(f"its process needed more than {memory / 2**30:.3g} GiB of memory")
    except ChildEndedError as ended:
        return Crashed(ended.clause)
    except Exception as error:
        return Raised(error)
