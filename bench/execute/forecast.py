"""How long runs will take, told from a few steps of each: printed before a suite begins."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

import tasks
from bench.cost.step_comparison import WARM_UP
from bench.run.seeds import generator
from bench.run.spec import RunSpec
from bench.run.training import Trial, reproducible
from bench.suite.plan import Planned
from bench.suite.suite_file import Suite

LONGEST = 0.2
"""Steps of one method on one problem are tried for no longer than so many seconds, apart from the first three."""
FIRST, MOST = 3, 20

Place = tuple[str, str]


@dataclass(frozen=True)
class Pace:
    """Seconds that parts of a run take on this machine, one thread.

    ``load`` is what a process spends once to have the problem's data, ``prepare`` what each run spends on its data and
    model, its first evaluation included.
    """

    load: float
    prepare: float
    step: float
    evaluation: float

    def run(self, spec: RunSpec) -> float:
        """A whole run of ``spec``; on the test split there are four evaluations at most."""
        evaluations = spec.evaluations + (0 if spec.phase == "tuning" else 4)
        return self.prepare + spec.recipe.steps * self.step + evaluations * self.evaluation


def pace(spec: RunSpec) -> Pace:
    """Tries ``spec`` out. Whatever its problem or its method raises, this raises."""
    spec = replace(spec, phase="tuning")
    trial = Trial(spec)
    problem = tasks.create(spec.problem, **spec.problem_options)
    with reproducible(spec.device):
        load = _seconds(lambda: problem.data(generator(spec.seed, "data"), trial.device))
        prepare = _seconds(trial.prepare)
        make_step = trial.stepper()
        steps = min(FIRST, spec.recipe.steps)
        first = _seconds(lambda: [make_step(None) for _ in range(steps)]) / steps
        times: list[float] = []
        while len(times) < min(MOST, spec.recipe.steps - steps) and sum(times) < LONGEST:
            times.append(_seconds(lambda: make_step(None)))
        evaluation = _seconds(lambda: trial.evaluate(trial.model, "validation", trial.starts["validation"]))
    step = sorted(times)[len(times) // 2] if times else first
    return Pace(max(0.0, load - prepare), prepare, step, evaluation)


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


def core_time(seconds: float) -> str:
    """``24 core-seconds``, ``7.4 core-minutes``, ``2.3 core-hours``."""
    if seconds < 60:
        return f"{seconds:.0f} core-seconds"
    unit, name = (3600.0, "core-hours") if seconds >= 3600 else (60.0, "core-minutes")
    return f"{seconds / unit:.1f} {name}"


def in_words(least: float, most: float) -> str:
    """``about 40 seconds``, ``about 12 to 15 minutes``."""
    unit, name = (60.0, "minute") if most >= 100 else (1.0, "second")
    low, high = max(1, round(least / unit)), max(1, round(most / unit))
    return f"about {counted(low, name)}" if low == high else f"about {low} to {counted(high, name)}"


def counted(count: int, what: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun
