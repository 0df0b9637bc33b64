"""Do jobs inside a worker of a Dask cluster: each thread of the worker has a slot.

Tasks arrive as bytes and endings leave as bytes, so that the scheduler needs none of this project's packages.
"""

import multiprocessing
import pickle
import queue
import threading
from collections.abc import Callable
from multiprocessing.util import Finalize

from .job import CannotRunError
from .slot import Slot
from .this_machine import attempt

LOOKS = 1.0
"""Seconds between two looks whether a job is still wanted."""

_free: "queue.SimpleQueue[Slot]" = queue.SimpleQueue()

DAEMONIC = (
    "its process may have no children: start workers with the environment variable "
    "DASK_DISTRIBUTED__WORKER__DAEMON=False"
)


def attempt_here(packed: bytes, is_wanted: Callable[[], bool]) -> bytes:
    """Do a packed `Job` in a slot of this worker, and return its packed `Ending`.

    Args:
        packed: the job.
        is_wanted: returns whether somebody still waits for the job; if nobody does, its process is ended.

    Raises:
        CannotRunError: this process may have no children.
    """
    if multiprocessing.current_process().daemon:
        raise CannotRunError(DAEMONIC)
    job = pickle.loads(packed)
    try:
        slot = _free.get_nowait()
    except queue.Empty:
        slot = Slot()
        Finalize(None, slot.close, exitpriority=1)  # before this process waits for its children, at its end
    ended = threading.Event()
    watch = threading.Thread(target=_end_unwanted, args=(slot, is_wanted, ended), daemon=True)
    watch.start()
    try:
        return pickle.dumps(attempt(job, slot))
    finally:
        ended.set()
        watch.join()  # before the slot has another job
        _free.put(slot)


def _end_unwanted(slot: Slot, is_wanted: Callable[[], bool], ended: threading.Event) -> None:
    """End the slot's process if the job that it does is not wanted any more: Dask can't end a thread."""
    while not ended.wait(LOOKS):
        if not is_wanted():
            slot.stop()
