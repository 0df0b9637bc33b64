"""What there is to know of each problem, for a terminal: tasks, metrics, sizes, and how long a run of it takes here."""

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
"""The run whose time is told has so many, after the first."""


class ListedProblem(NamedTuple):
    """A problem's lines in the list."""

    name: str
    summary: str
    tasks: str
    score: str
    """The primary metric, with its unit and an arrow for its better direction."""
    metrics: str
    """The others."""
    sizes: str
    run: str
    """How long the default recipe takes on this machine, or why that can't be told."""


def entries() -> list[ListedProblem]:
    """All problems that are known, made without options."""
    return [_entry(name) for name in tasks.names()]


def table(problems: list[ListedProblem]) -> Table:
    """The entries for a terminal."""
    shown = Table.grid(padding=(0, 2, 0, 0))
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(style="dim", no_wrap=True)
    shown.add_column(overflow="fold")
    for e in problems:
        lines = {"tasks": e.tasks, "score": e.score, "metrics": e.metrics, "samples": e.sizes, "a run": e.run}
        shown.add_row(Text(e.name), "", Text(e.summary))
        for what, told in lines.items():
            if told:
                shown.add_row("", what, Text(told))
        shown.add_row("", "", "")
    return shown


def _entry(name: str) -> ListedProblem:
    cls = tasks.get(name)
    try:
        problem = tasks.create(name)
    except (TypeError, ValueError) as error:  # an option that has no default
        return ListedProblem(name, cls.summary, "", "", "", "", str(error))
    score = next(_told(metric) for metric in problem.metrics if metric.name == problem.primary)
    others = ", ".join(_told(metric) for metric in problem.metrics if metric.name != problem.primary)
    return ListedProblem(name, cls.summary, ", ".join(problem.tasks), score, others, *_tried(problem))


def _told(metric: Metric) -> str:
    """``absolute depth error (m) ↓``."""
    unit = f" ({metric.unit})" if metric.unit else ""
    return f"{metric.name}{unit} {'↑' if metric.higher_is_better else '↓'}"


def _tried(problem: Problem[Any]) -> tuple[str, str]:
    if problem.illustration:
        return "", f"drawn only: lossbench show {problem.name}"
    try:
        problem.require()
    except MissingDataError as error:
        return "", str(error)
    spec = RunSpec(problem.name, {}, problem.recipe, Method("equal", None, {}), 0, "tuning", "cpu", EVALUATIONS)
    found = pace(spec)
    sizes = problem.sizes(problem.data(generator(0, "data"), "cpu"))
    told = ", ".join(f"{split} {size:,}" for split, size in sizes.items())
    return told, f"{problem.recipe.steps:,} steps, {in_words(found.run(spec), found.run(spec))} on this machine"
