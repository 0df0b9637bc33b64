"""How a job is done, fails, is tried again or is given up, with an engine that follows a script."""

from collections.abc import Mapping, Sequence

import pytest

from bench.execute.carry_out import IN_FLIGHT, Failed, NotDone, Verdict, carry_out
from bench.execute.job import Crashed, Ending, Finished, Job, Raised, TookTooLong, WorkerLost

DONE = Finished(1)
LOST = NotDone("the workers that had it went away, the last one while nothing else ran", lost=True)
CRASH = Crashed("its process ended")
LATE = TookTooLong(60.0)


class Scripted:
    """An engine whose attempts end as a script says, and otherwise well.

    Attributes:
        beside: for each attempt its job's key, and the number of jobs that were in flight when it was started.
        most: the largest number of jobs that were in flight.
    """

    def __init__(self, script: Mapping[str, Sequence[Ending]], slots: int = 2) -> None:
        self.slots = slots
        self._script = {key: list(endings) for key, endings in script.items()}
        self._flying: list[Job] = []
        self.beside: list[tuple[str, int]] = []
        self.most = 0

    def start(self, job: Job) -> None:
        self.beside.append((job.key, len(self._flying)))
        self._flying.append(job)
        self.most = max(self.most, len(self._flying))

    def next(self) -> tuple[Job, Ending]:
        job = self._flying.pop(0)
        endings = self._script.get(job.key)
        return job, endings.pop(0) if endings else DONE

    def stop(self) -> None: ...


def jobs(*keys: str, stated: bool = False) -> list[Job]:
    return [Job(key, print, (), stated=stated) for key in keys]


def verdicts(engine: Scripted, todo: Sequence[Job]) -> dict[str, Verdict]:
    found = [(job.key, verdict) for job, verdict in carry_out(todo, engine)]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_each_job_is_done_once_and_a_window_is_kept() -> None:
    engine = Scripted({})
    assert verdicts(engine, jobs(*map(str, range(50)))) == {str(k): DONE for k in range(50)}
    assert engine.most == IN_FLIGHT * 2
    assert len(engine.beside) == 50


def test_an_exception_is_the_caller_s_to_judge() -> None:
    raised = Raised(ValueError("no"))
    assert verdicts(Scripted({"a": [raised]}), jobs("a", "b")) == {"a": raised, "b": DONE}


@pytest.mark.parametrize(
    ("endings", "verdict"),
    [
        ([CRASH], DONE),
        ([CRASH, CRASH], Failed("its process ended, and again when it ran alone")),
        ([LATE], DONE),
        ([LATE, LATE], NotDone("it took longer than 60 s, 2 times")),
        ([LATE, CRASH], DONE),
        ([CRASH, LATE, CRASH], Failed("its process ended, and again when it ran alone")),
        ([Crashed("it ate"), CRASH], Failed("it ate, and its process ended when it ran alone")),
        ([WorkerLost(1)] * 2, DONE),
        ([WorkerLost(1)] * 3, LOST),
        ([WorkerLost(4)], DONE),
        ([WorkerLost(4)] * 2, LOST),
        ([WorkerLost(1), CRASH, WorkerLost(1), WorkerLost(1)], None),
    ],
)
def test_what_follows_from_the_ends_of_attempts(endings: Sequence[Ending], verdict: Verdict | None) -> None:
    found = verdicts(Scripted({"a": endings}), jobs("a", "b"))
    assert found["b"] == DONE
    assert found["a"] == verdict if verdict is not None else isinstance(found["a"], NotDone)
    assert not (isinstance(found["a"], Failed) and not any(isinstance(end, Crashed) for end in endings))


def test_lost_workers_never_make_a_job_fail() -> None:
    for times in range(1, 8):
        found = verdicts(Scripted({"a": [WorkerLost(1)] * times}), jobs("a"))
        assert isinstance(found["a"], Finished | NotDone)


def test_only_a_stated_limit_makes_a_job_fail() -> None:
    found = verdicts(Scripted({"a": [LATE]}), jobs("a", stated=True))
    assert found["a"] == Failed("it took longer than the suite's limit of 60 s", 60.0)


@pytest.mark.parametrize("endings", [[CRASH], [WorkerLost(2)]])
def test_a_suspect_runs_alone_after_all_others(endings: Sequence[Ending]) -> None:
    engine = Scripted({"a": endings, "b": endings})
    verdicts(engine, jobs(*"abcdefghijklmnop"))
    assert engine.beside[-2:] == [("a", 0), ("b", 0)]
