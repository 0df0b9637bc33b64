"""Report the front of static weights: its figure, which methods lie beyond it, and the trials that a search chose."""

import json
from collections.abc import Mapping
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.analysis import Estimate, beyond, comparison_scale, summarise
from bench.style.figure_style import FAINT, INK, log_axis, mark, panels, spans_decades, styles
from bench.style.numbers import NOTHING, join, number, percent, rate, step_ratio
from bench.style.short_label import short

from .results_folder import Results
from .text_grid import TextGrid

MOST_TASKS = 3
"""Maximum number of tasks for which the front is drawn: the figure has one panel per pair of tasks."""
MARGIN = 0.1
"""Space between the outermost estimates and the edge of a panel, as a fraction of the range of the estimates."""
STATIC = "the front of static weights"

Estimates = Mapping[str, Estimate]


def static_front(results: Results) -> tuple[Figure, str] | None:
    """Draw one problem's task metrics against one another, with the trials, the points of the front and the methods.

    Returns:
        The figure and its caption; None if there is no front, or more than `MOST_TASKS` tasks.
    """
    axes = results.tables["front"].drop_duplicates("task")
    if not 2 <= len(axes) <= MOST_TASKS:
        return None
    pairs = list(combinations(axes[["metric", "higher_is_better"]].itertuples(index=False, name=None), 2))
    figure, drawn = panels(len(pairs), columns=3, width=3.9, height=3.7)
    for panel, ((across, across_higher), (up, up_higher)) in zip(drawn, pairs, strict=True):
        trials = _of(results, "tuning", "validation")
        trials = trials[trials["balancer"].isin(results.tables["front"]["searched"])]
        grey = trials.pivot_table("value", "lr", "metric").reindex(columns=[across, up])
        panel.plot(grey[across], grey[up], ".", color=FAINT, markersize=6, alpha=0.7, linestyle="none")
        x, y = _estimates(results, across), _estimates(results, up)
        _marks(panel, results, x, y)
        _axis(panel, "x", across, across_higher, x)
        _axis(panel, "y", up, up_higher, y)
    looks = styles(results.balancers)
    handles = [Line2D([], [], color=FAINT, marker=".", linestyle="none", label="trials, on validation")]
    handles.append(Line2D([], [], color=INK, marker="o", linewidth=1, label="front of static weights"))
    for label in _methods(results):
        look = looks[label]
        handles.append(Line2D([], [], color=look.colour, marker=look.marker, linewidth=1, label=short(label)))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure, (
        "The front of static weights. Grey: all trials of static weights, scored on validation. Black: the front, "
        "which is the trials that no other trial equals or beats in every task (an evenly spread choice where there "
        "are many). They were trained again on the reported seeds and scored on test, like the methods. Marks and "
        "lines: means and 95 % intervals over seeds; means are geometric where a metric is positive and lower is "
        "better. Some seeds are harder than others for all methods alike; this widens the lines here, but not the "
        "paired intervals in the table. Trials far from the front are outside the panel."
    )


def _of(results: Results, phase: str, split: str) -> pd.DataFrame:
    """Return the scores of last checkpoints of one phase on one split, without failed runs."""
    rows: pd.DataFrame = results.tables["scores"]
    rows = rows[(rows["phase"] == phase) & (rows["split"] == split) & (rows["checkpoint"] == "last")]
    rows = rows.assign(value=rows["value"].astype(float))
    kept: pd.DataFrame = rows[np.isfinite(rows["value"]) & ~rows["imputed"].astype(bool)]
    return kept


def _methods(results: Results) -> list[str]:
    """Return the methods to compare with the front, in the suite's order: all except the searched static weights."""
    searched = set(results.tables["front"]["searched"])
    return [label for label in results.balancers_in(results.reported("scores")) if label not in searched]


def _estimates(results: Results, metric: str) -> Estimates:
    """Return the mean and interval over seeds of one metric, for each point of the front and each method."""
    rows = pd.concat([_of(results, "front", "test"), _of(results, "reported", "test")])
    rows = rows[rows["metric"] == metric]
    metrics = results.tables["metrics"]
    higher = bool(metrics.loc[metrics["metric"] == metric, "higher_is_better"].iloc[0])
    scale = comparison_scale(rows["value"], higher)
    return {str(label): summarise(of_label["value"], scale) for label, of_label in rows.groupby("balancer", sort=False)}


def _marks(panel: Axes, results: Results, x: Estimates, y: Estimates) -> None:
    looks, methods = styles(results.balancers), set(_methods(results))
    points = set(results.tables["front"]["balancer"])
    for label in (label for label in x if label in y and label in methods | points):
        method = label in methods
        colour, marker = (looks[label].colour, looks[label].marker) if method else (INK, "o")
        across, up = x[label], y[label]
        drawn = panel.plot([across.low, across.high], [up.mean, up.mean], color=colour, linewidth=1.1)
        drawn += panel.plot([across.mean, across.mean], [up.low, up.high], color=colour, linewidth=1.1)
        size = 7.5 if method else 4.5
        drawn += panel.plot(across.mean, up.mean, marker, color=colour, markersize=size, markeredgecolor="white")
        if method:
            mark(drawn, label, results.balancers)


