"""Joins the results of a suite into tidy tables, the same to the bit whenever and in whatever order the runs were done.

Each table is written as Parquet, with the same as CSV beside it. What wasn't measured has no table.
"""

import json
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.analysis import (
    Cast,
    baselines,
    cast,
    choose_learning_rates,
    controls,
    delta_m,
    front_points,
    impute_failures,
    leaderboard,
    repeated_verdicts,
    time_to_target,
)
from bench.run import atomic_file, result_file, spec
from bench.run.training import Checkpoint, Result
from tasks import Split

from . import plan
from .plan import Planned
from .suite_file import ProblemEntry, Suite

MOST_STEPS = 200
"""The table of trajectories holds no more steps of a run than this; the run's own file holds all."""

COUNTED = ("flops", "operator_calls", "peak_bytes")
TIMES = ("problem", "balancer", "part", "median_ms", "ratio_to_equal", "ratio_low", "ratio_high", "flops")
"""What the analysis reads of the costs."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Done:
    """A run of a suite and its result."""

    planned: Planned
    result: Result
    entry: ProblemEntry

    def row(self, **values: object) -> Row:
        """A table's row about this run."""
        run = self.planned
        facts = {"phase": run.spec.phase, "lr": run.spec.lr, "seed": run.spec.seed}
        return {"key": run.key, "problem": run.problem, "balancer": run.balancer, **facts, **values}


def load(suite: Suite, planned: Iterable[Planned], folder: Path) -> list[Done]:
    """The runs with their results, all of which have been stored."""
    entries = {entry.label: entry for entry in suite.problems}
    results: dict[str, Result] = {}
    for run in planned:
        if run.key not in results:
            results[run.key] = result_file.load(result_file.run_path(folder, run.key))
    return [Done(run, results[run.key], entries[run.problem]) for run in planned]


def problems(suite: Suite, done: Sequence[Done] = ()) -> pd.DataFrame:
    """What a reader has to know of each problem; ``samples`` is empty where none of its runs are ``done``."""
    samples = {one.planned.problem: one.result.sizes for one in done if one.result.sizes}
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
                "steps": entry.recipe.steps,
                "batch_size": entry.recipe.batch_size,
                "control": entry.problem.control,
            }
        )
    return pd.DataFrame(rows)


def metrics(suite: Suite) -> pd.DataFrame:
    """What each problem is measured by."""
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
    """Every run, how it ended and after how many steps."""
    rows = [one.row(status=one.result.status, reason=one.result.reason, steps=len(one.result.losses)) for one in done]
    return pd.DataFrame(rows)


def scores(done: Sequence[Done], suite: Suite) -> pd.DataFrame:
    """The scores of the last and the best checkpoints; those of failed runs imputed."""
    rows = [row for one in done for row in _scores(one)]
    facts = problems(suite)
    of_constants = constants(done)
    primary = of_constants["metric"] == of_constants["problem"].map(facts.set_index("problem")["primary"])
    return impute_failures(pd.DataFrame(rows), runs(done), facts, of_constants[primary].drop(columns="metric"))


def constants(done: Sequence[Done]) -> pd.DataFrame:
    """The metrics of the problems' constant predictors, by seed and split."""
    rows = [
        one.row(split=score.split, metric=metric, value=value)
        for one in done
        for score in one.result.scores
        if score.checkpoint == "constant"
        for metric, value in score.metrics.items()
    ]
    table = pd.DataFrame(rows, columns=["problem", "seed", "split", "metric", "value"])
    return table.drop_duplicates(["problem", "seed", "split", "metric"])  # the same for every run of a seed


def _scores(one: Done) -> Iterable[Row]:
    known = {(score.checkpoint, score.split): score.metrics for score in one.result.scores}
    splits: tuple[Split, ...] = ("validation",) if one.planned.spec.phase == "tuning" else ("validation", "test")
    checkpoints: tuple[Checkpoint, ...] = ("last", "best")
    for split in splits:
        for checkpoint in checkpoints:
            metrics = known.get((checkpoint, split), {})
            for metric in one.entry.problem.metrics:
                about = {"checkpoint": checkpoint, "split": split, "metric": metric.name, "task": metric.task}
                yield one.row(**about, value=metrics.get(metric.name, np.nan), imputed=False)


def curves(done: Sequence[Done]) -> pd.DataFrame:
    """The validation metrics over time."""
    rows = [
        one.row(step=evaluation.step, metric=metric.name, task=metric.task, value=evaluation.metrics[metric.name])
        for one in done
        for evaluation in one.result.curves
        for metric in one.entry.problem.metrics
    ]
    return pd.DataFrame(rows)


def dynamics(done: Sequence[Done]) -> pd.DataFrame:
    """The sum of weights and the size of the trunk's update over time."""
    columns = ["key", "problem", "balancer", "phase", "lr", "seed", "step", "weight_sum", "trunk_update_norm"]
    rows = [one.row(**vars(dynamics)) for one in done for dynamics in one.result.dynamics]
    return pd.DataFrame(rows, columns=columns)


