"""Draw the figures of time: a training step and its parts, and the micro-benchmark."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from bench.style.figure_style import FAINT, INK, category_axis, label_ends, log_axis, mark, panels, styles
from bench.style.numbers import step_ratio
from bench.style.short_label import short

from . import step_ratios
from .results_folder import Results

PARTS = {"forward": 0.35, "backward": 1.0, "optimizer": 0.6}
"""Parts of a training step, and the opacity of their bars."""
MOST_BARS = 16
"""Maximum number of bars in the summary figure."""
RATIO = ("ratio_to_equal", "ratio_low", "ratio_high")
PART_NAMES = {"forward": "forward", "backward": "backward with balancing", "optimizer": "optimiser"}


def step_cost(results: Results) -> tuple[Figure, str] | None:
    """Draw each method's step time as a stacked bar, one panel per problem and device.

    Returns:
        The figure and its caption; None if no step was timed.
    """
    costs = results.tables["costs"]
    if costs.empty:
        return None
    devices = list(costs["device"].unique())
    pairs = [
        (problem, device) for device in devices for problem in results.problems_in(costs[costs["device"] == device])
    ]
    figure, axes = panels(len(pairs), height=1.05 + 0.34 * len(results.balancers))
    for panel, (problem, device) in zip(axes, pairs, strict=True):
        rows = costs[(costs["problem"] == problem) & (costs["device"] == device)]
        _bars(panel, rows, results)
        panel.set_title(short(problem, 40))
        panel.set_xlabel(f"time of a step (equal weighting = 1)\n{short(results.machine(device), 48)}")
    handles = [Patch(color=INK, alpha=alpha, linewidth=0, label=PART_NAMES[part]) for part, alpha in PARTS.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, handlelength=1.2, handleheight=0.9)
    where = " and ".join(results.machine(device) for device in devices)
    return figure, (
        f"Time of a training step on {where}{_surroundings(results)}. Each step of a method was timed next to a "
        "step of equal weighting. The length of a bar is the median of the ratio of the two times; the text beside it "
        "adds the 95 % interval. The shades divide a bar in proportion to the median times of its parts. The table "
        "below has the times in milliseconds."
    )


def _surroundings(results: Results) -> str:
    """Return what else the computer did when the timing began; empty if that is not known."""
    busy = step_ratios.busy_cores(results)
    if np.isnan(busy):
        return ""
    return f", while other programs used {busy:.1f} cores" if busy > 0 else ", which was quiet otherwise"


def _bars(panel: Axes, rows: pd.DataFrame, results: Results) -> None:
    looks = styles(results.balancers)
    labels = results.balancers_in(rows)
    panel.axvline(1, color=FAINT, linewidth=0.8)
    for place, label in enumerate(labels):
        parts = rows[rows["balancer"] == label].set_index("part")
        ratio, low, high = parts.loc[["step"], list(RATIO)].astype(float).to_numpy()[0]
        medians = parts["median_ms"].reindex(list(PARTS)).astype(float)
        ends = ratio * np.cumsum(medians) / medians.sum()
        for end, width, alpha in zip(ends, np.diff(ends, prepend=0), PARTS.values(), strict=True):
            colour = looks[label].colour
            bar = panel.barh(place, width, left=end - width, height=0.62, color=colour, alpha=alpha, linewidth=0)
            mark(bar.patches, label, results.balancers)
        text = step_ratio(ratio, low, high)
        panel.annotate(text, (max(ratio, 1), place), xytext=(4, 0), textcoords="offset points", va="center")
    category_axis(panel, labels)
    panel.set_xlim(0, float(rows.loc[rows["part"] == "step", "ratio_to_equal"].max()) * 1.5)  # room for the ratios
    panel.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))


def draw_ratios(panel: Axes, results: Results, problems: Sequence[str]) -> None:
    """Draw the leaderboard's step ratios as bars, grouped by problem.

    Problems that would bring the number of bars above `MOST_BARS` are left out; the first problem is always drawn.
    """
    looks = styles(results.balancers)
    names: list[str] = []
    place = 0.0
    ticks: list[float] = []
    for problem in problems[: max(1, MOST_BARS // len(results.balancers))]:
        rows = results.board[results.board["problem"] == problem]
        ratios = rows.set_index("balancer")["step_ratio"].astype(float)
        heading = panel.text(1, place, short(problem, 24), fontweight="bold", ha="right", va="center")
        heading.set_transform(panel.get_yaxis_transform())
        heading.set_in_layout(False)  # a long heading must not make the panel smaller
        for label in results.balancers_in(rows):
            place += 1
            timed = bool(np.isfinite(ratios[label]))
            ratio = 1.0 if timed and label == results.baseline else float(ratios[label])
            if timed:
                panel.barh(place, ratio, height=0.7, color=looks[label].colour, linewidth=0)
                end = (max(ratio, 1), place)
                panel.annotate(f"{ratio:.2f}×", end, xytext=(4, 0), textcoords="offset points", va="center")
            names.append(short(label, 16))
            ticks.append(place)
        panel.vlines(1, place - len(ratios) + 0.5, place + 0.5, color=FAINT, linewidth=0.8)
        place += 1.4
    panel.set_yticks(ticks, names)
    panel.set_ylim(place - 0.6, -0.7)
    panel.tick_params(axis="y", length=0)
    panel.grid(False, axis="y")
    panel.spines["left"].set_visible(False)
    panel.set_xlim(0, float(results.board["step_ratio"].max()) * 1.3)
    panel.set_title("Time of a step")
    panel.set_xlabel(f"equal weighting = 1\n{short(results.machine(results.timed_on or ''), 32)}")


def micro_benchmark(results: Results) -> tuple[Figure, str] | None:
    """Draw the times of GradNorm's own work and of a whole step over the number of tasks, one panel per device.

    Returns:
        The figure and its caption; None if the micro-benchmark was not run.
    """
    micro = results.tables["micro"]
    if micro.empty:
        return None
    devices = [device for device in ("cpu", "cuda") if f"{device}_ms" in micro and micro[f"{device}_ms"].notna().any()]
    figure, axes = panels(len(devices), height=2.6)
    named = []
    for panel, device in zip(axes, devices, strict=True):
        ends = []
        for what, rows in micro.groupby("what", sort=False):
            line = rows.sort_values("num_tasks")
            panel.plot(line["num_tasks"], line[f"{device}_ms"], "o-", color=INK, markersize=5, clip_on=False)
            ends.append((float(line[f"{device}_ms"].iloc[-1]), str(what), INK))
        panel.set_ylim(bottom=0)
        log_axis(panel, "x")
        panel.set_xticks(sorted(micro["num_tasks"].unique()))
        panel.set_xlim(right=micro["num_tasks"].max())
        panel.minorticks_off()
        panel.set(title=short(results.machine(device), 40), xlabel="number of tasks", ylabel="milliseconds")
        named.append((panel, ends))
    label_ends(figure, named)
    return figure, (
        "Micro-benchmark of GradNorm: the time of its gradient-norm step alone, and of the whole training step, over "
        "the number of tasks (logarithmic axis)."
    )
