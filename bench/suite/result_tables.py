"""Join the results of a suite's runs into tidy tables.

The tables are the same to the bit, whenever and in whatever order the runs were done. Each is written as Parquet and as
CSV. There is no table of things that were not measured.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from bench.analysis import (
    SuiteTables,
    choose_learning_rates,
    derived_tables,
    front_points,
    impute_failures,
    suite_tables,
)
from bench.run import atomic_file, result_file, spec
from bench.run.training import Checkpoint, RunResult
from tasks import Split

from . import plan
from .plan import Planned
from .suite_entries import BalancerEntry, ProblemEntry, Suite

MOST_STEPS = 200
"""Maximum number of steps of a run in the table of trajectories; the run's own file holds all."""

COUNTED = ("flops", "operator_calls", "peak_bytes")
"""Columns of the costs that are whole numbers, or missing."""

TABLES = (
    *("problems", "metrics", "runs", "scores", "curves", "selection", "retuning", "costs"),
    *("leaderboard", "baselines", "delta_m", "controls", "target", "repeated"),
    *("trajectory", "dynamics", "front", "micro"),
)
"""Names of all tables that a suite's results folder can have."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Done:
    """A run of a suite and its result."""

    planned: Planned
    result: RunResult
    entry: ProblemEntry

    def row(self, **values: object) -> Row:
        """Return a row of a table: the facts that identify this run, and ``values``."""
        run = self.planned
        facts = {"phase": run.spec.phase, "lr": run.spec.lr, "seed": run.spec.seed}
        return {"key": run.key, "problem": run.problem, "balancer": run.balancer, **facts, **values}


def load(suite: Suite, planned: Iterable[Planned], folder: Path) -> list[Done]:
    """Return the ``planned`` runs with their results, all of which must be stored in the results ``folder``."""
    entries = {entry.label: entry for entry in suite.problems}
    results: dict[str, RunResult] = {}
    for run in planned:
        if run.key not in results:
            results[run.key] = result_file.load(result_file.run_path(folder, run.key))
    return [Done(run, results[run.key], entries[run.problem]) for run in planned]


def problems(suite: Suite, done: Sequence[Done] = ()) -> pd.DataFrame:
    """Return the facts that describe each problem, one row per problem.

    ``samples`` is empty for a problem without a run in ``done``.
    """
    samples = {run.planned.problem: run.result.sizes for run in done if run.result.sizes}
    rows: list[Row] = []
    for entry in suite.problems:
        primary = next(metric for metric in entry.problem.metrics if metric.name == entry.problem.primary)
        rows.append(
            {
                "problem": entry.label,
                "name": entry.name,
                "num_tasks": len(entry.problem.tasks),
                "summary": entry.problem.summary,
                "tasks": ", ".join(entry.problem.tasks),
                "samples": ", ".join(f"{split} {size:,}" for split, size in samples.get(entry.label, {}).items()),
                "data": spec.fingerprint(entry.name, entry.options),
                "primary": primary.name,
                "higher_is_better": primary.higher_is_better,
                "unit": primary.unit,
                "description": primary.description,
                "steps": entry.recipe.steps,
                "batch_size": entry.recipe.batch_size,
                "control": entry.problem.control,
            }
        )
    return pd.DataFrame(rows)


def metrics(suite: Suite) -> pd.DataFrame:
    """Return the metrics of each problem, one row per metric."""
    rows = [
        {
            "problem": entry.label,
            "metric": metric.name,
            "task": metric.task,
            "description": metric.description,
            "unit": metric.unit,
            "higher_is_better": metric.higher_is_better,
        }
        for entry in suite.problems
        for metric in entry.problem.metrics
    ]
    return pd.DataFrame(rows)


def runs(done: Sequence[Done]) -> pd.DataFrame:
    """Return one row per run: how it ended, and after how many steps."""
    rows = [
        run.row(
            status=run.result.status,
            reason=run.result.reason,
            steps=len(run.result.losses),
            processor=run.result.processor,
        )
        for run in done
    ]
    return pd.DataFrame(rows)


def scores(done: Sequence[Done], suite: Suite) -> pd.DataFrame:
    """Return the scores of the last and the best checkpoints; those of failed runs are imputed."""
    rows = [row for run in done for row in _scores(run)]
    facts = problems(suite)
    of_constants = constants(done)
    primary = of_constants["metric"] == of_constants["problem"].map(facts.set_index("problem")["primary"])
    return impute_failures(pd.DataFrame(rows), runs(done), facts, of_constants[primary].drop(columns="metric"))


def constants(done: Sequence[Done]) -> pd.DataFrame:
    """Return the metrics of the problems' constant predictors, by seed and split."""
    rows = [
        run.row(split=score.split, metric=metric, value=value)
        for run in done
        for score in run.result.scores
        if score.checkpoint == "constant"
        for metric, value in score.metrics.items()
    ]
    table = pd.DataFrame(rows, columns=["problem", "seed", "split", "metric", "value"])
    return table.drop_duplicates(["problem", "seed", "split", "metric"])  # the same for every run of a seed


