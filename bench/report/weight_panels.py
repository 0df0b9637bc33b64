"""Draw the weights over training, one panel per method."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.analysis import at_common_steps, band
from bench.style.figure_style import log_axis, mark, panels, spans_decades, step_axis
from bench.style.short_label import short

from .results_folder import Results

NAMED_TASKS = 12
"""Maximum number of tasks that a legend names; more get a colour scale with a few names beside it."""
POINTS = 60
"""Maximum number of points of a line: more would make the file larger without being visible."""


def weight_trajectories(results: Results) -> tuple[Figure, str] | None:
    """Draw each task's weight over steps, for results of one problem; all panels have the same axes.

    Returns:
        The figure and its caption; None if no weights were recorded.
    """
    rows = results.reported("trajectory")
    rows = rows[np.isfinite(rows["weight"].astype(float))]
    if rows.empty:
        return None
    tasks = _by_initial_loss(rows)
    # The darkest shades of the colour map would be invisible on a dark page.
    shades = sns.color_palette("flare", as_cmap=True)(np.linspace(0.8, 0, len(tasks)))
    colours = {task: to_hex(shade) for task, shade in zip(tasks, shades, strict=True)}
    log = spans_decades(rows["weight"])
    table = band(at_common_steps(rows, POINTS), ["balancer", "task", "step"], "weight", log)
    labels = results.balancers_in(table)
    figure, axes = panels(len(labels), width=4.3, height=2.5)
    figure.set_figwidth(figure.get_figwidth() + 1.5)  # for the names of the tasks
    lowest, highest = table["low"].min(), table["high"].max()
    for panel, label in zip(axes, labels, strict=True):
        _lines(panel, table[table["balancer"] == label], colours)
        panel.set(title=short(label, 40), ylabel="weight")
        mark(panel, label, results.balancers)
        if log:
            panel.set_ylim(lowest / 1.3, highest * 1.3)
            log_axis(panel, "y")
        else:
            panel.set_ylim(min(0, 1.08 * lowest), 1.08 * highest)
        step_axis(panel, rows["step"].max())
    _name_tasks(figure, axes, tasks, colours)
    return figure, (
        "Weights over training. Colour: the tasks, ordered by their loss at the first step; the darkest has the "
        "largest loss. Line: mean over the reported seeds (geometric mean where the axis is logarithmic). Band: from "
        "the lowest to the highest seed. All panels have the same axes."
    )


def _by_initial_loss(rows: pd.DataFrame) -> list[str]:
    """Return the tasks, from the largest to the smallest mean loss at the first recorded step."""
    first = rows[rows["step"] == rows["step"].min()]
    return list(first.groupby("task", sort=False)["loss"].mean().sort_values(ascending=False, kind="stable").index)


def _lines(panel: Axes, table: pd.DataFrame, colours: dict[str, str]) -> None:
    shade = 0.22 / np.sqrt(len(colours) / 2)  # the bands of many tasks overlap, so they are fainter
    for task, colour in colours.items():
        line = table[table["task"] == task].sort_values("step")
        if (line["low"] < line["high"]).any():
            panel.fill_between(line["step"], line["low"], line["high"], color=colour, alpha=shade, linewidth=0)
        panel.plot(line["step"], line["centre"], color=colour, linewidth=1.4 if len(colours) <= NAMED_TASKS else 0.9)


def _name_tasks(figure: Figure, axes: list[Axes], tasks: list[str], colours: dict[str, str]) -> None:
    """Add a legend of all tasks right of the panels, or a colour scale with eight names if there are many."""
    if len(tasks) <= NAMED_TASKS:
        handles = [Line2D([], [], color=colours[task], linewidth=3, label=short(task, 20)) for task in tasks[::-1]]
        figure.legend(handles=handles, loc="outside right center", handlelength=1.0, title="task", alignment="left")
        return
    few = np.linspace(0, len(tasks) - 1, 8).round().astype(int)
    shades = ScalarMappable(Normalize(-0.5, len(tasks) - 0.5), ListedColormap([colours[task] for task in tasks]))
    bar = figure.colorbar(shades, ax=axes, shrink=0.8, aspect=30, ticks=few)
    bar.set_ticklabels([short(tasks[place], 20) for place in few])
    bar.ax.tick_params(length=0)
    bar.ax.set_title("task", fontweight="normal")
    bar.outline.set_visible(False)
