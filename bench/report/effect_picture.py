"""Draw the picture of the evidence: methods by problems, coloured by effect, marked by verdict, hatched by gates."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.style.figure_style import DIVERGING, INK, mark
from bench.style.short_label import short

from .evidence_answer import equal_and_constant
from .results_folder import Results

COLUMNS = ["panel", "problem", "balancer", "effect", "mark", "failed"]
TITLES = {"A": "A: short memory", "B": "B: as published"}
LIMIT = float(np.log(1.5))
"""Size of the effect, as the logarithm of a ratio, from which on the colour does not change."""
TICKS = (0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5)
ON_COLOUR = "#1a1a1a"
"""Colour of the marks and the hatching. It stays in the page's dark scheme, in which the cells keep their colours."""
HATCH, HATCHING = "/////", "#55555599"
"""Hatching of methods that fail a gate, and its colour."""
MARKS: Mapping[str, tuple[str, float]] = {
    "claimed": ("*", 8.0),
    "better": ("+", 6.0),
    "worse": ("_", 6.0),
    "tie": (".", 3.5),
    "not settled": ("o", 3.5),
}
"""The marker of each verdict and its size in points."""
GAP = 0.5
"""Space between groups of rows and of columns, in cells."""
CELL, ROW = 0.33, 0.235
"""Width and height of a cell in inches."""
NARROWEST = 6.6
"""Least width of the picture in inches, which its legend and its scale need."""


def cells(results: Results) -> pd.DataFrame:
    """Return what the picture shows: a frame of ``COLUMNS``, one row per cell.

    ``panel`` is "A" or "B"; the reserved problems are in A. ``effect`` is negative where the method is better than
    equal weighting. ``mark`` is "claimed", or the verdict of the comparison with equal weighting. ``failed`` is true of
    a method that fails a gate in A, in both panels.
    """
    compared, claims = results.tables["comparisons"], results.tables["claims"]
    claimed = claims[claims["claimed"].astype(bool)]
    named = set(zip(claimed["problem"], claimed["balancer"], strict=True))
    table = compared.assign(panel=compared["table"].where(compared["table"] == "B", "A"))
    pairs = zip(table["panel"], table["problem"], table["balancer"], table["verdict"], strict=True)
    marks = ["claimed" if panel == "A" and (p, m) in named else verdict for panel, p, m, verdict in pairs]
    return table.assign(mark=marks, failed=table["balancer"].isin(results.failed_gates))[COLUMNS]


def caption(results: Results) -> str:
    """Return the caption of the picture, which is also its text for those who don't see it."""
    shown = cells(results)
    facts = results.tables["problems"]
    controls = facts.loc[facts["control"].astype(bool), "problem"]
    of_methods = shown[shown["balancer"].isin(_of_kind(results, "method")) & ~shown["problem"].isin(controls)]
    counts = of_methods[(of_methods["panel"] == "A") & ~of_methods["failed"]]["mark"].value_counts()
    told = ", ".join(
        f"{counts[verdict]} {verdict}{_of_role(results, verdict)}" for verdict in MARKS if verdict in counts
    )
    failed = [short(label, 40) for label in results.balancers if label in results.failed_gates]
    hatched = f" Hatched and not counted, because they fail a gate: {', '.join(failed)}." if failed else ""
    only = facts[facts["only_static"].astype(bool)]
    static = "".join(f" {row['problem']}: {equal_and_constant(row)}" for _, row in only.iterrows())
    return (
        "Test scores of each method over those of equal weighting on each problem, with the seeds of both sets: blue "
        f"is better, orange is worse. Verdicts on methods with the short memory: {told}.{hatched}{static} Below the "
        "methods: static weights, yardsticks and controls. Control problems, which are not counted, and reserved ones "
        "are named below their columns."
    )


def _of_role(results: Results, verdict: str) -> str:
    """Return how many of the claims on methods are exploratory, in brackets; empty for other verdicts or if none is."""
    claims = results.tables["claims"]
    count = int((claims["claimed"].astype(bool) & (claims["role"] == "exploratory")).sum())
    return f" ({count} of them exploratory)" if verdict == "claimed" and count else ""


def effect_picture(results: Results) -> Figure | None:
    """Draw the picture; return None if there are no comparisons."""
    shown = cells(results)
    if shown.empty:
        return None
    groups = [[label for label in _of_kind(results, kind) if label in set(shown["balancer"])] for kind in KINDS]
    rows = _places(groups)
    panels = {panel: _groups(results, part) for panel, part in shown.groupby("panel", sort=True)}
    widths = [max(_places(list(problems.values())).values()) + 1 for problems in panels.values()]
    height = max(rows.values()) + 1
    width = max(NARROWEST, 2.6 + CELL * (sum(widths) + 0.6))
    figure = Figure(figsize=(width, 2.2 + ROW * height), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, width_ratios=widths, squeeze=False)[0]
    for axis, (panel, problems) in zip(axes, panels.items(), strict=True):
        _draw(axis, results, shown[shown["panel"] == panel], rows, _places(list(problems.values())))
        _name_groups(axis, problems)
        axis.set_title(TITLES[str(panel)], pad=8)
    _legend(figure, list(axes), bool(shown["failed"].any()))
    return figure