def _scores(run: Done) -> Iterable[Row]:
    """Return the rows of one run in the table of scores."""
    known = {(score.checkpoint, score.split): score.metrics for score in run.result.scores}
    splits: tuple[Split, ...] = ("validation",) if run.planned.spec.phase == "tuning" else ("validation", "test")
    checkpoints: tuple[Checkpoint, ...] = ("last", "best")
    places: list[tuple[Checkpoint, Split | Literal["train"]]] = [(each, on) for on in splits for each in checkpoints]
    if ("last", "train") in known:
        places.append(("last", "train"))
    for checkpoint, split in places:
        metrics = known.get((checkpoint, split), {})
        for metric in run.entry.problem.metrics:
            about = {"checkpoint": checkpoint, "split": split, "metric": metric.name, "task": metric.task}
            yield run.row(**about, value=metrics.get(metric.name, np.nan), imputed=False)


def curves(done: Sequence[Done]) -> pd.DataFrame:
    """Return the validation metrics over time."""
    rows = [
        run.row(step=evaluation.step, metric=metric.name, task=metric.task, value=evaluation.metrics[metric.name])
        for run in done
        for evaluation in run.result.curves
        for metric in run.entry.problem.metrics
    ]
    return pd.DataFrame(rows, columns=list(suite_tables.COLUMNS["curves"]))


def dynamics(done: Sequence[Done]) -> pd.DataFrame:
    """Return the sum of the weights and the size of the trunk's update over time."""
    columns = ["key", "problem", "balancer", "phase", "lr", "seed", "step", "weight_sum", "trunk_update_norm"]
    rows = [run.row(**vars(dynamics)) for run in done for dynamics in run.result.dynamics]
    return pd.DataFrame(rows, columns=columns)


def trajectory(done: Sequence[Done]) -> pd.DataFrame:
    """Return losses and weights of each reported run, at `MOST_STEPS` or fewer evenly spaced steps, ends included."""
    rows: list[Row] = []
    for run in done:
        steps = len(run.result.losses)
        if run.planned.spec.phase != "reported" or steps == 0:
            continue
        for step in np.unique(np.linspace(0, steps - 1, min(steps, MOST_STEPS)).round().astype(int)).tolist():
            for i, task in enumerate(run.result.tasks):
                about = {"step": step + 1, "task": task}
                rows.append(run.row(**about, loss=run.result.losses[step, i], weight=run.result.weights[step, i]))
    columns = ["key", "problem", "balancer", "phase", "lr", "seed", "step", "task", "loss", "weight"]
    return pd.DataFrame(rows, columns=columns)


def selection(done: Sequence[Done], suite: Suite) -> pd.DataFrame:
    """Return, for each method and problem, the learning rate that the tuning runs choose; in a search, the trial."""
    table = choose_learning_rates(scores(done, suite), problems(suite))
    if suite.searches:
        return _with_trials(table, suite)
    table = table.assign(origin=_origins(table, suite))
    return _with_weights(table, suite) if any(entry.trials for entry in suite.balancers) else table


