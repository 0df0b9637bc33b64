"""List the problems for the terminal: tasks, metrics, numbers of samples, and how long a run takes on this machine."""

from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

import tasks
from bench.run.pace import pace
from bench.run.seeds import generator
from bench.run.spec import Method, RunSpec
from bench.style.numbers import in_words
from tasks import Metric, MissingDataError, Problem

EVALUATIONS = 10
"""Number of evaluations after step 0 in the run whose time is estimated."""


class ListedProblem(NamedTuple):
    """The lines of one problem in the list."""

    name: str
    summary: str
    tasks: str
    score: str
    """The primary metric, with its unit and an arrow for its better direction."""
    metrics: str
    """The other metrics, written in the same way."""
    sizes: str
    """Number of samples in each split."""
    run: str
    """Number of steps of the default recipe and its time on this machine, or why that cannot be estimated."""


def entries() -> list[ListedProblem]:
    """Return all registered problems, each with its default options."""
    return [_entry(name) for name in tasks.names()]


def table(problems: list[ListedProblem]) -> Table:
    """Return the problems as a table for the terminal."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for e in problems:
        lines = {"tasks": e.tasks, "score": e.score, "other metrics": e.metrics, "samples": e.sizes, "one run": e.run}
        grid.add_row(Text(e.name), "", Text(e.summary))
        for what, text in lines.items():
            if text:
                grid.add_row("", what, Text(text))
        grid.add_row("", "", "")
    return grid


def _entry(name: str) -> ListedProblem:
    cls = tasks.get(name)
    try:
        problem = tasks.create(name)
    except (TypeError, ValueError) as error:  # an option has no default
        return ListedProblem(name, cls.summary, "", "", "", "", str(error))
    score = next(_written(metric) for metric in problem.metrics if metric.name == problem.primary)
    others = ", ".join(_written(metric) for metric in problem.metrics if metric.name != problem.primary)
    return ListedProblem(name, cls.summary, ", ".join(problem.tasks), score, others, *_sizes_and_run(problem))


def _written(metric: Metric) -> str:
    """Write a metric as ``absolute depth error (m) ↓``."""
    unit = f" ({metric.unit})" if metric.unit else ""
    return f"{metric.name}{unit} {'↑' if metric.higher_is_better else '↓'}"


def _sizes_and_run(problem: Problem[Any]) -> tuple[str, str]:
    """Return the texts `ListedProblem.sizes` and `ListedProblem.run`; times a few steps of the problem."""
    if problem.illustration:
        return "", f"drawn only: lossbench show {problem.name}"
    try:
        problem.require()
    except MissingDataError as error:
        return "", str(error)
    spec = RunSpec(problem.name, {}, problem.recipe, Method("equal", None, {}), 0, "tuning", "cpu", EVALUATIONS)
    measured = pace(spec)
    sizes = problem.sizes(problem.data(generator(0, "data"), "cpu"))
    samples = ", ".join(f"{split} {size:,}" for split, size in sizes.items())
    seconds = measured.run(spec)
    return samples, f"{problem.recipe.steps:,} steps, {in_words(seconds, seconds)} on this machine"
