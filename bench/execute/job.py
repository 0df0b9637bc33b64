"""Define the jobs that an engine carries out, and the ways in which an attempt at one can end.

An engine is this machine (`this_machine`) or a cluster (`cluster`). Both do each job in a slot, see `slot`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias


@dataclass(frozen=True)
class Limits:
    """The most that a job may use: ``seconds`` of time, ``memory`` bytes of resident memory. None is no limit."""

    seconds: float | None = None
    memory: float | None = None


NO_LIMITS = Limits()


class CannotRunError(Exception):
    """The computer that raises this can't do the job, for a reason of its own such as another version of PyTorch."""


class OtherVersionError(CannotRunError):
    """The code, the data or PyTorch on the computer that raises this differ from the client's."""


class EngineError(Exception):
    """The engine cannot go on; what is finished is kept."""


@dataclass(frozen=True)
class Job:
    """A call that an engine does for the client.

    Attributes:
        key: name of the job, which no other has.
        work: a function of the packages of this project.
        args: its arguments. They and what it returns can be pickled.
        limits: limits of an attempt's time and memory.
        stated: whether the suite states the time limit. A job that exceeds it has failed; one that exceeds a limit
            that nobody stated may have had bad luck.
        loads: what the call loads into its process besides this project; see `Slot.do`.
        own_limit: a function of ``args`` that returns the seconds that an attempt may take on the computer that calls
            it. An attempt that exceeds the time limit is made once more there if that computer may take longer.
    """

    key: str
    work: Callable[..., Any]
    args: tuple[Any, ...]
    limits: Limits = NO_LIMITS
    stated: bool = False
    loads: str = ""
    own_limit: Callable[..., float] | None = None


@dataclass(frozen=True)
class Finished:
    """The call returned ``value``."""

    value: Any


@dataclass(frozen=True)
class Raised:
    """The call raised an exception."""

    error: Exception


def as_exception(error: BaseException) -> Exception:
    """Return ``error``, or a RuntimeError with its text if it is no `Exception`: a SystemExit ends its thread."""
    return error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Crashed:
    """The process of the job ended by itself, while its worker lived. ``why`` is a clause."""

    why: str


@dataclass(frozen=True)
class TookTooLong:
    """The attempt was ended at its time limit."""

    seconds: float


@dataclass(frozen=True)
class WorkerLost:
    """Workers that had the job went away: their processes, their computers or their network."""

    times: int


Ending: TypeAlias = Finished | Raised | Crashed | TookTooLong | WorkerLost


class Engine(Protocol):
    """Does jobs, several at a time, in any order.

    Attributes:
        is_here: whether all jobs are done on this computer.
    """

    is_here: bool

    @property
    def slots(self) -> int:
        """The number of jobs that can be done at a time now."""

    @property
    def workers(self) -> int:
        """The number of processes or computers that do jobs now."""

    def start(self, job: Job) -> None:
        """Do the job as soon as a slot is free."""

    def next(self) -> tuple[Job, Ending]:
        """Wait until an attempt at one of the started jobs ends.

        Raises:
            EngineError: no attempt can be made any more.
        """

    def pin(self) -> None:
        """End the processes that wait for jobs, and do the next jobs on one computer, one at a time."""

    def unpin(self) -> None:
        """Do jobs anywhere again."""

    def stop(self) -> None:
        """End all attempts at once, and everything that was started for them."""
