"""Redraw the paper's figures from what was measured here: functions from a table to a figure."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from bench.analysis import band
from bench.run.training import RunResult
from bench.style.figure_style import FAINT, INK, End, category_axis, label_ends, log_axis, panels, step_axis, styles

from .claim import SETTINGS

METHODS = ("equal", "static 1/σ²", "uncertainty", "gradnorm", "gradnorm static")
"""Methods in the figures; the order decides their colours."""
LOOKS = styles(METHODS)
SHADE, LINE = 0.14, 1.6
"""Opacity of bands, and width of lines."""
HIGHEST = 1.6
"""Scores above this multiple of the initial score are cut off."""


def curves(found: Mapping[str, Sequence[RunResult]], primary: str) -> pd.DataFrame:
    """Return each evaluation's ``method``, ``seed``, ``step``, validation ``score`` and ``weight_sum``."""
    rows = [
        {
            "method": method,
            "seed": place,
            "step": evaluation.step,
            "score": evaluation.metrics[primary],
            "weight_sum": result.weights[max(0, evaluation.step - 1)].sum() if len(result.weights) else np.nan,
        }
        for method, results in found.items()
        for place, result in enumerate(results)
        for evaluation in result.curves
    ]
    return pd.DataFrame(rows)


def learning(table: pd.DataFrame) -> Figure:
    """Draw the task-normalised loss over steps, with a row for each problem and a column for each setting."""
    figure, axes = panels(4, width=5.2, height=2.9)
    ends = []
    for panel, (problem, setting, rows) in zip(axes, _by_panel(table), strict=True):
        lines: list[End] = []
        for method in [label for label in METHODS if label in set(rows["method"])]:
            look = LOOKS[method]
            end = _line(panel, rows[rows["method"] == method], "score", look.colour, look.dashes)
            lines.append((end, method, look.colour))
        start = rows.loc[rows["step"] == 0, "score"].max()
        panel.set(title=f"{problem}, {setting}", ylabel="Σ L(t) / L(0)")
        panel.set_ylim(rows["score"].min() / 1.1, min(1.1 * rows["score"].max(), HIGHEST * start))
        log_axis(panel, "y")
        step_axis(panel, rows["step"].max())
        ends.append((panel, lines))
    label_ends(figure, ends)
    return figure


def weights(table: pd.DataFrame) -> Figure:
    """Draw GradNorm's weights over steps, coloured by sigma: rows are problems, columns are settings."""
    figure, axes = panels(4, width=5.0, height=2.9)
    ends = []
    for panel, (problem, setting, rows) in zip(axes, _by_panel(table), strict=True):
        sigmas = sorted(rows["sigma"].unique())
        shades = sns.color_palette("flare", as_cmap=True)(np.linspace(0.85, 0, len(sigmas)))
        lines: list[End] = []
        for sigma, shade in zip(sigmas, map(to_hex, shades), strict=True):
            lines.append((_line(panel, rows[rows["sigma"] == sigma], "weight", shade), f"σ = {sigma:g}", shade))
        panel.set(title=f"{problem}, {setting}", ylabel="weight")
        log_axis(panel, "y")
        step_axis(panel, rows["step"].max())
        ends.append((panel, lines))
    label_ends(figure, ends)
    return figure


def growth(table: pd.DataFrame) -> Figure:
    """Draw uncertainty weighting in long training: the sum of its weights and the loss, a line for each setting."""
    figure, axes = panels(4, width=4.9, height=2.8)
    problems = list(dict.fromkeys(table["problem"]))
    ends = []
    for row, problem in enumerate(problems):
        of_problem = table[(table["problem"] == problem) & (table["step"] > 0)]
        for panel, column, name in zip(
            axes[2 * row : 2 * row + 2], ("weight_sum", "score"), ("sum of the weights", "Σ L(t) / L(0)"), strict=True
        ):
            lines: list[End] = []
            for setting, colour in zip(SETTINGS, _settings_colours(), strict=True):
                of_setting = of_problem[of_problem["setting"] == setting]
                lines.append((_line(panel, of_setting, column, colour), setting, colour))
            panel.set(title=problem, ylabel=name)
            log_axis(panel, "y")
            step_axis(panel, of_problem["step"].max())
            ends.append((panel, lines))
    label_ends(figure, ends)
    return figure


