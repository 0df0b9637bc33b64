"""Carry out tasks on an engine, and decide for each whether it is done, has failed, is tried again or is given up.

A task fails only where the task itself is at fault. A crash counts if the task's process ended while its worker lived;
the second crash makes the task fail if nothing ran beside it. A lost worker never makes a task fail: a task that loses
three workers, or twice exceeds a time limit that nobody stated, is *not done*. It can be tried again another time.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .task import Crashed, Ending, Engine, Finished, Raised, Task, TookTooLong, WorkerLost

IN_FLIGHT = 4
"""The number of tasks for each slot that are handed to an engine at a time, so that no slot waits for the client."""
CRASHES, LATE, LOST = 2, 2, 3
"""The number of crashes, of exceeded limits and of lost workers after which a task is not tried again."""


@dataclass(frozen=True)
class Failed:
    """The task itself was at fault; ``limit`` is the stated time limit in seconds that it exceeded, if any."""

    why: str
    limit: float | None = None


@dataclass(frozen=True)
class NotDone:
    """The task was given up, for a reason that may not be its own; ``lost`` says whether that is lost workers."""

    why: str
    lost: bool = False


Verdict = Finished | Raised | Failed | NotDone


@dataclass
class _Attempts:
    """The number of times that a task has crashed, exceeded its time, or lost its worker."""

    crashes: int = 0
    late: int = 0
    lost: int = 0

    def verdict(self, task: Task, ending: Ending) -> Verdict | None:
        """Return what follows from the end of an attempt; None if the task is to be tried again."""
        match ending:
            case Finished() | Raised():
                return ending
            case Crashed(why):
                self.crashes += 1
                return Failed(f"{why}, and again when it ran alone") if self.crashes == CRASHES else None
            case TookTooLong(seconds) if task.stated:
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
        """Whether no other task may run beside the next attempt."""
        return self.crashes > 0 or self.lost >= LOST - 1


@dataclass
class _Queue:
    """Tasks that wait, and what has happened to all that are not yet decided."""

    waiting: deque[Task]
    alone: deque[Task] = field(default_factory=deque)
    running: int = 0
    attempts: dict[str, _Attempts] = field(default_factory=dict)


def carry_out(tasks: Iterable[Task], engine: Engine) -> Iterator[tuple[Task, Verdict]]:
    """Do ``tasks``, and yield each with its verdict as soon as that is known.

    Raises:
        EngineError: the engine cannot go on.
    """
    queue = _Queue(deque(tasks))
    while queue.waiting or queue.alone or queue.running:
        while queue.waiting and queue.running < IN_FLIGHT * max(1, engine.slots):
            engine.start(queue.waiting.popleft())
            queue.running += 1
        if queue.alone and not queue.running:
            engine.start(queue.alone.popleft())
            queue.running += 1
        task, ending = engine.next()
        queue.running -= 1
        attempts = queue.attempts.setdefault(task.key, _Attempts())
        verdict = attempts.verdict(task, ending)
        if verdict is None:
            (queue.alone if attempts.must_be_alone else queue.waiting).append(task)
        else:
            del queue.attempts[task.key]
            yield task, verdict
