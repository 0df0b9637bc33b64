"""Draw the figures of costs: how they grow with tasks and batch size, and the results for a user's own model."""

from itertools import combinations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench.style.figure_style import FAINT, INK, Style, category_axis, label_ends, log_axis, panels, step_axis, styles

from .cases import HEADS
from .cost_growth import AT_BATCH, AT_TASKS
from .floor import LAYER_FLOOR
from .gradient_agreement import Gradients
from .timed_methods import AGAIN, EQUAL, LAYER

BOUND = "bound (of time and arithmetic: lower; of memory: upper)"
"""Name of the bounds in the legend."""
MOST_NAMES = 12
"""Maximum number of tasks to label. With more, only the largest and the smallest norm are labelled, and no cosine."""
MOST_NUMBERS = 8
"""Maximum number of tasks for which a heat map shows its numbers."""


def growth(table: pd.DataFrame, machine: str) -> Figure:
    """Draw the time, arithmetic and memory that GradNorm adds, against the number of tasks (top) and batch (bottom).

    The bound of time is the measured time of the products and their norms alone.
    """
    figure, axes = panels(6, columns=3, width=3.6, height=2.9)
    by_tasks, by_batch = table[table["batch"] == AT_BATCH], table[table["tasks"] == AT_TASKS]
    for rows, against, (time, flops, memory) in ((by_tasks, "tasks", axes[:3]), (by_batch, "batch", axes[3:])):
        fixed = f"batch {AT_BATCH}" if against == "tasks" else f"{AT_TASKS} tasks"
        _ratios(time, rows, against)
        time.set(title=f"Time of a step, {fixed}", ylabel="ratio to equal weighting")
        _with_bound(flops, rows, against, "flops")
        flops.set(title="Extra arithmetic", ylabel="MFLOP")
        _with_bound(memory, rows, against, "peak_bytes")
        memory.set(title="Extra peak memory", ylabel="MB")
        for panel in (time, flops, memory):
            log_axis(panel, "x")
            panel.set_xticks(sorted(rows[against].unique()))
            panel.minorticks_off()
            panel.set_xlabel({"tasks": "number of tasks", "batch": "batch size"}[against])
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3)
    figure.text(0.995, 0.995, machine, ha="right", va="top", color=FAINT)
    return figure


def _ratios(panel: Axes, rows: pd.DataFrame, against: str) -> None:
    panel.axhline(1, color=FAINT, linewidth=0.8)
    for heads, look in styles(HEADS).items():
        own = rows[rows["heads"] == heads].sort_values(against)
        line, floor = (own[own["method"] == method.name] for method in (LAYER, LAYER_FLOOR))
        panel.plot(floor[against], floor["ratio"], color=look.colour, alpha=0.3, linewidth=5)
        panel.fill_between(line[against], line["ratio_low"], line["ratio_high"], color=look.colour, alpha=0.2, lw=0)
        _line(panel, line[against], line["ratio"], look, heads)


def _with_bound(panel: Axes, rows: pd.DataFrame, against: str, what: str) -> None:
    """Draw ``extra_{what}`` in millions and its bound, on a logarithmic axis; values near zero fall below the axis."""
    rows = rows[rows["method"] == LAYER.name]
    bound = rows.drop_duplicates(against).sort_values(against)
    panel.plot(
        bound[against],
        bound[f"{what}_bound"] / 1e6,
        color=INK,
        alpha=0.25,
        linewidth=5,
        label=BOUND,
    )
    for heads, look in styles(HEADS).items():
        line = rows[rows["heads"] == heads].sort_values(against)
        _line(panel, line[against], line[f"extra_{what}"].clip(lower=1) / 1e6, look, f"{heads} heads")
    panel.set_yscale("log")
    panel.set_ylim(bottom=max(panel.get_ylim()[0], bound[f"{what}_bound"].min() / 1e6 / 20))
    log_axis(panel, "y")


def _line(panel: Axes, x: "pd.Series[float]", y: "pd.Series[float]", look: Style, label: str) -> None:
    [drawn] = panel.plot(x, y, color=look.colour, marker=look.marker, markersize=5, label=label)
    if look.dashes:
        drawn.set_dashes(look.dashes)


