"""Do the runs that an experiment asks for, each at most once, and choose learning rates."""

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

import tasks
from bench.analysis import comparison_scale, mean_score
from bench.execute.progress import Progress
from bench.execute.run_suite import NotDoneError
from bench.execute.workforce import Workforce
from bench.run import atomic_file, code_hash, machine_facts
from bench.run.result_store import ResultStore
from bench.run.spec import Method, Options, Phase, RunSpec
from bench.run.training import Checkpoint, RunResult
from bench.suite import plan
from bench.suite.plan import Planned
from tasks import Recipe, Split

from .claim_verdicts import imputed

Cell = TypeVar("Cell", bound=Hashable)


@dataclass(frozen=True)
class Effort:
    """How much is run.

    Attributes:
        seeds: seeds of the reported runs.
        few_seeds: seeds of the reported runs in experiments that take long.
        tuning_seeds: seeds on which learning rates are chosen.
        grid: learning rates to choose from.
        coarse_grid: learning rates to choose from in experiments that take long.
        draws: number of random static weights.
        draws_grid: learning rates that each of the random static weights is tried with.
        rounds: rounds in which a step is timed.
    """

    seeds: Sequence[int]
    few_seeds: Sequence[int]
    tuning_seeds: Sequence[int]
    grid: Sequence[float]
    coarse_grid: Sequence[float]
    draws: int
    draws_grid: Sequence[float]
    rounds: int


GRID, COARSE = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (3e-3, 1e-2, 3e-2)
QUICK = Effort(range(1, 11), range(1, 6), (101, 102), GRID, COARSE, draws=100, draws_grid=COARSE[1:], rounds=40)
FULL = Effort(range(1, 31), range(1, 11), (101, 102), GRID, GRID, draws=300, draws_grid=GRID, rounds=100)


@dataclass(frozen=True)
class Bench:
    """A problem as an experiment uses it. Its primary score must be better the lower it is.

    Attributes:
        label: name in tables and figures.
        name: registered name of the problem.
        options: the problem's options.
        recipe: how its model is trained.
        evaluations: number of evaluations in a run, after the one at step 0.
    """

    label: str
    name: str
    options: Options
    recipe: Recipe
    evaluations: int

    @property
    def problem(self) -> tasks.Problem[Any]:
        """The problem."""
        return tasks.create(self.name, **self.options)

    def run(self, method: Method, seed: int, phase: Phase = "reported", lr: float | None = None) -> RunSpec:
        """Return the specification of a run; without ``lr`` it has the recipe's learning rate."""
        recipe = self.recipe if lr is None else replace(self.recipe, lr=lr)
        return RunSpec(self.name, self.options, recipe, method, seed, phase, "cpu", self.evaluations)


def bench(label: str, name: str, evaluations: int, steps: int | None = None, **options: Any) -> Bench:
    """Return a problem with its default recipe; ``steps`` replaces the recipe's number of steps."""
    recipe = tasks.create(name, **options).recipe
    return Bench(label, name, options, recipe if steps is None else replace(recipe, steps=steps), evaluations)