def _axis(panel: Axes, which: Literal["x", "y"], metric: str, higher_is_better: bool, estimates: Estimates) -> None:
    """Label an axis, and limit it to the range of its estimates."""
    set_label, set_limits = (panel.set_xlabel, panel.set_xlim) if which == "x" else (panel.set_ylabel, panel.set_ylim)
    set_label(f"{short(metric, 32)}, {'higher' if higher_is_better else 'lower'} is better")
    values = np.array([[each.mean, each.low, each.high] for each in estimates.values()], dtype=float)
    if not np.isfinite(values).any():  # every run failed
        return
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if spans_decades([low, high], factor=5):
        factor = (high / low) ** MARGIN
        set_limits(low / factor, high * factor)
        log_axis(panel, which)
    elif high > low:
        set_limits(low - MARGIN * (high - low), high + MARGIN * (high - low))


def verdicts(results: Results) -> pd.DataFrame:
    """Return how far beyond the front each method lies; see `bench.analysis.static_front.beyond`."""
    return beyond(results.tables["scores"], results.tables["metrics"], _methods(results))


def grid(results: Results) -> TextGrid | None:
    """Return a table of one problem's methods compared with the front, with their step times; None without a front."""
    rows = verdicts(results)
    if rows.empty:
        return None
    steps = results.board.set_index("balancer")[["step_ratio", "step_ratio_low", "step_ratio_high"]].astype(float)
    return {
        "title": "",
        "header": ["Method", "Beyond static weights by", "Verdict", "Closest point of the front", "Time of a step"],
        "rows": [
            [
                row["balancer"],
                percent(row["improvement"], row["low"], row["high"]),
                row["verdict"] or NOTHING,
                row["nearest"] or NOTHING,
                step_ratio(*steps.loc[row["balancer"]]) if row["balancer"] in steps.index else NOTHING,
            ]
            for _, row in rows.iterrows()
        ],
        "marked": set(),
    }


def finding(results: Results) -> str:
    """Return a sentence on which methods lie beyond one problem's front; empty without a front or with one seed."""
    rows = verdicts(results)
    rows = rows[rows["verdict"] != ""]
    if rows.empty:
        return ""
    words = {
        "beyond": ("lies beyond", "lie beyond"),
        "not settled": ("cannot be distinguished from", "cannot be distinguished from"),
        "not beyond": ("does not lie beyond", "do not lie beyond"),
    }
    parts: list[str] = []
    if not (rows["verdict"] == "beyond").any():
        parts.append(f"no method is shown to lie beyond {STATIC}")
    for verdict, (singular, plural) in words.items():
        labels = [short(label, 40) for label in rows.loc[rows["verdict"] == verdict, "balancer"]]
        if labels:
            parts.append(f"{join(labels)} {singular if len(labels) == 1 else plural} {'it' if parts else STATIC}")
    return f"{short(str(rows['problem'].iloc[0]), 40)}: {'; '.join(parts)}."


def chosen(results: Results) -> TextGrid | None:
    """Return a table of the trials chosen for one problem's methods; None if the suite did not search."""
    table = results.tables["selection"]
    if "trial" not in table or table.empty:
        return None
    score = table["mean_validation_score"].astype(float)
    best = "max" if results.facts(table["problem"].iloc[0]).higher_is_better else "min"
    first = score[2 * (table["trial"] - 1) < table["trial"].max()].groupby(table["balancer"]).agg(best)
    rows = []
    for label in results.balancers_in(table):
        row = table[(table["balancer"] == label) & table["chosen"].astype(bool)].iloc[0]
        values = [rate(row["lr"]), options(row["options"]), number(float(row["mean_validation_score"]), 4)]
        rows.append([label, str(row["trial"]), *values, number(float(first[label]), 4)])
    header = ["Method", "Trial", "Learning rate", "Options", "Validation score", "Best score in first half of trials"]
    return {"title": "", "header": header, "rows": rows, "marked": set()}


def options(text: str) -> str:
    """Write a method's options, given as JSON, for people: ``alpha 0.12, lr 0.003``."""
    return ", ".join(f"{name} {_written(value)}" for name, value in json.loads(text).items()) or NOTHING


def _written(value: Any) -> str:
    if isinstance(value, list):
        return f"({', '.join(map(_written, value))})"
    return rate(value) if isinstance(value, float) else str(value)


def print_search(results: Results, console: Console) -> None:
    """Print the trial chosen for each method and whether the method lies beyond the front; nothing without a search."""
    for problem in results.problems:
        of_problem = results.only(problem)
        trials = chosen(of_problem)
        if trials is None:
            continue
        distances = {row["balancer"]: row for _, row in verdicts(of_problem).iterrows()}
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for head in ("method", "trial", "learning rate", "options", "beyond static weights by", "verdict"):
            table.add_column(head, overflow="fold")
        for label, trial, lr, text, *_ in trials["rows"]:
            row = distances.get(label)
            last = [NOTHING, NOTHING]
            if row is not None:
                last = [percent(row["improvement"], row["low"], row["high"]), row["verdict"] or NOTHING]
            table.add_row(*(Text(cell) for cell in (label, trial, lr, text, *last)))
        heading = finding(of_problem) or f"{problem}: the trials that validation chose"
        console.print("", Text(heading), table, sep="\n")