def own(costs: pd.DataFrame, gradients: Gradients, machine: str) -> Figure:
    """Draw the time of a step with each method, and the norms and cosines of the tasks' gradients."""
    figure, (time, norms, cosines) = panels(3, columns=3, width=5, height=3.4)
    _bars(time, costs, machine)
    ends = [(norms, _norms(norms, gradients))]
    if len(gradients.tasks) > 3:
        _heat_map(cosines, gradients)
    else:
        ends.append((cosines, _cosines(cosines, gradients)))
    label_ends(figure, ends, length=20)
    return figure


def _bars(panel: Axes, costs: pd.DataFrame, machine: str) -> None:
    """Draw a bar for each method; the two bars of equal weighting are grey."""
    colour = styles(["a method"])["a method"].colour
    equal = costs["method"].isin([EQUAL.name, AGAIN.name])
    panel.barh(range(len(costs)), costs["ratio"], height=0.62, color=np.where(equal, FAINT, colour), linewidth=0)
    panel.hlines(range(len(costs)), costs["ratio_low"], costs["ratio_high"], color=INK, linewidth=1.2)
    panel.axvline(1, color=INK, linewidth=0.8)
    ends = costs[["ratio", "ratio_high"]].max(axis=1).clip(lower=1)
    for place, (ratio, end) in enumerate(zip(costs["ratio"], ends, strict=True)):
        panel.annotate(f"{ratio:.2f}×", (end, place), xytext=(4, 0), textcoords="offset points", va="center")
    category_axis(panel, list(costs["method"]))
    panel.set_xlim(0, ends.max() * 1.2)
    panel.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    panel.set_title("Time of a step")
    panel.set_xlabel(f"ratio to equal weighting ({costs['median_ms'].iloc[0]:.3g} ms)\n{machine}")


Ends = list[tuple[float, str, str]]


def _norms(panel: Axes, gradients: Gradients) -> Ends:
    ends = []
    looks = styles(gradients.tasks)
    norms = np.where(gradients.norms > 0, gradients.norms, np.nan)
    for task, line in zip(gradients.tasks, norms.T, strict=True):
        panel.plot(range(len(line)), line, color=looks[task].colour, linewidth=1.3)
        if np.isfinite(line[-1]):
            ends.append((float(line[-1]), task, looks[task].colour))
    log_axis(panel, "y")
    step_axis(panel, max(1, len(norms) - 1))
    panel.set_title("Norms of the tasks' gradients")
    panel.set_ylabel(f"with respect to\n{gradients.wrt}")
    return ends if len(ends) <= MOST_NAMES else [min(ends), max(ends)]


def _cosines(panel: Axes, gradients: Gradients) -> Ends:
    """Draw the cosine of each pair of tasks as a line; for at most three tasks."""
    pairs = list(combinations(range(len(gradients.tasks)), 2))
    names = [f"{gradients.tasks[i]}, {gradients.tasks[j]}" for i, j in pairs]
    looks = styles(names)
    panel.axhline(0, color=FAINT, linewidth=0.8)
    ends = []
    for name, (i, j) in zip(names, pairs, strict=True):
        line = gradients.cosines[:, i, j]
        panel.plot(range(len(line)), line, color=looks[name].colour, linewidth=1.3)
        if np.isfinite(line[-1]):
            ends.append((float(line[-1]), name, looks[name].colour))
    panel.set_ylim(-1, 1)
    step_axis(panel, max(1, len(gradients.cosines) - 1))
    panel.set_title("Cosines between the tasks' gradients")
    return ends


def _heat_map(panel: Axes, gradients: Gradients) -> None:
    """Draw each pair's median cosine over steps as a heat map; for more than three tasks."""
    medians = gradients.median_cosines
    named = len(medians) <= MOST_NAMES
    lower = medians.iloc[1:, :-1]
    sns.heatmap(
        lower,
        ax=panel,
        vmin=-1,
        vmax=1,
        cmap="vlag_r",
        mask=np.triu(np.ones(lower.shape, dtype=bool), k=1),
        annot=len(medians) <= MOST_NUMBERS,
        fmt=".2f",
        xticklabels=named,
        yticklabels=named,
        linewidths=0.5 if named else 0,
    )
    panel.grid(False)
    panel.tick_params(length=0)
    panel.tick_params(axis="y", labelrotation=0)
    panel.set_title("Median cosines between the tasks' gradients")
