"""Does a whole suite: tuning runs, the choice of learning rates, reported runs, step timing, tables.

Whatever has been done before is found under its key and not done again. The tables are made at the end from what is
stored, so that they are the same whether or not the suite was interrupted on the way.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock
import pandas as pd
from rich.console import Console
from rich.text import Text

from bench.analysis.static_front import MOST_POINTS
from bench.cost import measure_step, micro
from bench.run import atomic_file, machine_facts, result_file, result_picture
from bench.suite import plan, result_tables
from bench.suite.plan import Planned
from bench.suite.result_tables import Done
from bench.suite.suite_file import Suite

from . import forecast, workers
from .progress import Progress

MANY = 10
"""To try more kinds of runs than this takes so long that it is told."""


class BusyError(Exception):
    """Another process is at work in the results folder."""


@dataclass(frozen=True)
class Summary:
    """How many runs were done now, how many had been before, and which failed, now or before."""

    computed: int
    reused: int
    failed: list[Done]


def run(suite: Suite, folder: Path, jobs: int, console: Console) -> Summary:
    """Does what has not been done of ``suite`` yet, ``jobs`` runs at a time, and writes its tables into ``folder``.

    With 0 jobs, everything is done in this process, which a run may then end.

    Raises:
        BusyError: another process is doing so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", timeout=0), Progress(console) as progress:
            atomic_file.remove_unfinished(folder)
            try:
                return _Work(suite, folder, jobs, progress, console).do()
            finally:
                workers.stop()
    except filelock.Timeout:
        raise BusyError(f"another process is running a suite in {folder}") from None


