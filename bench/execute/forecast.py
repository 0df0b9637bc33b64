"""Forecast how long a suite will take, from a few timed steps of each kind of run.

These steps also show whether a problem works at all: if every method fails in its first steps, the problem is at fault.
"""

from collections.abc import Iterable, Mapping, Sequence

from bench.cost.step_comparison import WARM_UP
from bench.run.pace import Pace
from bench.style.numbers import core_time, counted, in_words
from bench.suite.plan import Planned
from bench.suite.suite_entries import Suite
from bench.suite.toml_table import SuiteError

from .run_job import FailedStart
from .workforce import Workforce

Place = tuple[str, str]
"""Labels of a problem and a balancer. Runs of the same place take the same time per step."""
Paces = Mapping[Place, Pace | FailedStart | None]
"""The pace of each place, or how it fails there; None if it could not be timed for another reason."""


def place(run: Planned) -> Place:
    """Return the place of ``run``.

    Baselines and the points of a front share one place per problem, because all of them use fixed weights.
    """
    return run.problem, "" if run.spec.phase in ("baseline", "front") else run.balancer


def to_try(runs: Iterable[Planned]) -> dict[Place, Planned]:
    """Return one run for each place, for timing its steps."""
    found: dict[Place, Planned] = {}
    for run in runs:
        found.setdefault(place(run), run)
    return found


class Forecast:
    """A callable that estimates how many seconds runs take, and times each kind of run only once.

    Args:
        workforce: whoever times them, and does the runs.
    """

    def __init__(self, workforce: Workforce) -> None:
        self._workforce = workforce
        self._paces: dict[Place, Pace | FailedStart | None] = {}

    def __call__(self, suite: Suite, runs: Sequence[Planned]) -> float:
        """Return the seconds that ``runs`` of ``suite`` take; a run that cannot be timed counts as 0.

        Raises:
            SuiteError: every method fails in its first steps on every problem.
        """
        new = {where: run for where, run in to_try(runs).items() if where not in self._paces}
        self._paces |= zip(new, self._workforce.paces(list(new.values()), suite.plugins, suite.limits), strict=True)
        require_a_start(suite, self._paces)
        known = ((run, self._paces[place(run)]) for run in runs)
        return sum(pace.run(run.spec) for run, pace in known if isinstance(pace, Pace)) / self._workforce.slots


def broken_problems(suite: Suite, paces: Paces) -> dict[str, str]:
    """Return the problems on which every method of ``suite`` fails in its first steps, and a sentence on each.

    A problem is left out if a method was not timed on it, because its runs are done already.
    """
    sentences = {}
    for problem in suite.problems:
        starts = {entry.label: paces.get((problem.label, entry.label)) for entry in suite.balancers_on(problem.label)}
        failed = {label: start.reason for label, start in starts.items() if isinstance(start, FailedStart)}
        if failed and len(failed) == len(starts):
            sentences[problem.label] = f"{problem.label}: every method fails in its first steps. {_causes(failed)}"
    return sentences


def require_a_start(suite: Suite, paces: Paces) -> None:
    """Check that some method of ``suite`` gets beyond its first steps on some problem.

    Raises:
        SuiteError: every method fails on every problem.
    """
    broken = broken_problems(suite, paces)
    if broken and len(broken) == len(suite.problems):
        raise SuiteError("nothing was run.\n" + "\n".join(broken.values()))


def _causes(reasons: Mapping[str, str]) -> str:
    """Return the reasons, each with the methods that it stopped; these are left out if there is one reason."""
    stopped: dict[str, list[str]] = {}
    for label, reason in reasons.items():
        stopped.setdefault(reason, []).append(label)
    if len(stopped) == 1:
        return next(iter(stopped))
    return "; ".join(f"{', '.join(labels)}: {reason}" for reason, labels in stopped.items())


def sentence(suite: Suite, missing: Sequence[Planned], timed: Sequence[Planned], jobs: int, paces: Paces) -> str:
    """Return the forecast as a sentence: ``63 runs (81 if ...) and 9 step timings: about 14 to 17 minutes, ...``.

    The larger numbers hold if the best learning rates lie at both edges of every grid, which extends the grids once.
    The sentence ends with the computing time of all workers together. Runs that could not be timed are left out of all
    times.

    Args:
        suite: the suite of the runs.
        missing: runs to do, ``jobs`` at a time.
        timed: runs whose steps will be timed, one after another.
        jobs: number of runs at a time.
        paces: the pace of each place among these runs.
    """
    seconds, tuning, work = 0.0, 0.0, 0.0
    distinct = {run.key: run for run in missing}
    loads: dict[str, float] = {}
    for run in (*distinct.values(), *timed):
        pace = paces[place(run)]
        if not isinstance(pace, Pace):
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
    grows = 0.0 if not suite.growths else 2 / max(1, len(suite.learning_rates))
    more = round(grows * sum(run.spec.phase == "tuning" for run in distinct.values()))
    if more:
        parts[0] += f" ({len(distinct) + more} if the grid of learning rates grows at both edges)"
    time_taken = in_words(seconds, seconds + grows * tuning)
    about = f"{jobs} at a time, {core_time(work)}"
    return f"{' and '.join(parts)}: {time_taken}, estimated from a few steps of each ({about})"
