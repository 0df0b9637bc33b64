"""Do jobs in this process, one after another."""

from collections import deque

from .job import Ending, Finished, Job, Raised, as_exception


class InThisProcess:
    """The engine that does each job in this process, one after another. A job that crashes ends the process."""

    is_here = True
    slots = workers = 1

    def __init__(self) -> None:
        self._todo: deque[Job] = deque()

    def start(self, job: Job) -> None:
        """Do the job when `next` is called."""
        self._todo.append(job)

    def next(self) -> tuple[Job, Ending]:
        """Do the job that was started first."""
        job = self._todo.popleft()
        try:
            return job, Finished(job.work(*job.args))
        except (Exception, SystemExit) as error:
            return job, Raised(as_exception(error))

    def pin(self) -> None:
        """Do nothing: no process waits."""

    def unpin(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Forget the jobs that were started."""
        self._todo.clear()
