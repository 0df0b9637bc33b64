"""Draw every figure of a results folder into ``results/<suite>/figures``, as SVG for the page and as PNG."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from matplotlib.figure import Figure

from bench.style.figure_style import save, theme

from . import cost_panels, curve_panels, front_report, score_panels, weight_panels
from .results_folder import Results
from .summary_figure import summary


@dataclass(frozen=True)
class ReportFigure:
    """A figure that was written.

    Attributes:
        name: stem of its two files.
        kind: a key of `OF_PROBLEM`, or "micro".
        problem: the label of its problem; None for the micro-benchmark.
    """

    name: str
    kind: str
    caption: str
    problem: str | None


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

    A summary that can't be drawn again stays: a folder that was kept without its curves would lose it for good.
    """
    for old in (results.path / "figures").glob("*.[sp][vn]g"):
        if old.stem != "summary":
            old.unlink()
    pictures = []
    with theme():
        for number, problem in enumerate(results.problems, start=1):
            for kind, figure_of in OF_PROBLEM.items():
                if drawn := figure_of(results.only(problem)):
                    pictures.append(_keep(results, f"{kind}-{number}", kind, drawn, problem))
        if drawn := cost_panels.micro_benchmark(results):
            pictures.append(_keep(results, "micro", "micro", drawn, None))
    with theme(size=12):
        overview = summary(results)
        if overview:
            save(overview, results.path / "figures", "summary", dpi=100)
    return pictures


def _keep(results: Results, name: str, kind: str, drawn: Drawn, problem: str | None) -> ReportFigure:
    figure, caption = drawn
    save(figure, results.path / "figures", name)
    return ReportFigure(name, kind, caption, problem)
