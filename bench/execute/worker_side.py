"""Do tasks inside a worker of a Dask cluster: each thread of the worker has a slot.

Tasks arrive as bytes and endings leave as bytes, so that the scheduler needs none of this project's packages.
"""

import multiprocessing
import pickle
import queue
from multiprocessing.util import Finalize

from .slot import Slot
from .task import CannotRunError
from .this_machine import attempt

_free: "queue.SimpleQueue[Slot]" = queue.SimpleQueue()

DAEMONIC = (
    "its process may have no children: start workers with the environment variable "
    "DASK_DISTRIBUTED__WORKER__DAEMON=False"
)


def attempt_here(packed: bytes) -> bytes:
    """Do a packed `Task` in a slot of this worker, and return its packed `Ending`.

    Raises:
        CannotRunError: this process may have no children.
    """
    if multiprocessing.current_process().daemon:
        raise CannotRunError(DAEMONIC)
    task = pickle.loads(packed)
    try:
        slot = _free.get_nowait()
    except queue.Empty:
        slot = Slot()
        Finalize(None, slot.close, exitpriority=1)  # before this process waits for its children, at its end
    try:
        return pickle.dumps(attempt(task, slot))
    finally:
        _free.put(slot)
