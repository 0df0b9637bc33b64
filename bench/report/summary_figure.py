"""Draw the summary, one picture for a README: how the methods score and what a step costs.

For up to three problems it shows learning curves, for more of them the comparison with equal weighting on each.
"""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.style.figure_style import FAINT, category_axis, label_ends, styles
from bench.style.short_label import short

from .cost_panels import draw_ratios
from .curve_panels import score_panel, validation_scores
from .results_folder import Results

RELATIVE = ("relative", "relative_low", "relative_high")
FEW = 3
"""Maximum number of problems for which the summary shows learning curves."""
COLUMNS = 4
"""Maximum number of panels beside one another."""
NARROWEST, WIDEST = 1.06, 3.0
"""Least and greatest ratio at the right end of a panel of ratios (its left end is the inverse).

A ratio outside `WIDEST` is written as a number at the edge of the panel.
"""
ROUND = (1.05, 1.1, 1.25, 1.5, 2.0, 2.5)
"""Ratios that can be marked on an axis."""


def summary(results: Results) -> Figure | None:
    """Draw the summary; return None if there is nothing to draw it from.

    With many problems it needs the leaderboard, with few problems the validation scores over training.
    """
    controls = _controls(results)
    scored = [problem for problem in results.problems_in(results.board) if problem not in controls]
    if len(scored) > FEW and results.baseline is not None and len(results.balancers) > 1:
        return _many(results, scored)
    rows = validation_scores(results)
    problems = [problem for problem in results.problems_in(rows) if problem not in controls]
    return _few(results, rows, problems[:FEW]) if problems else None


def _controls(results: Results) -> set[str]:
    """Return the problems that are controls: they test the benchmark, not the methods."""
    table = results.tables["problems"]
    return set(table.loc[table["control"].astype(bool), "problem"])


def _few(results: Results, rows: pd.DataFrame, problems: list[str]) -> Figure:
    """Draw learning curves beside the cost of a step."""
    with_cost = _timed(results)
    figure = Figure(figsize=(12, 5), layout="constrained")
    parts = figure.subfigures(1, len(problems) + with_cost, width_ratios=[1.2] * len(problems) + [1] * with_cost)
    places = [part.add_subplot() for part in np.array(parts, dtype=object, ndmin=1)]
    if with_cost:
        draw_ratios(places[-1], results, problems)
    ends = [
        (panel, score_panel(panel, results, rows[rows["problem"] == problem]))
        for panel, problem in zip(places, problems, strict=False)
    ]
    label_ends(figure, ends, length=18)
    return figure


def _many(results: Results, problems: list[str]) -> Figure:
    """Draw the step times, and one panel per problem with the final test scores compared with equal weighting.

    Equal weighting under a second name is left out.
    """
    others = [label for label in results.balancers if label not in (results.baseline, results.roles.second)]
    count = len(problems) + _timed(results)
    columns = COLUMNS if -(-count // COLUMNS) < -(-count // (COLUMNS - 1)) else COLUMNS - 1
    rows = -(-count // columns)
    figure = Figure(figsize=(12, rows * (1.25 + 0.3 * len(others))), layout="constrained")
    axes = [figure.add_subplot(rows, columns, place + 1) for place in range(count)]
    for panel, problem in zip(axes, problems, strict=False):
        board = results.board[results.board["problem"] == problem].set_index("balancer")
        _scores(panel, results, board, others)
        panel.set_title("\n".join(textwrap.wrap(short(problem, 40), 24)))
    if _timed(results):
        _steps(axes[-1], results, others)
    for place, panel in enumerate(axes):
        if place % columns:
            panel.set_yticklabels([])
    figure.supxlabel(
        f"final test score compared with {short(results.baseline or '')}, paired by seed, with 95 % intervals: "
        "left of the line is better. Time of a step: one dot per problem.",
        fontsize="medium",
    )
    return figure


def _scores(panel: Axes, results: Results, board: pd.DataFrame, others: list[str]) -> None:
    looks = styles(results.balancers)
    ratio = bool((board["scale"] == "ratio").all())
    panel.axvline(1 if ratio else 0, color=FAINT, linewidth=1)
    furthest = NARROWEST
    for place, label in enumerate(others):
        if label not in board.index:
            continue
        look = looks[label]
        mean, low, high = board.loc[[label], list(RELATIVE)].astype(float).to_numpy()[0]
        if not np.isfinite(mean):
            continue
        if ratio and not 1 / WIDEST < mean < WIDEST:
            text, edge, side = (f"{mean:.1f}× →", 1.0, "right") if mean > 1 else (f"← {mean:.2f}×", 0.0, "left")
            where = panel.get_yaxis_transform()
            panel.text(edge, place, text, ha=side, va="center", color=look.colour, transform=where)
            furthest = WIDEST
            continue
        panel.plot([low, high], [place, place], color=look.colour, linewidth=1.8)
        panel.plot(mean, place, look.marker, color=look.colour, markersize=6)
        if ratio:
            furthest = max(furthest, *np.exp(np.abs(np.log([value for value in (mean, low, high) if value > 0]))))
    category_axis(panel, others)
    if ratio:
        _ratio_axis(panel, min(furthest * 1.02, WIDEST))
    elif results.facts(str(board["problem"].iloc[0])).higher_is_better:
        panel.invert_xaxis()


def _ratio_axis(panel: Axes, furthest: float) -> None:
    """Make the x axis logarithmic around 1, and mark the largest ratio of `ROUND` that fits, and its inverse."""
    tick = max(ratio for ratio in ROUND if ratio <= furthest)
    panel.set_xscale("log")
    panel.set_xlim(1 / furthest, furthest)
    panel.xaxis.set_major_locator(FixedLocator([1 / tick, 1, tick]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}×"))


def _steps(panel: Axes, results: Results, others: list[str]) -> None:
    """Draw each method's step time relative to equal weighting, one dot per problem."""
    looks = styles(results.balancers)
    panel.axvline(1, color=FAINT, linewidth=1)
    for place, label in enumerate(others):
        ratios = results.board.loc[results.board["balancer"] == label, "step_ratio"].astype(float)
        panel.plot(ratios, np.full(len(ratios), place), "o", color=looks[label].colour, alpha=0.55, markersize=5)
    category_axis(panel, others)
    panel.set_title(f"Time of a step on\n{short(results.machine(results.timed_on or ''), 24)}")
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))


def _timed(results: Results) -> bool:
    return bool(np.isfinite(results.board["step_ratio"].astype(float)).any())
