"""Draw the figures of scores: final test scores, and the validation scores that chose the learning rates."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.analysis import primary_rows
from bench.style.figure_style import FAINT, category_axis, label_ends, log_axis, mark, panels, spans_decades, styles
from bench.style.numbers import rate
from bench.style.short_label import short

from .results_folder import Results


def final_scores(results: Results) -> tuple[Figure, str] | None:
    """Draw each problem's test scores with intervals and seeds, and beside them the comparison with equal weighting.

    Returns:
        The figure and its caption; None if there is no finite score.
    """
    board, scores = results.board, results.reported("scores")
    last = scores[(scores["checkpoint"] == "last") & (scores["split"] == "test")]
    last = primary_rows(last[np.isfinite(last["value"].astype(float))], results.tables["problems"])
    if last.empty:
        return None
    problems = results.problems_in(last)
    sides = 2 if results.baseline else 1
    figure, axes = panels(sides * len(problems), columns=sides, height=0.95 + 0.34 * len(results.balancers))
    for number, problem in enumerate(problems):
        rows = board[board["problem"] == problem]
        rows = rows.set_index("balancer").loc[results.balancers_in(rows)]
        _absolute(axes[sides * number], results, rows, last[last["problem"] == problem])
        axes[sides * number].set_title(short(problem, 48))
        if results.baseline:
            _relative(axes[sides * number + 1], results, rows)
            axes[sides * number + 1].set_yticklabels([])
    beside = f" Right: the scores compared with {short(results.baseline)}, paired by seed." if results.baseline else ""
    return figure, (
        "Final scores on the test split, at the last checkpoint. Small dots: single seeds; a cross is a failed run "
        "with its imputed score. Large mark and line: mean and 95 % interval over seeds (geometric mean where the "
        f"axis is logarithmic).{beside}"
    )


def _absolute(panel: Axes, results: Results, rows: pd.DataFrame, last: pd.DataFrame) -> None:
    facts = results.facts(last["problem"].iloc[0])
    looks = styles(results.balancers)
    for place, label in enumerate(rows.index):
        colour, row, seeds = looks[label].colour, rows.loc[label], last[last["balancer"] == label]
        imputed = seeds["imputed"].astype(bool)
        for marker, kept in ((".", ~imputed), ("x", imputed)):
            beside = np.full(kept.sum(), place + 0.24)
            dots = panel.plot(seeds.loc[kept, "value"], beside, marker, color=colour, markersize=5, alpha=0.75)
            mark(dots, label, results.balancers)
        interval = panel.plot([row["score_low"], row["score_high"]], [place, place], color=colour, linewidth=1.8)
        mean = panel.plot(row["score"], place, looks[label].marker, color=colour, markersize=6.5)
        mark([*interval, *mean], label, results.balancers)
    category_axis(panel, list(rows.index))
    if (rows["scale"] == "ratio").all():
        log_axis(panel, "x")
    panel.set_xlabel(f"test {facts.score}, {facts.direction}")


def _relative(panel: Axes, results: Results, rows: pd.DataFrame) -> None:
    looks = styles(results.balancers)
    ratio = (rows["scale"] == "ratio").all()
    panel.axvline(1 if ratio else 0, color=FAINT, linewidth=1)
    for place, label in enumerate(rows.index):
        colour, row = looks[label].colour, rows.loc[label]
        interval = panel.plot([row["relative_low"], row["relative_high"]], [place, place], color=colour, linewidth=1.8)
        mean = panel.plot(row["relative"], place, looks[label].marker, color=colour, markersize=6.5)
        mark([*interval, *mean], label, results.balancers)
    category_axis(panel, list(rows.index))
    if ratio:
        log_axis(panel, "x")
    what = "score divided by that of" if ratio else "score minus that of"
    panel.set_xlabel(f"{what} {short(results.baseline or '')}")


def learning_rates(results: Results) -> tuple[Figure, str] | None:
    """Draw the mean validation score over the learning rate, one panel per problem, with the chosen rates marked.

    Returns:
        The figure and its caption; None if nothing was tuned.
    """
    selection = results.tables["selection"]
    selection = selection[np.isfinite(selection["mean_validation_score"].astype(float))]
    if selection.empty:
        return None
    looks = styles(results.balancers)
    searched = "trial" in selection  # trials differ in more than the rate, so no line joins them
    problems = results.problems_in(selection)
    figure, axes = panels(len(problems), height=2.6)
    named = []
    for panel, problem in zip(axes, problems, strict=True):
        rows = selection[selection["problem"] == problem]
        ends = []
        for label in results.balancers_in(rows):
            line, look = rows[rows["balancer"] == label].sort_values("lr"), looks[label]
            chosen = line[line["chosen"].astype(bool)]
            drawn = panel.plot(
                line["lr"],
                line["mean_validation_score"],
                color=look.colour,
                dashes=look.dashes,
                linewidth=0 if searched else 1.6,
            )
            for marked, marker, size in ((line, "o", 4), (chosen, look.marker, 9)):
                drawn += panel.plot(
                    marked["lr"],
                    marked["mean_validation_score"],
                    marker,
                    color=look.colour,
                    markersize=size,
                    markeredgecolor="white",
                    clip_on=False,
                    zorder=4,
                )
            mark(drawn, label, results.balancers)
            ends.append((float(line["mean_validation_score"].iloc[-1]), label, look.colour))
        facts = results.facts(problem)
        rates = sorted(rows["lr"].unique())
        log_axis(panel, "x")
        if not searched:
            panel.set_xticks(rates, [rate(lr) for lr in rates])
        panel.minorticks_off()
        if len(rates) > 1:
            panel.set_xlim(rates[0], rates[-1])
        if spans_decades(rows["mean_validation_score"], factor=5):
            log_axis(panel, "y")
        panel.set(title=short(problem, 48), xlabel="learning rate", ylabel=f"mean validation\n{facts.score}")
        named.append((panel, ends))
    label_ends(figure, named, balancers=results.balancers)
    return figure, (
        "How the learning rates were chosen: mean validation score of the last checkpoint over the tuning seeds. The "
        "large mark is the chosen rate."
    )