def distances(table: pd.DataFrame) -> Figure:
    """Draw scores of static weights by their distance to GradNorm's average weights, a panel for each setting."""
    figure, axes = panels(2, width=5.2, height=3.7)
    for panel, setting in zip(axes, SETTINGS, strict=True):
        rows = table[table["setting"] == setting]
        random, named = rows[rows["random"]], rows[~rows["random"]].set_index("weights")
        scores, places = named["score"].to_dict(), named["distance"].to_dict()
        panel.axhline(scores["gradnorm"], color=LOOKS["gradnorm"].colour, linewidth=1, label="gradnorm")
        panel.plot(random["distance"], random["score"], ".", color=FAINT, markersize=6, label="random static weights")
        for label in ("gradnorm static", "equal"):
            look, place = LOOKS[label], (places[label], scores[label])
            [dot] = panel.plot(*place, look.marker, color=look.colour, markersize=8, zorder=5, label=label)
            dot.set_markeredgecolor("white")
        panel.set(title=setting, xlabel="distance to GradNorm's average weights", ylabel="test score, less is better")
        panel.set_xlim(left=-0.08)
        log_axis(panel, "y")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def alphas(table: pd.DataFrame) -> Figure:
    """Draw the ratio to equal weighting's score by alpha, with a panel for each problem and a line for each setting."""
    figure, axes = panels(2, width=5.2, height=3.2)
    problems = list(dict.fromkeys(table["problem"]))
    ends = []
    for panel, problem in zip(axes, problems, strict=True):
        lines: list[End] = []
        for place, (setting, colour) in enumerate(zip(SETTINGS, _settings_colours(), strict=True)):
            rows = table[(table["problem"] == problem) & (table["setting"] == setting)]
            shifted = rows["alpha"] + 0.03 * (2 * place - 1)
            panel.vlines(shifted, rows["low"], rows["high"], color=colour, linewidth=1.4)
            panel.plot(shifted, rows["mean"], "so"[place], color=colour, linewidth=1, markersize=5, linestyle="-")
            lines.append((float(rows["mean"].iloc[-1]), setting, colour))
        panel.axhline(1, color=INK, linewidth=0.9)
        panel.set(title=problem, xlabel="α", ylabel="test score: ratio to equal weights")
        log_axis(panel, "y")
        ends.append((panel, lines))
    label_ends(figure, ends)
    return figure


def overhead(table: pd.DataFrame) -> Figure:
    """Draw the time of a step as a ratio to equal weighting: rows are models, markers are methods."""
    models = list(dict.fromkeys(table["model"]))
    kinds = {
        "gradnorm layer": ("gradnorm", "our GradNorm"),
        "double backward": ("uncertainty", "double backward"),
    }
    figure, [panel] = panels(1, width=5.6, height=2.4)
    for row, model in enumerate(models):
        for place, (method, (like, _)) in enumerate(kinds.items()):
            one = table[(table["model"] == model) & (table["method"] == method)].iloc[0]
            height = row + 0.24 * (2 * place - 1) / 2
            look = LOOKS[like]
            panel.plot([one["ratio_low"], one["ratio_high"]], [height, height], color=look.colour, linewidth=1.8)
            panel.plot(one["ratio"], height, look.marker, color=look.colour, markersize=6)
    for like, name in kinds.values():
        panel.plot([], [], LOOKS[like].marker, color=LOOKS[like].colour, label=name)
    panel.axvline(1, color=INK, linewidth=0.9)
    panel.axvline(1.05, color=FAINT, linewidth=1, dashes=(4, 3))
    category_axis(panel, models)
    panel.set_xlabel("time of a step: ratio to equal weighting")
    figure.legend(loc="outside upper right", ncols=len(kinds))
    return figure


def _line(panel: Axes, rows: pd.DataFrame, column: str, colour: str, dashes: Sequence[float] = ()) -> float:
    """Draw the geometric mean over seeds and a band from lowest to highest; return the last mean."""
    line = band(rows, ["step"], column, log=True).sort_values("step")
    panel.fill_between(line["step"], line["low"], line["high"], color=colour, alpha=SHADE, linewidth=0)
    panel.plot(line["step"], line["centre"], color=colour, dashes=dashes, linewidth=LINE)
    return float(line["centre"].iloc[-1])


def _by_panel(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield problem, setting and rows of each of the four panels."""
    for problem in dict.fromkeys(table["problem"]):
        for setting in SETTINGS:
            yield problem, setting, table[(table["problem"] == problem) & (table["setting"] == setting)]


def _settings_colours() -> tuple[str, str]:
    return LOOKS["equal"].colour, LOOKS["static 1/σ²"].colour
