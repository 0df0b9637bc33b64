"""What there is to know of each problem, for a terminal: tasks, metrics, sizes, and how long a run of it takes here."""

from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

import tasks
from tasks import MissingDataError, Problem

from . import estimate
from .seeds import generator
from .spec import Method, RunSpec

EVALUATIONS = 10
"""The run whose time is told has so many, after the first."""


class Entry(NamedTuple):
    """A problem's lines in the list."""

    name: str
    summary: str
    tasks: str
    metrics: str
    """The primary one first, each with its unit and an arrow for its better direction."""
    sizes: str
    run: str
    """How long a run of the default recipe takes on this machine, or why that can't be told."""


def entries() -> list[Entry]:
    """All problems that are known, made without options."""
    return [_entry(name) for name in tasks.names()]


def table(problems: list[Entry]) -> Table:
    """The entries for a terminal."""
    shown = Table(box=None, pad_edge=False, show_lines=False)
    for header in ("problem", "tasks", "metrics (↑ more is better)", "samples", "a default run here"):
        shown.add_column(header, overflow="fold")
    for e in problems:
        shown.add_row(Text(e.name, style="bold"), Text(e.tasks), Text(e.metrics), Text(e.sizes), Text(e.run))
        shown.add_row("", Text(e.summary, style="dim"), end_section=True)
    return shown


def _entry(name: str) -> Entry:
    cls = tasks.get(name)
    try:
        problem = tasks.create(name)
    except (TypeError, ValueError) as error:  # an option that has no default
        return Entry(name, cls.summary, "", "", "", str(error))
    metrics = sorted(problem.metrics, key=lambda metric: metric.name != problem.primary)
    told = [
        f"{metric.name}{f', {metric.unit}' if metric.unit else ''} {'↑' if metric.higher_is_better else '↓'}"
        for metric in metrics
    ]
    sizes, run = _tried(problem)
    return Entry(name, cls.summary, ", ".join(problem.tasks), "; ".join(told), sizes, run)


def _tried(problem: Problem[Any]) -> tuple[str, str]:
    if problem.illustration:
        return "", f"drawn only: lossbench show {problem.name}"
    try:
        problem.require()
    except MissingDataError as error:
        return "", str(error)
    spec = RunSpec(problem.name, {}, problem.recipe, Method("equal", None, {}), 0, "tuning", "cpu", EVALUATIONS)
    pace = estimate.pace(spec)
    sizes = problem.sizes(problem.data(generator(0, "data"), "cpu"))
    told = ", ".join(f"{split} {size:,}" for split, size in sizes.items())
    return told, f"{problem.recipe.steps:,} steps, {estimate.in_words(pace.run(spec), pace.run(spec))}"
