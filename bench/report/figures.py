"""Draw every figure of a results folder into ``results/<suite>/figures``, as SVG for the page and as PNG."""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from . import cost, curves, scores, weights
from .load import Results
from .look import save, theme
from .summary import summary


@dataclass(frozen=True)
class Picture:
    """A figure that was written: its file's stem, the section of the page it belongs to, and its caption."""

    name: str
    section: str
    caption: str


Drawn = tuple[Figure, str]  # a figure and its caption


def draw(results: Results) -> list[Picture]:
    """Write all figures that there is data for, and the summary; those of an earlier time are removed."""
    for old in (results.path / "figures").glob("*.[sp][vn]g"):
        old.unlink()
    whole: list[tuple[str, str, Callable[[Results], Drawn | None]]] = [
        ("scores", "leaderboard", scores.final_scores),
        ("curves", "curves", curves.learning_curves),
        ("cost", "cost", cost.step_cost),
        ("micro", "micro", cost.micro_benchmark),
        ("learning-rates", "learning-rates", scores.learning_rates),
        ("dynamics", "dynamics", curves.dynamics),
    ]
    pictures = []
    with theme():
        for name, section, figure_of in whole:
            drawn = figure_of(results)
            if drawn:
                pictures.append(_keep(results, name, section, drawn))
        for number, problem in enumerate(results.problems, start=1):
            drawn = weights.weight_trajectories(results, problem)
            if drawn:
                pictures.append(_keep(results, f"weights-{number}", "weights", drawn))
    with theme(size=12):
        overview = summary(results)
        if overview:
            save(overview, results.path / "figures", "summary", dpi=100)
    return pictures


def _keep(results: Results, name: str, section: str, drawn: Drawn) -> Picture:
    figure, caption = drawn
    save(figure, results.path / "figures", name)
    return Picture(name, section, caption)
