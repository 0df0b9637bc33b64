"""Does the runs that an experiment asks for, at most once each, and chooses learning rates."""

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

import tasks
from bench.execute import workers
from bench.execute.progress import Progress
from bench.run import atomic_file, code_hash, machine_facts, result_file
from bench.run.spec import Method, Options, Phase, RunSpec
from bench.run.training import Checkpoint, Result
from bench.suite import plan
from bench.suite.plan import Planned
from tasks import Recipe, Split

from .claim_verdicts import imputed

Cell = TypeVar("Cell", bound=Hashable)


@dataclass(frozen=True)
class Effort:
    """How much is run.

    Attributes:
        seeds, few_seeds: reported ones, the second for what takes long.
        tuning_seeds: learning rates are chosen on these.
        grid, coarse_grid: the learning rates tried, the second for what takes long.
        draws, draws_grid: how many random static weights there are, and the learning rates that each has.
        rounds: of step timing.
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
    """A problem as an experiment uses it. ``label`` is what tables and figures call it; less is better there."""

    label: str
    name: str
    options: Options
    recipe: Recipe
    evaluations: int

    @property
    def problem(self) -> tasks.Problem[Any]:
        """The problem itself."""
        return tasks.create(self.name, **self.options)

    def run(self, method: Method, seed: int, phase: Phase = "reported", lr: float | None = None) -> RunSpec:
        """A run; ``lr`` is the recipe's where it isn't given."""
        recipe = self.recipe if lr is None else replace(self.recipe, lr=lr)
        return RunSpec(self.name, self.options, recipe, method, seed, phase, "cpu", self.evaluations)


def bench(label: str, name: str, evaluations: int, steps: int | None = None, **options: Any) -> Bench:
    """A problem with its default recipe, but for as many ``steps``."""
    recipe = tasks.create(name, **options).recipe
    return Bench(label, name, options, recipe if steps is None else replace(recipe, steps=steps), evaluations)


class Lab:
    """Where runs are done, ``jobs`` at a time, and kept, in ``folder``.

    Attributes:
        failed: how many of those that were asked for failed.
    """

    def __init__(self, folder: Path, scale: Effort, jobs: int, progress: Progress) -> None:
        self.folder = folder
        self.scale = scale
        self.jobs = jobs
        self.claim = ""
        self.failed = 0
        self._progress = progress
        self._seen: set[str] = set()

    def results(self, stage: str, specs: Sequence[RunSpec]) -> list[Result]:
        """The results of ``specs``, in their order; those that aren't stored are computed first."""
        runs = {run.key: run for run in (Planned(spec.problem, spec.method.name, spec) for spec in specs)}
        missing = [run for key, run in runs.items() if not result_file.run_path(self.folder, key).is_file()]
        self._tell_environment(bool(missing))
        self._progress.expect(len(runs))
        self._progress.begin(f"{self.claim}, {stage}", len(missing), max(1, self.jobs), len(runs) - len(missing))
        for failed in workers.compute(missing, self.folder, (), self.jobs):
            self._progress.finish(failed)
        found = {key: result_file.load(result_file.run_path(self.folder, key)) for key in runs}
        self.failed += sum(found[key].status == "failed" for key in runs.keys() - self._seen)
        self._seen |= runs.keys()
        return [found[spec.key] for spec in specs]

    def by_cell(self, stage: str, cells: Mapping[Cell, Sequence[RunSpec]]) -> dict[Cell, list[Result]]:
        """The results of several lists of runs, all of which are done together."""
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
        """The learning rate of each method, by the protocol's rules 8, 9 and 13.

        Args:
            methods: what makes each of them, for a seed.
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
        """The rates, and by method the mean validation scores at these."""
        cells = {
            (label, lr): [on.run(make(seed), seed, "tuning", lr) for seed in seeds]
            for label, make in methods.items()
            for lr in grid
        }
        scores = finals(on, self.by_cell(stage, cells), "validation")
        return grid, {label: np.array([scores[label, lr].mean() for lr in grid]) for label in methods}

    def once(self, stage: str, about: object, measure: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """What ``measure`` returns, kept under ``about``, which must name all that it depends on."""
        path = self.folder / "costs" / f"{code_hash.digest(about)}.json"
        self._tell_environment(not path.is_file())
        self._progress.expect(1)
        self._progress.begin(f"{self.claim}, {stage}", 1, workers=1)
        if not path.is_file():
            atomic_file.write(path, json.dumps(measure()).encode())
        self._progress.finish()
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return rows

    def _tell_environment(self, computing: bool) -> None:
        about = self.folder / "environment.json"
        if computing or not about.is_file():
            machine_facts.write(about, self.jobs)


def finals(on: Bench, cells: Mapping[Cell, Sequence[Result]], split: Split) -> dict[Cell, NDArray[np.float64]]:
    """The last checkpoint's primary score of each run, ``(runs,)``, less being better; failures as the protocol has it.

    All cells must be of one phase.
    """
    results = [result for of_cell in cells.values() for result in of_cell]
    primary = on.problem.primary
    values = imputed(
        [_score(result, "last", split, primary) for result in results],
        [_score(result, "constant", split, primary) for result in results],
    )
    found = iter(values.tolist())
    return {cell: np.array([next(found) for _ in of_cell]) for cell, of_cell in cells.items()}


def _score(result: Result, checkpoint: Checkpoint, split: Split, metric: str) -> float:
    if checkpoint != "constant" and result.status == "failed":
        return float("nan")
    found = [score.metrics[metric] for score in result.scores if (score.checkpoint, score.split) == (checkpoint, split)]
    return found[0] if found else float("nan")


def average_weights(result: Result) -> list[float]:
    """The mean over a run's steps of its weights, to six digits; equal ones for a run that made no step."""
    if not len(result.weights):
        return [1.0] * len(result.tasks)
    return [float(f"{weight:.6g}") for weight in result.weights.mean(axis=0)]