def trajectory(done: Sequence[Done]) -> pd.DataFrame:
    """The losses and weights of at most `MOST_STEPS` evenly spaced steps of each reported run, ends included."""
    rows: list[Row] = []
    for one in done:
        steps = len(one.result.losses)
        if one.planned.spec.phase != "reported" or steps == 0:
            continue
        for step in np.unique(np.linspace(0, steps - 1, min(steps, MOST_STEPS)).round().astype(int)).tolist():
            for i, task in enumerate(one.result.tasks):
                about = {"step": step + 1, "task": task}
                rows.append(one.row(**about, loss=one.result.losses[step, i], weight=one.result.weights[step, i]))
    columns = ["key", "problem", "balancer", "phase", "lr", "seed", "step", "task", "loss", "weight"]
    return pd.DataFrame(rows, columns=columns)


def selection(done: Sequence[Done], suite: Suite) -> pd.DataFrame:
    """The learning rate chosen for each method on each problem, by its tuning runs; in a search, the trial."""
    table = choose_learning_rates(scores(done, suite), problems(suite))
    return _with_trials(table, suite) if suite.searches else table


def front(done: Sequence[Done], suite: Suite) -> pd.DataFrame:
    """The points of the front of static weights, by the tuning runs; empty where the suite searches for no weights."""
    searching = next((entry.label for entry in suite.balancers if entry.searches_weights), "")
    points = _with_trials(front_points(scores(done, suite), metrics(suite), searching), suite)
    labels = [plan.trial_label(suite, searching, lr) for lr in points["lr"]]
    return points.assign(balancer=labels, searched=searching)


def _with_trials(table: pd.DataFrame, suite: Suite) -> pd.DataFrame:
    """With the number and the method's options of each row's trial, the latter as JSON."""
    entries = {entry.label: entry for entry in suite.balancers}
    rows = list(zip(table["problem"], table["balancer"], table["lr"], strict=True))
    options = [json.dumps(entries[balancer].method(problem, lr).options) for problem, balancer, lr in rows]
    return table.assign(trial=[plan.trial(suite, lr) for _, _, lr in rows], options=options)


def assemble(
    suite: Suite, done: Sequence[Done], selection: pd.DataFrame | None, cost_rows: Sequence[Row]
) -> dict[str, pd.DataFrame]:
    """All tables by name, but that of the micro-benchmark, which is no part of a suite."""
    balanced = [one for one in done if one.planned.spec.phase != "baseline"]
    tables = {
        "problems": problems(suite, done),
        "metrics": metrics(suite),
        "runs": runs(done),
        "scores": scores(done, suite),
        "curves": curves(balanced),
        "trajectory": trajectory(balanced),
        "dynamics": dynamics(balanced),
    }
    parts = cast(suite.name, tomllib.loads(suite.text)["balancers"])
    if suite.baselines:
        tables["delta_m"] = delta_m(tables["scores"], tables["metrics"])
    tables["baselines"] = baselines(tables["scores"], constants(done), tables["metrics"], parts.equal)
    checked = controls(tables["scores"], tables["problems"], tables["metrics"], parts)
    if len(checked):
        tables["controls"] = checked
    if selection is not None:
        tables["selection"] = selection
        tables["target"] = _target(tables, cost_rows, parts)
        if suite.repeated_seeds:
            tables["repeated"] = _repeated(tables, parts)
    if any(entry.searches_weights for entry in suite.balancers):
        tables["front"] = front(done, suite)
    if cost_rows:
        tables["costs"] = pd.DataFrame(cost_rows).astype(dict.fromkeys(COUNTED, "Int64"))
    return tables


def _target(tables: dict[str, pd.DataFrame], cost_rows: Sequence[Row], parts: Cast) -> pd.DataFrame:
    """Time-to-target, its times being those of the first device that was measured."""
    costs = pd.DataFrame(cost_rows, columns=None if cost_rows else [*TIMES])
    if cost_rows:
        costs = costs[costs["device"] == costs["device"].iloc[0]]
    return time_to_target(tables["curves"], tables["scores"], tables["runs"], tables["problems"], costs, parts.equal)


def _repeated(tables: dict[str, pd.DataFrame], parts: Cast) -> pd.DataFrame:
    """The verdicts of the reported runs beside those of the repeated ones."""
    first, again = (
        leaderboard(
            tables["runs"],
            tables["scores"],
            tables["problems"],
            tables["selection"],
            pd.DataFrame(columns=[*TIMES]),
            list(parts.roles),
            parts.equal,
            parts.static,
            phase,
        )
        for phase in ("reported", "repeated")
    )
    return repeated_verdicts(first, again)


def write(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Writes each table into ``folder``, and removes those of an earlier time that are none of them."""
    for name, table in tables.items():
        atomic_file.write_table(folder / name, table)
    for path in (*folder.glob("*.parquet"), *folder.glob("*.csv")):
        if path.stem not in tables:
            path.unlink()