KINDS = ("method", "static", "yardstick", "control")


def _of_kind(results: Results, kind: str) -> list[str]:
    rows = results.tables["rows"]
    return list(rows.loc[rows["kind"] == kind, "balancer"])


def _places(groups: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the places of labels along an axis, with a gap between groups."""
    filled = [group for group in groups if group]
    starts = np.cumsum([0.0, *(len(group) + GAP for group in filled)])
    return {label: start + i for group, start in zip(filled, starts, strict=False) for i, label in enumerate(group)}


def _groups(results: Results, shown: pd.DataFrame) -> dict[str, list[str]]:
    """Return a panel's problems by the names of groups; the problems of the evidence stand under no name."""
    facts = results.tables["problems"].set_index("problem")
    groups: dict[str, list[str]] = {"": [], "reserved": [], "controls": []}
    for problem in results.problems_in(shown):
        control, reserved = facts.loc[problem, ["control", "reserved"]].astype(bool)
        groups["controls" if control else "reserved" if reserved else ""].append(problem)
    return groups


def _name_groups(axis: Axes, problems: Mapping[str, Sequence[str]]) -> None:
    """Write the names of groups of problems below their columns."""
    places = _places(list(problems.values()))
    bottom = max(axis.get_ylim())
    for name, members in problems.items():
        if members:
            middle = (places[members[0]] + places[members[-1]]) / 2
            axis.text(middle, bottom + 0.15, name, ha="center", va="top")


def _draw(
    axis: Axes, results: Results, shown: pd.DataFrame, rows: Mapping[str, float], columns: Mapping[str, float]
) -> None:
    normalised = Normalize(-LIMIT, LIMIT, clip=True)
    for label, of_label in shown.groupby("balancer", sort=False):
        y = rows[str(label)]
        squares = [Rectangle((columns[problem] - 0.5, y - 0.5), 1, 1) for problem in of_label["problem"]]
        colours = DIVERGING(normalised(of_label["effect"].astype(float).fillna(0.0).to_numpy()))
        drawn = [PatchCollection(squares, facecolors=colours, edgecolors="white", linewidths=0.8)]
        if of_label["failed"].any():
            drawn.append(PatchCollection(squares, facecolors="none", edgecolors=HATCHING, linewidths=0, hatch=HATCH))
        for each in drawn:
            axis.add_collection(each)
        mark(drawn, str(label), results.balancers)
        for verdict, of_verdict in of_label.groupby("mark", sort=False):
            if verdict in MARKS:
                marks = _marks(str(verdict), [columns[problem] for problem in of_verdict["problem"]], y)
                mark(axis.add_line(marks), str(label), results.balancers)
    axis.set_xlim(-0.5, max(columns.values()) + 0.5)
    axis.set_ylim(max(rows.values()) + 0.5, -0.5)
    axis.set_xticks(list(columns.values()), [short(p, 22) for p in columns], rotation=50, ha="left")
    axis.set_yticks(list(rows.values()), [short(label, 36) for label in rows])
    axis.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axis.tick_params(axis="x", pad=1)
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _marks(verdict: str, places: Sequence[float], y: float, colour: str = ON_COLOUR) -> Line2D:
    """Return the marks of a verdict in the row at ``y``."""
    marker, size = MARKS[verdict]
    marks = Line2D(places, [y] * len(places), linestyle="none", color=colour, marker=marker, label=verdict)
    marks.set_markersize(size * mpl.rcParams["font.size"] / 9)
    marks.set_markeredgewidth({"*": 0.0, ".": 0.0, "o": 0.7}.get(marker, 1.3))
    marks.set_markerfacecolor("none" if marker == "o" else colour)
    return marks


def _legend(figure: Figure, axes: Sequence[Axes], hatched: bool) -> None:
    """Explain marks, hatching and colours below the panels."""
    handles: list[Line2D | Patch] = [_marks(verdict, [], 0.0, INK) for verdict in MARKS]
    if hatched:
        handles.append(Patch(facecolor="#eeeeee", edgecolor="#555555", hatch=HATCH, linewidth=0, label="fails a gate"))
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), handletextpad=0.3, columnspacing=1.1)
    scale = figure.colorbar(
        ScalarMappable(Normalize(-LIMIT, LIMIT), DIVERGING), ax=list(axes), orientation="horizontal",
        aspect=50, shrink=0.6, pad=0.015, extend="both",
    )  # fmt: skip
    scale.ax.xaxis.set_major_locator(FixedLocator([float(np.log(tick)) for tick in TICKS]))
    scale.ax.xaxis.set_minor_locator(NullLocator())
    scale.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{np.exp(value):.3g}×"))
    scale.ax.tick_params(length=2)
    scale.set_label("score over that of equal weighting")
    for spine in scale.ax.spines.values():
        spine.set_visible(False)
