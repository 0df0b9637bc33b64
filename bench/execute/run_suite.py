"""Do a whole suite: tuning runs, the choice of learning rates, reported runs, step timing, tables.

A run whose result is already stored under its key is not done again. The tables are made at the end from the stored
results, so that they are the same whether or not the suite was interrupted.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from bench.analysis.static_front import MOST_POINTS
from bench.cost import measure_step, micro
from bench.run import atomic_file, machine_facts, suite_text
from bench.run.atomic_file import BadFileError
from bench.run.pace import Pace
from bench.run.result_store import ResultStore
from bench.suite import plan, rate_search, result_tables
from bench.suite.claimed_folder import claimed
from bench.suite.plan import Planned
from bench.suite.result_tables import Done
from bench.suite.suite_entries import Suite

from . import forecast, run_job
from .job import CannotRunError, EngineError
from .progress import Progress
from .workforce import WorkerLostError, Workforce

MANY = 10
"""Announce the timing trial above this number of kinds of runs, because it then takes noticeably long."""
LOSSES = 3
"""The number of lost workers after which steps are not timed anew."""


class NotDoneError(Exception):
    """Some runs were given up for a reason that may not be their own; ``runs`` has each with the reason."""

    def __init__(self, runs: Sequence[tuple[Planned, str]]) -> None:
        super().__init__(f"{len(runs)} runs are not done")
        self.runs = runs


@dataclass(frozen=True)
class Summary:
    """The number of runs done by this call, the number done before, and all runs that failed."""

    computed: int
    reused: int
    failed: list[Done]

    @property
    def failed_tuning(self) -> list[Done]:
        """The failed runs that only decide on learning rates and options. A rate that is too high often fails."""
        return [run for run in self.failed if run.planned.spec.phase == "tuning"]

    @property
    def lacks_scores(self) -> bool:
        """Whether a run failed whose own score the report shows: any run but a tuning run."""
        return len(self.failed) > len(self.failed_tuning)


def run(suite: Suite, folder: Path, workforce: Workforce, console: Console, file: Path | None = None) -> Summary:
    """Do the runs of ``suite`` that have no result yet, and write the suite's tables into ``folder``.

    Args:
        suite: the suite to run.
        folder: the suite's results folder; it is created if necessary.
        workforce: whoever does the runs.
        console: where the forecast and the progress are printed.
        file: the file that ``folder`` is to belong to, see `claimed`.

    Raises:
        BusyError: another process is running a suite in ``folder``.
        SuiteError: every method fails in its first steps on every problem, or ``folder`` belongs to another file.
        EngineError: no further run can be done.
        NotDoneError: some runs were given up, or some steps could not be timed.
    """
    with claimed(folder, file), Progress(console) as progress:
        atomic_file.remove_unfinished(folder)
        return _Work(suite, folder, workforce, progress, console).do()


def step_costs(suite: Suite, folder: Path, workforce: Workforce, console: Console) -> list[result_tables.Row]:
    """Time the steps of ``suite``, as `run` does last, and return the rows of the table of costs.

    What was timed before and is stored in ``folder`` is not timed again.

    Raises:
        BusyError: another process is running a suite in ``folder``.
        EngineError: nothing more can be timed.
        NotDoneError: some steps could not be timed.
    """
    with claimed(folder), Progress(console) as progress:
        costs = plan.costs(suite)
        progress.expect(len(costs))
        return _Work(suite, folder, workforce, progress, console).time_steps(costs)


class _Work:
    """A suite that is being run."""

    def __init__(self, suite: Suite, folder: Path, workforce: Workforce, progress: Progress, console: Console) -> None:
        self.suite = suite
        self.folder = folder
        self.workforce = workforce
        self.store = ResultStore(folder, self.tell)
        self.progress = progress
        self.console = console
        self.paces: dict[forecast.Place, Pace] = {}
        self.computed = 0
        self.seen: set[str] = set()
        """Keys of the runs counted so far."""

    def tell(self, sentence: str) -> None:
        """Print a sentence."""
        self.console.print(Text(sentence))

    def do(self) -> Summary:
        """Do all stages of the suite."""
        suite, folder = self.suite, self.folder
        for problem, missing in suite.left_out.items():
            self.console.print(Text(f"{problem} is left out: {missing}"))
        costs = plan.costs(suite) if suite.cost_rounds else []
        first = next(rate_search.stages(suite)).runs(suite)
        tuning, chosen = self.stored_choice()
        fresh = plan.reported(suite, chosen)
        most = suite.learning_rates[:MOST_POINTS] if suite.searches else ()
        points: plan.Grids = {entry.label: most for entry in suite.problems}
        if self.stored(tuning) == _distinct(tuning):
            points = self.front(tuning)
        retuning = plan.retuning(suite, fresh)
        fresh += [*retuning, *plan.repeated(suite, fresh), *plan.baselines(suite, fresh), *plan.front(suite, points)]
        timed = [run for run in costs if self.is_timed(run)]
        self.progress.expect(_distinct(first), self.stored(first))
        self.progress.expect(_distinct(fresh) + len(costs), self.stored(fresh) + len(timed))
        self.foretell(tuning, fresh, costs)

        tuning, selection = self.tune() if suite.learning_rates else ([], None)
        reported = plan.reported(suite, selection)
        retuning, baselines = plan.retuning(suite, reported), plan.baselines(suite, reported)
        front = plan.front(suite, self.front(tuning))
        self.progress.expect(_distinct(front) - _distinct(plan.front(suite, points)))
        self.compute("reported runs", [*reported, *baselines, *front])
        if retuning:
            self.compute("learning rates on other seeds", retuning)
        again = self.selection(retuning).drop(columns="weights", errors="ignore") if retuning else None
        repeated = plan.repeated(suite, reported, again)
        if repeated:
            self.compute("repeated runs on other seeds", repeated)
        cost_rows = self.time_steps(costs)

        done = result_tables.load(suite, [*tuning, *reported, *baselines, *front, *repeated], folder)
        tables = result_tables.assemble(suite, done, selection, cost_rows, again)
        retuned = result_tables.load(suite, retuning, folder)
        if retuned:  # in the table of runs alone, as no score of theirs is reported
            rows = result_tables.runs(retuned).assign(phase="retuning")
            tables["runs"] = pd.concat([tables["runs"], rows], ignore_index=True)
        result_tables.write(tables, folder / "tables")
        try:
            micro.add_table(folder)
        except BadFileError as error:
            self.tell(f"{error}: the report lacks the micro-benchmark")
        kept = suite_text.kept(suite.written, suite.plugins, folder)
        atomic_file.write(folder / suite_text.KEPT, kept.encode())
        failed = [run for run in (*done, *retuned) if run.result.status == "failed"]
        return Summary(self.computed, len(self.seen) - self.computed, failed)

    def foretell(self, tuning: Sequence[Planned], fresh: Sequence[Planned], costs: Sequence[Planned]) -> None:
        """Print how long the suite will take, estimated from a few steps of each method on each problem.

        The learning rates of ``fresh`` runs are not known yet if their tuning runs are missing: they count as missing.
        A problem on which every method fails in these steps is named, with the cause.

        Raises:
            SuiteError: every method fails in its first steps on every problem.
        """
        missing = [run for run in (*tuning, *fresh) if not self.is_done(run)]
        timed = [run for run in costs if not self.is_timed(run)]
        if not missing and not timed:
            return
        kinds = forecast.to_try([*missing, *timed])
        if len(kinds) > MANY:
            self.console.print(
                f"timing a few steps of {len(kinds)} kinds of runs, to estimate how long the suite takes"
            )
        paces = self.workforce.paces(list(kinds.values()), self.suite.plugins, self.suite.limits)
        pace_of = dict(zip(kinds, paces, strict=True))
        self.paces = {where: pace for where, pace in pace_of.items() if isinstance(pace, Pace)}
        forecast.require_a_start(self.suite, pace_of)
        for broken in forecast.broken_problems(self.suite, pace_of).values():
            self.console.print(Text(broken))
        self.console.print(Text(forecast.sentence(self.suite, missing, timed, self.workforce.slots, pace_of)))

    def is_done(self, run: Planned) -> bool:
        """Return whether the run's result is stored, and its picture if it is to have one.

        A run that failed by another limit than the suite states now is not done.
        """
        if not self.store.has(run.key, run.pictured):
            return False
        limit = self.store.limit(run.key)
        return limit is None or limit == self.suite.limits.seconds

    def stored(self, runs: Sequence[Planned]) -> int:
        """Return the number of distinct results of ``runs`` that are stored."""
        return _distinct([run for run in runs if self.is_done(run)])

    def stored_choice(self) -> tuple[list[Planned], pd.DataFrame | None]:
        """Return the tuning runs as far as they are known, and the learning rates that stored ones choose.

        These are rates of those methods on those problems whose tuning runs are all stored; None if there are none.
        """
        search, selection = rate_search.stages(self.suite), None
        stage = next(search)
        while True:
            runs = stage.runs(self.suite)
            missing = {forecast.place(run) for run in runs if not self.is_done(run)}
            stored = [run for run in runs if forecast.place(run) not in missing]
            if stored:
                selection = self.selection(stored)
            if missing or selection is None:
                return runs, selection
            try:
                stage = search.send(selection)
            except StopIteration:
                return runs, selection

    def is_timed(self, run: Planned) -> bool:
        """Return whether the cost of a step of ``run`` is stored, for the kind of machine that timed last."""
        kind = self.store.kind_of_machine() or run_job.kind_of_machine()
        return self.store.cost(self.cost_key(run, kind)) is not None

    def cost_key(self, run: Planned, kind: tuple[str, str | None]) -> str:
        """Return the key of the cost of a step of ``run`` on this kind of machine."""
        return measure_step.key(run.spec, self.suite.cost_rounds, *kind)

    def tune(self) -> tuple[list[Planned], pd.DataFrame]:
        """Do the tuning runs; return them and the learning rates that they choose."""
        search = rate_search.stages(self.suite)
        stage, before = next(search), 0
        while True:
            runs = stage.runs(self.suite)
            if before:
                self.progress.expect(_distinct(runs) - before, self.stored(runs) - before)
            before = _distinct(runs)
            self.compute(stage.name, runs)
            selection = self.selection(runs)
            try:
                stage = search.send(selection)
            except StopIteration:
                return runs, selection

    def selection(self, runs: Sequence[Planned]) -> pd.DataFrame:
        """Return the table of the learning rates that ``runs`` choose, whose results are stored."""
        return result_tables.selection(result_tables.load(self.suite, runs, self.folder), self.suite)

    def front(self, tuning: Sequence[Planned]) -> dict[str, list[float]]:
        """Return the learning rates that identify the points of the front of static weights, by problem."""
        if not (self.suite.searches and any(entry.searches_weights for entry in self.suite.balancers)):
            return {}
        points = result_tables.front(result_tables.load(self.suite, tuning, self.folder), self.suite)
        return {str(problem): list(rows["lr"].unique()) for problem, rows in points.groupby("problem")}

    def compute(self, stage: str, runs: Sequence[Planned]) -> None:
        """Do those of ``runs`` that have no result yet."""
        new: dict[str, Planned] = {}
        for run in runs:
            if run.key not in self.seen and (run.pictured or run.key not in new):
                new[run.key] = run
        missing = [run for run in new.values() if not self.is_done(run)]
        self.seen.update(new)
        about = self.folder / "environment.json"
        slots = self.workforce.slots
        if missing or not about.is_file():
            machine_facts.write(about, slots)
        self.progress.begin(stage, len(missing), self.workforce.hands, reused=len(new) - len(missing))
        not_done: list[tuple[Planned, str]] = []
        limits = self.suite.limits
        for end in self.workforce.do(missing, self.store, self.suite.plugins, limits, self.expected_seconds):
            self.computed += not end.not_done
            self.progress.finish(end.failed)
            if end.not_done:
                not_done.append((end.run, end.not_done))
        if not_done:
            raise NotDoneError(not_done)

    def expected_seconds(self, run: Planned) -> float | None:
        """Return the seconds that a run is expected to take, with loading its data; None if that is not known."""
        pace = self.paces.get(forecast.place(run))
        return None if pace is None else pace.load + pace.run(run.spec)

    def time_steps(self, costs: Sequence[Planned]) -> list[result_tables.Row]:
        """Return the rows of the table of step costs; time each step that was not timed on this kind of machine yet.

        All rows are of one kind of machine. If the worker that times is lost, another one times all steps anew.
        """
        if not costs:
            return []
        for attempt in range(LOSSES):
            try:
                with self.workforce.one_worker():
                    return self.timed_by_one_worker(costs, anew=attempt > 0)
            except WorkerLostError:
                if attempt < LOSSES - 1:
                    self.tell("the worker that timed steps is lost; they are timed anew")
        raise EngineError(f"{LOSSES} workers that timed steps were lost")

    def timed_by_one_worker(self, costs: Sequence[Planned], anew: bool) -> list[result_tables.Row]:
        """Return the rows of the table of step costs; with ``anew``, those that were measured before are not used.

        ``busy_cores`` is the number of cores that other programs used when timing began: 0 up to `run_job.BUSY`. Steps
        that an earlier version timed have no such column.

        Raises:
            NotDoneError: some steps were not timed, for a reason that is not their own; the others are stored.
        """
        kind = self.workforce.kind_of_machine()
        self.store.keep_kind_of_machine(kind)
        keys = {run.key: self.cost_key(run, kind) for run in costs}
        stored = {} if anew else {run.key: self.store.cost(keys[run.key]) for run in costs}
        missing = [run for run in costs if stored.get(run.key) is None]
        self.progress.begin("step timing", len(missing), lambda: (1, 1), reused=len(costs) - len(missing))
        busy = self.workforce.busy_cores() if missing else 0.0
        if busy > run_job.BUSY:
            self.tell(f"steps are timed while other programs use {busy:.1f} cores: the times may be too long")
        else:
            busy = 0.0
        rows: list[result_tables.Row] = []
        not_timed: list[tuple[Planned, str]] = []
        for run in costs:
            facts = stored.get(run.key)
            if facts is None:
                try:
                    facts = {**self.measure(run), "busy_cores": busy}
                except CannotRunError as error:
                    not_timed.append((run, f"its steps cannot be timed: {error}"))
                    self.progress.finish(failed=False)
                    continue
                self.store.keep_cost(keys[run.key], facts)
                self.progress.finish(failed=not facts["rows"])
            if not facts["rows"]:
                file = self.folder / "costs" / f"{keys[run.key]}.json"
                self.tell(
                    f"the steps of {run.balancer} on {run.problem} are not timed: {facts['reason']} "
                    f"(to try again, remove {file})"
                )
            known = {"busy_cores": facts["busy_cores"]} if "busy_cores" in facts else {}
            rows += ({"problem": run.problem, "balancer": run.balancer, **row, **known} for row in facts["rows"])
        if not_timed:
            raise NotDoneError(not_timed)
        return rows

    def measure(self, run: Planned) -> dict[str, Any]:
        """Return the cost of a step of ``run`` and its specification; if the step fails, a reason in place of rows."""
        facts = {"spec": asdict(run.spec), "rounds": self.suite.cost_rounds}
        try:
            return {**facts, "rows": self.step_cost(run), "reason": ""}
        except (WorkerLostError, EngineError, CannotRunError):
            raise
        except Exception as error:
            return {**facts, "rows": [], "reason": f"{type(error).__name__}: {error}"}

    def step_cost(self, run: Planned) -> list[result_tables.Row]:
        """Return the rows of the cost of a step of ``run``; errors of the step propagate."""
        return self.workforce.step_cost(run, self.suite.cost_rounds, self.suite.plugins)


def _distinct(runs: Sequence[Planned]) -> int:
    """Return the number of distinct results of ``runs``; runs with equal specifications share one result."""
    return len({run.key for run in runs})
