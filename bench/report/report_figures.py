"""Draw every figure of a results folder into ``results/<suite>/figures``, as SVG for the page and as PNG."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from matplotlib.figure import Figure

from bench.style.figure_style import save, theme

from . import cost_panels, curve_panels, effect_picture, front_report, score_panels, weight_panels
from .results_folder import Results
from .summary_figure import summary


@dataclass(frozen=True)
class ReportFigure:
    """A figure that was written.

    Attributes:
        name: stem of its two files.
        kind: a key of `OF_PROBLEM`, "micro" or "effects".
        problem: the label of its problem; None for the micro-benchmark and for the effects on all problems.
    """

    name: str
    kind: str
    caption: str
    problem: str | None


SUMMARY_WIDTH = 1200
"""Width of the summary in pixels."""
Drawn = tuple[Figure, str]
"""A figure and its caption."""

OF_PROBLEM: Mapping[str, Callable[[Results], Drawn | None]] = {
    "scores": score_panels.final_scores,
    "front": front_report.static_front,
    "curves": curve_panels.learning_curves,
    "weights": weight_panels.weight_trajectories,
    "cost": cost_panels.step_cost,
    "learning-rates": score_panels.learning_rates,
    "dynamics": curve_panels.dynamics,
}


def draw(results: Results) -> list[ReportFigure]:
    """Write every figure that has data, and the summary figure; remove the figures of an earlier report.

    For the evidence, the effects on all problems are the summary and the only figure.

    A summary that can't be drawn again stays: a folder that was kept without its curves would lose it for good. So do
    pictures of other names, which someone else has put there.
    """
    for old in (results.path / "figures").glob("*.[sp][vn]g"):
        kind, _, place = old.stem.rpartition("-")
        if old.stem == "micro" or (kind in OF_PROBLEM and place.isdecimal()):
            old.unlink()
    pictures = []
    with theme():
        if results.has_claims:  # figures of its many rows for each problem would make the page too large
            effects = effect_picture.effect_picture(results)
            if effects is None:
                return []
            dpi = SUMMARY_WIDTH / effects.get_figwidth()
            return [_keep(results, "summary", "effects", (effects, effect_picture.caption(results)), None, dpi)]
        for number, problem in enumerate(results.problems, start=1):
            for kind, figure_of in OF_PROBLEM.items():
                if drawn := figure_of(results.only(problem)):
                    pictures.append(_keep(results, f"{kind}-{number}", kind, drawn, problem))
        if drawn := cost_panels.micro_benchmark(results):
            pictures.append(_keep(results, "micro", "micro", drawn, None))
    with theme(size=12):
        overview = summary(results)
        if overview:
            save(overview, results.path / "figures", "summary", dpi=SUMMARY_WIDTH / overview.get_figwidth())
    return pictures


def _keep(results: Results, name: str, kind: str, drawn: Drawn, problem: str | None, dpi: float = 150) -> ReportFigure:
    figure, caption = drawn
    save(figure, results.path / "figures", name, dpi)
    return ReportFigure(name, kind, caption, problem)
