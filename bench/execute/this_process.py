"""Do tasks in this process, one after another."""

from collections import deque

from .task import Ending, Finished, Raised, Task, as_exception


class InThisProcess:
    """The engine that does each task in this process, one after another. A task that crashes ends the process."""

    is_here = True
    slots = workers = 1

    def __init__(self) -> None:
        self._todo: deque[Task] = deque()

    def start(self, task: Task) -> None:
        """Do the task when `next` is called."""
        self._todo.append(task)

    def next(self) -> tuple[Task, Ending]:
        """Do the task that was started first."""
        task = self._todo.popleft()
        try:
            return task, Finished(task.work(*task.args))
        except (Exception, SystemExit) as error:
            return task, Raised(as_exception(error))

    def pin(self) -> None:
        """Do nothing: no process waits."""

    def unpin(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Forget the tasks that were started."""
        self._todo.clear()
