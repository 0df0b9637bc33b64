"""How long runs will take, told from a few steps of each: printed before a suite begins."""

from collections.abc import Iterable, Mapping, Sequence

from bench.cost.step_comparison import WARM_UP
from bench.run.pace import Pace
from bench.run.spec import RunSpec
from bench.style.numbers import core_time, counted, in_words
from bench.suite.plan import Planned
from bench.suite.suite_file import Suite

from . import workers

Place = tuple[str, str]


def place(run: Planned) -> Place:
    """Runs of the same place take the same time a step: those of a problem and a balancer.

    Baselines and the points of a front are all of static weights.
    """
    return run.problem, "" if run.spec.phase in ("baseline", "front") else run.balancer


def to_try(runs: Iterable[Planned]) -> dict[Place, RunSpec]:
    """One run for each place."""
    found: dict[Place, RunSpec] = {}
    for run in runs:
        found.setdefault(place(run), run.spec)
    return found


class Forecast:
    """Tell how many seconds runs take on this machine. Each kind of run is timed once, the first time it is asked for.

    Args:
        jobs: the number of runs at a time.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._paces: dict[Place, Pace | None] = {}

    def __call__(self, suite: Suite, runs: Sequence[Planned]) -> float:
        """Return the seconds that ``runs`` of ``suite`` take; a run that can't be timed counts as 0."""
        new = {where: spec for where, spec in to_try(runs).items() if where not in self._paces}
        self._paces |= zip(new, workers.paces(list(new.values()), suite.plugins, self.jobs), strict=True)
        known = ((run, self._paces[place(run)]) for run in runs)
        return sum(pace.run(run.spec) for run, pace in known if pace is not None) / self.jobs


def sentence(
    suite: Suite, missing: Sequence[Planned], timed: Sequence[Planned], jobs: int, paces: Mapping[Place, Pace | None]
) -> str:
    """``315 runs and 42 step timings: about 14 to 17 minutes, ...``; what can't be tried is left out of the time.

    The longer time is what it takes if the best learning rates lie at both edges of every grid. Beside it stands the
    time that all workers together are at work.

    Args:
        missing: the runs to be done, ``jobs`` at a time.
        timed: the steps to be timed, one after another.
        paces: of all their places.
    """
    seconds, tuning, work = 0.0, 0.0, 0.0
    distinct = {run.key: run for run in missing}
    loads: dict[str, float] = {}
    for run in (*distinct.values(), *timed):
        found = paces[place(run)]
        if found is None:
            continue
        loads[run.problem] = max(loads.get(run.problem, 0.0), found.load)
        if run.spec.phase == "cost":
            work += (spent := (WARM_UP + suite.cost_rounds) * 2 * found.step)
            seconds += spent
        else:
            work += found.run(run.spec)
            share = found.run(run.spec) / min(jobs, len(distinct))
            seconds += share
            tuning += share if run.spec.phase == "tuning" else 0.0
    seconds += sum(loads.values())
    parts = [counted(count, what) for count, what in ((len(distinct), "run"), (len(timed), "step timing")) if count]
    grows = 0.0 if suite.searches else 2 / max(1, len(suite.learning_rates))
    time_taken = in_words(seconds, seconds + grows * tuning)
    about = f"{jobs} at a time, {core_time(work)}"
    return f"{' and '.join(parts)}: {time_taken}, going by a few steps of each ({about})"