class Lab:
    """Does runs and keeps their results in ``folder``.

    Attributes:
        folder: folder of the results.
        scale: how much is run.
        workforce: whoever does the runs.
        claim: name of the current claim, for the progress display.
        failed: number of failed runs among those that were asked for.
    """

    def __init__(self, folder: Path, scale: Effort, workforce: Workforce, progress: Progress) -> None:
        self.folder = folder
        self.scale = scale
        self.workforce = workforce
        self.claim = ""
        self.failed = 0
        self._progress = progress
        self._store = ResultStore(folder, workforce.tell)
        self._seen: set[str] = set()

    def results(self, stage: str, specs: Sequence[RunSpec]) -> list[RunResult]:
        """Return the results of ``specs``, in their order, after computing those that aren't stored yet."""
        runs = {run.key: run for run in (Planned(spec.problem, spec.method.name, spec) for spec in specs)}
        missing = [run for key, run in runs.items() if not self._store.has(key)]
        self._write_environment(bool(missing))
        self._progress.expect(len(runs))
        self._progress.begin(f"{self.claim}, {stage}", len(missing), self.workforce.hands, len(runs) - len(missing))
        not_done = []
        for end in self.workforce.do(missing, self._store):
            self._progress.finish(end.failed)
            if end.not_done:
                not_done.append((end.run, end.not_done))
        if not_done:
            raise NotDoneError(not_done)
        found = {key: self._store.load(key) for key in runs}
        self.failed += sum(found[key].status == "failed" for key in runs.keys() - self._seen)
        self._seen |= runs.keys()
        return [found[spec.key] for spec in specs]

    def by_cell(self, stage: str, cells: Mapping[Cell, Sequence[RunSpec]]) -> dict[Cell, list[RunResult]]:
        """Return the results of several lists of runs, by the name of the list. All runs are done together."""
        found = iter(self.results(stage, [spec for specs in cells.values() for spec in specs]))
        return {cell: [next(found) for _ in specs] for cell, specs in cells.items()}

    def choose(
        self,
        stage: str,
        on: Bench,
        methods: Mapping[str, Callable[[int], Method]],
        seeds: Sequence[int],
        grid: Sequence[float],
    ) -> dict[str, float]:
        """Choose the learning rate of each method by the protocol's rules 8, 9 and 13, and return it.

        Args:
            stage: name of this stage, for the progress display.
            on: the problem.
            methods: functions that make each method for a seed.
            seeds: seeds of the tuning runs.
            grid: learning rates to choose from; it grows once beyond an edge at which a method is best.
        """
        rates, means = self._try(stage, on, methods, seeds, grid)
        at_edges = {rates[int(row.argmin())] for row in means.values() if np.ptp(row) > 0}
        grown = plan.grown(rates, at_edges)
        if len(grown) > len(rates):
            rates, means = self._try(f"{stage}, beyond the grid", on, methods, seeds, grown)
        return {label: rates[int(row.argmin())] for label, row in means.items()}

    def _try(
        self,
        stage: str,
        on: Bench,
        methods: Mapping[str, Callable[[int], Method]],
        seeds: Sequence[int],
        grid: Sequence[float],
    ) -> tuple[Sequence[float], dict[str, NDArray[np.float64]]]:
        """Return the learning rates, and by method the mean validation score at each of them, as rule 8 takes it."""
        cells = {
            (label, lr): [on.run(make(seed), seed, "tuning", lr) for seed in seeds]
            for label, make in methods.items()
            for lr in grid
        }
        scores = finals(on, self.by_cell(stage, cells), "validation")
        scale = comparison_scale(np.concatenate(list(scores.values())), higher_is_better=False)
        means = {label: np.array([mean_score(scores[label, lr], scale) for lr in grid]) for label in methods}
        return grid, {label: np.nan_to_num(of_rates, nan=np.inf) for label, of_rates in means.items()}

    def once(self, stage: str, about: object, measure: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Return what ``measure`` returns, computed at most once for each ``about``.

        Args:
            stage: name of this stage, for the progress display.
            about: everything that the measurement depends on.
            measure: measures, and returns rows that can be written as JSON.
        """
        path = self.folder / "costs" / f"{code_hash.digest(about)}.json"
        self._write_environment(not path.is_file())
        self._progress.expect(1)
        self._progress.begin(f"{self.claim}, {stage}", 1, lambda: (1, 1))
        if not path.is_file():
            atomic_file.write(path, json.dumps(measure()).encode())
        self._progress.finish()
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return rows

    def _write_environment(self, computing: bool) -> None:
        about = self.folder / "environment.json"
        if computing or not about.is_file():
            machine_facts.write(about, self.workforce.slots)


def finals(on: Bench, cells: Mapping[Cell, Sequence[RunResult]], split: Split) -> dict[Cell, NDArray[np.float64]]:
    """Return the primary score of each run's last checkpoint, ``(runs,)`` for each cell; less is better.

    A failed run gets the score that the protocol imputes. All cells must be of one phase.
    """
    results = [result for of_cell in cells.values() for result in of_cell]
    primary = on.problem.primary
    values = imputed(
        [_score(result, "last", split, primary) for result in results],
        [_score(result, "constant", split, primary) for result in results],
    )
    found = iter(values.tolist())
    return {cell: np.array([next(found) for _ in of_cell]) for cell, of_cell in cells.items()}


def _score(result: RunResult, checkpoint: Checkpoint, split: Split, metric: str) -> float:
    if checkpoint != "constant" and result.status == "failed":
        return float("nan")
    found = [score.metrics[metric] for score in result.scores if (score.checkpoint, score.split) == (checkpoint, split)]
    return found[0] if found else float("nan")


def average_weights(result: RunResult) -> list[float]:
    """Return a run's weights averaged over its steps, to six digits; equal weights if it made no step."""
    if not len(result.weights):
        return [1.0] * len(result.tasks)
    return [float(f"{weight:.6g}") for weight in result.weights.mean(axis=0)]