def _origins(table: pd.DataFrame, suite: Suite) -> list[str]:
    """Return for each row why the rate was tried; see `bench.analysis.SuiteTables`.

    A method's own rates are those that not all methods of the grid have tried. One that all of them happened to try is
    as good as one of the grid.
    """
    others = {entry.label: "trial" if entry.trials else "around" for entry in suite.balancers if not _tries_grid(entry)}
    of_grid = table[~table["balancer"].isin(list(others))]
    labels = of_grid.groupby("problem")["balancer"].nunique()
    tried = of_grid.groupby(["problem", "lr"])["balancer"].nunique()
    return [
        others.get(label) or ("grid" if tried[problem, lr] == labels[problem] else "finer")
        for problem, label, lr in zip(table["problem"], table["balancer"], table["lr"], strict=True)
    ]


def _tries_grid(entry: BalancerEntry) -> bool:
    return not (entry.trials or entry.rates_around)


def _with_weights(table: pd.DataFrame, suite: Suite) -> pd.DataFrame:
    """Return ``table`` with the searched weights of each row as JSON; empty for a method that searches for none."""
    trials = {entry.label: entry for entry in suite.balancers if entry.trials}
    rows = zip(table["problem"], table["balancer"], table["lr"], strict=True)
    weights = [
        json.dumps(trials[label].method(problem, lr).options["weights"]) if label in trials else ""
        for problem, label, lr in rows
    ]
    return table.assign(weights=weights)


def front(done: Sequence[Done], suite: Suite) -> pd.DataFrame:
    """Return the points of the front of static weights in the tuning runs; none if the suite searches no weights."""
    searching = next((entry.label for entry in suite.balancers if entry.searches_weights), "")
    points = _with_trials(front_points(scores(done, suite), metrics(suite), searching), suite)
    labels = [plan.trial_label(suite, searching, lr) for lr in points["lr"]]
    return points.assign(balancer=labels, searched=searching)


def _with_trials(table: pd.DataFrame, suite: Suite) -> pd.DataFrame:
    """Return ``table`` with the number of each row's trial, and the method's options in that trial as JSON."""
    entries = {entry.label: entry for entry in suite.balancers}
    rows = list(zip(table["problem"], table["balancer"], table["lr"], strict=True))
    options = [json.dumps(entries[balancer].method(problem, lr).options) for problem, balancer, lr in rows]
    return table.assign(trial=[plan.trial(suite, lr) for _, _, lr in rows], options=options)


def assemble(
    suite: Suite,
    done: Sequence[Done],
    selection: pd.DataFrame | None,
    cost_rows: Sequence[Row],
    retuning: pd.DataFrame | None = None,
) -> dict[str, pd.DataFrame]:
    """Return all tables by name, except that of the micro-benchmark, which is no part of a suite.

    Args:
        done: All runs of the suite.
        selection: The table of that name; None if the suite tunes nothing.
        cost_rows: The rows of the table of costs; none if the suite times nothing.
        retuning: The table of that name; None if the repeated runs have the reported runs' learning rates.
    """
    balanced = [run for run in done if run.planned.spec.phase != "baseline"]
    tables = {
        "problems": problems(suite, done),
        "metrics": metrics(suite),
        "runs": runs(done),
        "scores": scores(done, suite),
        "curves": curves(balanced),
    }
    if selection is not None:
        tables["selection"] = selection
    if retuning is not None:
        tables["retuning"] = retuning
    if cost_rows:
        tables["costs"] = pd.DataFrame(cost_rows).astype(dict.fromkeys(COUNTED, "Int64"))
    base = SuiteTables(**tables, constants=constants(done))
    tables |= derived_tables(base, suite.written.roles(suite.name))
    tables |= {"trajectory": trajectory(balanced), "dynamics": dynamics(balanced)}
    if suite.searches and any(entry.searches_weights for entry in suite.balancers):
        tables["front"] = front(done, suite)
    return tables


def write(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Write each table into ``folder``, and remove the tables of earlier times that are not among them.

    Files of other names than those of `TABLES` stay: they are the user's.
    """
    for name, table in tables.items():
        atomic_file.write_table(folder / name, table)
    for name in set(TABLES) - set(tables):
        for ending in (".parquet", ".csv"):
            (folder / f"{name}{ending}").unlink(missing_ok=True)