class _Work:
    """A suite under way."""

    def __init__(self, suite: Suite, folder: Path, jobs: int, progress: Progress, console: Console) -> None:
        self.suite = suite
        self.folder = folder
        self.jobs = jobs
        self.at_a_time = max(1, jobs)
        self.progress = progress
        self.console = console
        self.computed = 0
        self.seen: set[str] = set()
        """The keys of the runs counted so far."""

    def do(self) -> Summary:
        """All stages."""
        suite, folder = self.suite, self.folder
        for problem, missing in suite.left_out.items():
            self.console.print(Text(f"{problem} is left out: {missing}"))
        costs = plan.costs(suite) if suite.cost_rounds else []
        tuning = plan.tuning(suite, plan.grids(suite))
        fresh = plan.reported(suite, None)
        at_most = {entry.label: suite.learning_rates[:MOST_POINTS] for entry in suite.problems}
        fresh += [*plan.repeated(suite, fresh), *plan.baselines(suite, fresh), *plan.front(suite, at_most)]
        self.progress.expect(_distinct(tuning))
        self.progress.expect(_distinct(fresh) + len(costs))
        self.foretell(tuning, fresh, costs)

        tuning, selection = self.tune() if suite.learning_rates else ([], None)
        reported = plan.reported(suite, selection)
        repeated, baselines = plan.repeated(suite, reported), plan.baselines(suite, reported)
        front = plan.front(suite, self.front(tuning))
        self.progress.expect(_distinct(front) - _distinct(plan.front(suite, at_most)))
        self.compute("reported runs", [*reported, *baselines, *front])
        if repeated:
            self.compute("the same on other seeds", repeated)
        workers.stop()  # steps are timed alone on the machine
        cost_rows = self.time_steps(costs)

        done = result_tables.load(suite, [*tuning, *reported, *baselines, *front, *repeated], folder)
        result_tables.write(result_tables.assemble(suite, done, selection, cost_rows), folder / "tables")
        micro.add_table(folder)
        atomic_file.write(folder / "suite.toml", suite.text.encode())
        failed = [one for one in done if one.result.status == "failed"]
        return Summary(self.computed, len(self.seen) - self.computed, failed)

    def foretell(self, tuning: Sequence[Planned], fresh: Sequence[Planned], costs: Sequence[Planned]) -> None:
        """Says how long it will take, from a few steps of each method on each problem.

        Which rates the ``fresh`` runs will have is not known yet; they are taken for missing if a tuning run is.
        """
        missing = [run for run in tuning if not self.is_done(run)]
        if missing or not tuning:
            missing += [run for run in fresh if not self.is_done(run)]
        timed = [run for run in costs if not self.cost_path(run).is_file()]
        if not missing and not timed:
            return
        tried = forecast.to_try([*missing, *timed])
        if len(tried) > MANY:
            self.console.print(f"trying a few steps of {len(tried)} kinds of runs, to tell how long it will take")
        paces = workers.paces(list(tried.values()), self.suite.plugins, self.jobs)
        found = dict(zip(tried, paces, strict=True))
        self.console.print(Text(forecast.sentence(self.suite, missing, timed, self.at_a_time, found)))

    def is_done(self, run: Planned) -> bool:
        """Whether the run's result is there, and its picture if it has one."""
        pictured = not run.pictured or result_picture.path(self.folder, run.key).is_file()
        return pictured and result_file.run_path(self.folder, run.key).is_file()

    def cost_path(self, run: Planned) -> Path:
        """Where what a step of ``run`` costs is kept."""
        return self.folder / "costs" / f"{measure_step.key(run.spec, self.suite.cost_rounds)}.json"

    def tune(self) -> tuple[list[Planned], pd.DataFrame]:
        """The tuning runs, and the rates chosen by them; a grid is extended once where the best lies at its edge."""
        grids = plan.grids(self.suite)
        if self.suite.searches:
            return self.try_rates("trials", grids)
        runs, selection = self.try_rates("learning rates", grids)
        extended = plan.extended(grids, selection)
        if extended == grids:
            return runs, selection
        self.progress.expect(_distinct(plan.tuning(self.suite, extended)) - _distinct(runs))
        return self.try_rates("learning rates beyond the grid", extended)

    def try_rates(self, stage: str, grids: plan.Grids) -> tuple[list[Planned], pd.DataFrame]:
        """The tuning runs of ``grids``, and the rates chosen by them."""
        runs = plan.tuning(self.suite, grids)
        self.compute(stage, runs)
        return runs, result_tables.selection(result_tables.load(self.suite, runs, self.folder), self.suite)

    def front(self, tuning: Sequence[Planned]) -> dict[str, list[float]]:
        """The learning rates that stand for the points of the front of static weights, by problem."""
        if not any(entry.searches_weights for entry in self.suite.balancers):
            return {}
        points = result_tables.front(result_tables.load(self.suite, tuning, self.folder), self.suite)
        return {str(problem): list(rows["lr"].unique()) for problem, rows in points.groupby("problem")}

    def compute(self, stage: str, runs: Sequence[Planned]) -> None:
        """Does those of ``runs`` that have no result yet."""
        new: dict[str, Planned] = {}
        for run in runs:
            if run.key not in self.seen and (run.pictured or run.key not in new):
                new[run.key] = run
        missing = [run for run in new.values() if not self.is_done(run)]
        self.seen.update(new)
        about = self.folder / "environment.json"
        if missing or not about.is_file():
            machine_facts.write(about, self.at_a_time)
        self.progress.begin(stage, len(missing), self.at_a_time, reused=len(new) - len(missing))
        for failed in workers.compute(missing, self.folder, self.suite.plugins, self.jobs):
            self.computed += 1
            self.progress.finish(failed)

    def time_steps(self, costs: Sequence[Planned]) -> list[result_tables.Row]:
        """The table's rows of what steps cost, each measured once on this kind of machine."""
        self.progress.begin("step timing", len(costs), workers=1)
        rows: list[result_tables.Row] = []
        for run in costs:
            path = self.cost_path(run)
            if not path.is_file():
                atomic_file.write(path, json.dumps(self.measure(run)).encode())
            facts = json.loads(path.read_text(encoding="utf-8"))
            rows += ({"problem": run.problem, "balancer": run.balancer, **row} for row in facts["rows"])
            self.progress.finish(failed=not facts["rows"])
        return rows

    def measure(self, run: Planned) -> dict[str, object]:
        """What a step of ``run`` costs, and of what; no rows, and a reason, where the step fails."""
        facts = {"spec": asdict(run.spec), "rounds": self.suite.cost_rounds}
        try:
            return {**facts, "rows": self.step_cost(run), "reason": ""}
        except Exception as error:
            return {**facts, "rows": [], "reason": f"{type(error).__name__}: {error}"}

    def step_cost(self, run: Planned) -> list[result_tables.Row]:
        """The rows alone."""
        return workers.step_cost(run.spec, self.suite.cost_rounds, self.suite.plugins, self.jobs)


def _distinct(runs: Sequence[Planned]) -> int:
    """How many results ``runs`` have: those of equal specification share one."""
    return len({run.key for run in runs})
