"""Forecast how long a suite will take, from a few timed steps of each kind of run."""

from collections.abc import Iterable, Mapping, Sequence

from bench.cost.step_comparison import WARM_UP
from bench.run.pace import Pace
from bench.run.spec import RunSpec
from bench.style.numbers import core_time, counted, in_words
from bench.suite.plan import Planned
from bench.suite.suite_file import Suite

from . import workers

Place = tuple[str, str]
"""Labels of a problem and a balancer. Runs of the same place take the same time per step."""


def place(run: Planned) -> Place:
    """Return the place of ``run``.

    Baselines and the points of a front share one place per problem, because all of them use fixed weights.
    """
    return run.problem, "" if run.spec.phase in ("baseline", "front") else run.balancer


def to_try(runs: Iterable[Planned]) -> dict[Place, RunSpec]:
    """Return one run for each place, for timing its steps."""
    specs: dict[Place, RunSpec] = {}
    for run in runs:
        specs.setdefault(place(run), run.spec)
    return specs


class Forecast:
    """A callable that estimates how many seconds runs take on this machine, and times each kind of run only once.

    Args:
        jobs: number of runs at a time.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._paces: dict[Place, Pace | None] = {}

    def __call__(self, suite: Suite, runs: Sequence[Planned]) -> float:
        """Return the seconds that ``runs`` of ``suite`` take; a run that cannot be timed counts as 0."""
        new = {where: spec for where, spec in to_try(runs).items() if where not in self._paces}
        self._paces |= zip(new, workers.paces(list(new.values()), suite.plugins, self.jobs), strict=True)
        known = ((run, self._paces[place(run)]) for run in runs)
        return sum(pace.run(run.spec) for run, pace in known if pace is not None) / self.jobs


def sentence(
    suite: Suite, missing: Sequence[Planned], timed: Sequence[Planned], jobs: int, paces: Mapping[Place, Pace | None]
) -> str:
    """Return the forecast as a sentence: ``315 runs and 42 step timings: about 14 to 17 minutes, ...``.

    The longer time holds if the best learning rates lie at both edges of every grid, which extends the grids. The
    sentence ends with the computing time of all workers together. Runs that could not be timed are left out of all
    times.

    Args:
        suite: the suite of the runs.
        missing: runs to do, ``jobs`` at a time.
        timed: runs whose steps will be timed, one after another.
        jobs: number of runs at a time.
        paces: the pace of each place among these runs; None if it could not be timed.
    """
    seconds, tuning, work = 0.0, 0.0, 0.0
    distinct = {run.key: run for run in missing}
    loads: dict[str, float] = {}
    for run in (*distinct.values(), *timed):
        pace = paces[place(run)]
        if pace is None:
            continue
        loads[run.problem] = max(loads.get(run.problem, 0.0), pace.load)
        if run.spec.phase == "cost":
            work += (spent := (WARM_UP + suite.cost_rounds) * 2 * pace.step)
            seconds += spent
        else:
            work += pace.run(run.spec)
            share = pace.run(run.spec) / min(jobs, len(distinct))
            seconds += share
            tuning += share if run.spec.phase == "tuning" else 0.0
    seconds += sum(loads.values())
    parts = [counted(count, what) for count, what in ((len(distinct), "run"), (len(timed), "step timing")) if count]
    grows = 0.0 if suite.searches else 2 / max(1, len(suite.learning_rates))
    time_taken = in_words(seconds, seconds + grows * tuning)
    about = f"{jobs} at a time, {core_time(work)}"
    return f"{' and '.join(parts)}: {time_taken}, estimated from a few steps of each ({about})"
