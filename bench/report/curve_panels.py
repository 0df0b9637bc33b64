"""Draw the figures over training steps: learning curves, the sum of the weights and the size of the trunk's updates."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.analysis import band, primary_rows
from bench.style.figure_style import End, label_ends, log_axis, mark, panels, spans_decades, step_axis, styles
from bench.style.short_label import short

from .results_folder import Results


def learning_curves(results: Results) -> tuple[Figure, str] | None:
    """Draw the primary validation score over steps, one panel per problem.

    Returns:
        The figure and its caption; None if there is no finite score.
    """
    rows = validation_scores(results)
    if rows.empty:
        return None
    problems = results.problems_in(rows)
    figure, axes = panels(len(problems))
    ends = [
        (panel, score_panel(panel, results, rows[rows["problem"] == problem]))
        for panel, problem in zip(axes, problems, strict=True)
    ]
    label_ends(figure, ends, balancers=results.balancers)
    return figure, (
        "Learning curves: the primary score on the validation split during training. Line: mean over the reported "
        "seeds (geometric mean where the axis is logarithmic). Band: from the lowest to the highest seed. A cross "
        "marks the last measurement of a failed run; after it, the line is the mean of the remaining seeds. Where "
        "lower is better, a panel ends at twice the initial score, and a curve that diverges further leaves it."
    )


def dynamics(results: Results) -> tuple[Figure, str] | None:
    """Draw the sum of the weights and the norm of the trunk's update over steps, one row of two panels per problem.

    Returns:
        The figure and its caption; None if neither was recorded.
    """
    rows = results.reported("dynamics")
    if rows.empty:
        return None
    problems = results.problems_in(rows)
    figure, axes = panels(2 * len(problems), height=2.6)
    ends = []
    for number, problem in enumerate(problems):
        of_problem = rows[rows["problem"] == problem]
        for panel, column, name in (
            (axes[2 * number], "weight_sum", "sum of the weights"),
            (axes[2 * number + 1], "trunk_update_norm", "norm of the trunk's update"),
        ):
            ends.append((panel, _lines(panel, of_problem, column, results)))
            panel.set(title=short(problem, 40), ylabel=name)
            if panel.get_yscale() == "linear":
                panel.set_ylim(bottom=0)
    label_ends(figure, ends, balancers=results.balancers)
    return figure, (
        "A method can win merely by changing the effective learning rate, so these panels show the size of its steps. "
        "Left: the sum of its weights, which under equal weighting is always the number of tasks. Right: the Euclidean "
        "norm of the change of the shared parameters in one step. Lines and bands are drawn as in the learning curves."
    )


def validation_scores(results: Results) -> pd.DataFrame:
    """Return the rows of the reported runs' curves that hold a finite value of the primary metric."""
    rows = results.reported("curves")
    return primary_rows(rows[np.isfinite(rows["value"].astype(float))], results.tables["problems"])


def score_panel(panel: Axes, results: Results, rows: pd.DataFrame) -> list[End]:
    """Draw one problem's primary score over steps, with a cross where a run failed, and return where the lines end."""
    facts = results.facts(rows["problem"].iloc[0])
    ends = _lines(panel, rows, "value", results)
    start = rows.loc[rows["step"] == rows["step"].min(), "value"].max()
    if not facts.higher_is_better and start > 0 and panel.get_ylim()[1] > 2 * start:
        panel.set_ylim(top=2 * start)
    looks, runs = styles(results.balancers), results.tables["runs"]
    failed = rows[rows["key"].isin(runs.loc[runs["status"] == "failed", "key"])]
    for _, run in failed.sort_values("step").groupby(["balancer", "key"]):
        end = run.iloc[-1]
        crosses = panel.plot(end["step"], end["value"], "x", color=looks[end["balancer"]].colour, zorder=5)
        mark(crosses, end["balancer"], results.balancers)
    panel.set(title=short(facts.problem, 28), ylabel=f"validation {facts.score}\n{facts.direction}")
    return ends


def _lines(panel: Axes, rows: pd.DataFrame, column: str, results: Results) -> list[End]:
    """Draw a line and a band for each balancer, and return where the lines end."""
    log = spans_decades(rows[column], factor=5)
    table = band(rows, ["balancer", "step"], column, log)
    looks, ends = styles(results.balancers), []
    for label in results.balancers_in(table):
        line, look = table[table["balancer"] == label].sort_values("step"), looks[label]
        shade = panel.fill_between(line["step"], line["low"], line["high"], color=look.colour, alpha=0.14, linewidth=0)
        lines = panel.plot(line["step"], line["centre"], color=look.colour, dashes=look.dashes, linewidth=1.6)
        mark([shade, *lines], label, results.balancers)
        ends.append((float(line["centre"].iloc[-1]), label, look.colour))
    step_axis(panel, max(rows["step"].max(), 1))
    if log:
        log_axis(panel, "y")
    return ends
