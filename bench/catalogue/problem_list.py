"""List the problems for the terminal: tasks, metrics and steps; of a user's, samples and the time of a run too."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

import tasks
from bench.run.pace import pace
from bench.run.seeds import generator
from bench.run.spec import Method, RunSpec
from bench.run.training import reason, sample_sizes
from bench.style.numbers import in_words
from tasks import Metric, MissingDataError, Problem

EVALUATIONS = 10
"""Number of evaluations after step 0 in the run whose time is estimated."""

RESERVED = "for the evidence; only a suite with reserved = true compares other methods than equal and static on it"


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
    """Number of samples in each split; empty if data were not loaded."""
    reserved: str
    """Which methods may be compared on the problem, if it is reserved; else empty."""
    run: str
    """Number of steps of the default recipe; and if it was timed, its time on this machine, or why it has none."""


def entries(names: Sequence[str] | None = None, timed: bool = True) -> list[ListedProblem]:
    """Return the registered problems of these names, each with its default options; None: all problems.

    If they are ``timed``, their data are loaded and a few training steps are made, which takes seconds for each.
    """
    return [_entry(name, timed) for name in (tasks.names() if names is None else names)]


def line(name: str) -> str:
    """Return the summary of a problem, and a second sentence if the problem is reserved."""
    cls = tasks.get(name)
    return f"{cls.summary} Reserved for the evidence." if cls.reserved else cls.summary


def table(problems: list[ListedProblem]) -> Table:
    """Return the problems as a table for the terminal."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for e in problems:
        lines = {"tasks": e.tasks, "score": e.score, "other metrics": e.metrics, "samples": e.sizes}
        lines |= {"reserved": e.reserved, "one run": e.run}
        grid.add_row(Text(e.name), "", Text(e.summary))
        for what, text in lines.items():
            if text:
                grid.add_row("", what, Text(text))
        grid.add_row("", "", "")
    return grid


def _entry(name: str, timed: bool) -> ListedProblem:
    cls = tasks.get(name)
    reserved = RESERVED if cls.reserved else ""
    try:
        problem = tasks.create(name)
    except (Exception, SystemExit) as error:
        expected = isinstance(error, TypeError | ValueError)  # an option has no default
        why = str(error) if expected else f"it can't be made: {reason(error)}"
        return ListedProblem(name, cls.summary, "", "", "", "", reserved, why)
    score = next(_written(metric) for metric in problem.metrics if metric.name == problem.primary)
    others = ", ".join(_written(metric) for metric in problem.metrics if metric.name != problem.primary)
    sizes, run = _sizes_and_run(problem, timed)
    return ListedProblem(name, cls.summary, ", ".join(problem.tasks), score, others, sizes, reserved, run)


def _written(metric: Metric) -> str:
    """Write a metric as ``absolute depth error (m) ↓``."""
    unit = f" ({metric.unit})" if metric.unit else ""
    return f"{metric.name}{unit} {'↑' if metric.higher_is_better else '↓'}"


def _sizes_and_run(problem: Problem[Any], timed: bool) -> tuple[str, str]:
    """Return the texts `ListedProblem.sizes` and `ListedProblem.run`; if ``timed``, times a few steps."""
    if problem.illustration:
        return "", f"drawn only: lossbench show {problem.name}"
    try:
        problem.require()
    except MissingDataError as error:
        return "", str(error)
    except (Exception, SystemExit) as error:
        return "", f"its require raises {reason(error)}"
    if not timed:
        return "", f"{problem.recipe.steps:,} steps of {problem.recipe.batch_size} samples"
    spec = RunSpec(problem.name, {}, problem.recipe, Method("equal", None, {}), 0, "tuning", "cpu", EVALUATIONS)
    try:
        measured = pace(spec)
        sizes = sample_sizes(problem, problem.data(generator(0, "data"), "cpu"))
    except (Exception, SystemExit) as error:  # of a problem that a user is writing
        return "", f"its first steps fail: {reason(error)}"
    samples = ", ".join(f"{split} {size:,}" for split, size in sizes.items())
    seconds = measured.run(spec)
    return samples, f"{problem.recipe.steps:,} steps, {in_words(seconds, seconds)} on this machine"
