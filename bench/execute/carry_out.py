"""Carry out jobs on an engine, and decide for each whether it is done, has failed, is tried again or is given up.

A job fails only where the job itself is at fault. A crash counts if the job's process ended while its worker lived;
the second crash makes the job fail if nothing ran beside it. A lost worker never makes a job fail: a job that loses
three workers, or twice exceeds a time limit that nobody stated, is *not done*. It can be tried again another time.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .job import Crashed, Ending, Engine, Finished, Job, Raised, TookTooLong, WorkerLost

IN_FLIGHT = 4
"""The number of jobs for each slot that are handed to an engine at a time, so that no slot waits for the client."""
CRASHES, LATE, LOST = 2, 2, 3
"""The number of crashes, of exceeded limits and of lost workers after which a job is not tried again."""


@dataclass(frozen=True)
class Failed:
    """The job itself was at fault; ``limit`` is the stated time limit in seconds that it exceeded, if any."""

    why: str
    limit: float | None = None


@dataclass(frozen=True)
class NotDone:
    """The job was given up, for a reason that may not be its own; ``lost`` says whether that is lost workers."""

    why: str
    lost: bool = False


Verdict = Finished | Raised | Failed | NotDone


@dataclass
class _Attempts:
    """How a job has crashed, and how often it has exceeded its time or lost its worker."""

    crashes: list[str] = field(default_factory=list)
    late: int = 0
    lost: int = 0

    def verdict(self, job: Job, ending: Ending) -> Verdict | None:
        """Return what follows from the end of an attempt; None if the job is to be tried again."""
        match ending:
            case Finished() | Raised():
                return ending
            case Crashed(why):
                self.crashes.append(why)
                if len(self.crashes) < CRASHES:
                    return None
                again = "again" if why == self.crashes[0] else why
                return Failed(f"{self.crashes[0]}, and {again} when it ran alone")
            case TookTooLong(seconds) if job.stated:
                return Failed(f"it took longer than the suite's limit of {seconds:g} s", seconds)
            case TookTooLong(seconds):
                self.late += 1
                return NotDone(f"it took longer than {seconds:g} s, {LATE} times") if self.late == LATE else None
            case WorkerLost(times):
                if self.must_be_alone and self.lost:
                    why = "the workers that had it went away, the last one while nothing else ran"
                    return NotDone(why, lost=True)
                self.lost += times
                return None

    @property
    def must_be_alone(self) -> bool:
        """Whether no other job may run beside the next attempt."""
        return bool(self.crashes) or self.lost >= LOST - 1


@dataclass
class _Queue:
    """Tasks that wait, and what has happened to all that are not yet decided."""

    waiting: deque[Job]
    alone: deque[Job] = field(default_factory=deque)
    running: int = 0
    attempts: dict[str, _Attempts] = field(default_factory=dict)


def carry_out(jobs: Iterable[Job], engine: Engine) -> Iterator[tuple[Job, Verdict]]:
    """Do ``jobs``, and yield each with its verdict as soon as that is known.

    Raises:
        EngineError: the engine cannot go on.
    """
    queue = _Queue(deque(jobs))
    while queue.waiting or queue.alone or queue.running:
        while queue.waiting and queue.running < IN_FLIGHT * max(1, engine.slots):
            engine.start(queue.waiting.popleft())
            queue.running += 1
        if queue.alone and not queue.running:
            engine.start(queue.alone.popleft())
            queue.running += 1
        job, ending = engine.next()
        queue.running -= 1
        attempts = queue.attempts.setdefault(job.key, _Attempts())
        verdict = attempts.verdict(job, ending)
        if verdict is None:
            (queue.alone if attempts.must_be_alone else queue.waiting).append(job)
        else:
            del queue.attempts[job.key]
            yield job, verdict
