"""Draw the pictures of the first pages from runs of the benchmark: `make pictures` writes them beside this file.

`weights.png` shows which weights three methods give ten tasks that differ in scale alone. `landscape.png` shows where
four methods go between two losses that pull apart. Both take a minute on two cores. `evidence.png` shows how each
method did on each problem of the evidence, from what is kept of its runs.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import joblib
import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor

import balancers
import tasks
from bench.catalogue.landscape_paths import path
from bench.evidence import evidence_folder, evidence_tables
from bench.report import results_folder
from bench.report.effect_picture import effect_picture
from bench.run import build
from bench.run.spec import Method, RunSpec
from bench.run.training import Training
from bench.style.figure_style import INK, End, label_ends, log_axis, step_axis, theme
from tasks.conflict_2d import landscape, pareto_front

FOLDER = Path(__file__).parent
WIDTH = 8.6
"""Width of the pictures in inches; they are shown as wide as a column of text."""
RESOLUTION = 200
"""Pixels per inch: twice what a screen of usual density shows."""
WEIGHTS = {"gradnorm": "GradNorm", "uncertainty": "Uncertainty weighting", "nash-mtl": "Nash-MTL"}
PATHS = {"equal": "Equal weights", "pcgrad": "PCGrad", "cagrad": "CAGrad", "nash-mtl": "Nash-MTL"}
STARTS = (1, 3, 5)
SEED = 1
EVIDENCE = FOLDER.parents[1] / "results" / "reference" / "core"


def weights_of_tasks(method: str, num_tasks: int) -> tuple[list[float], np.ndarray]:
    """Return the tasks' scales σ, and the weights over the steps of a run, scaled to a mean of 1."""
    options = {"sigmas": f"T={num_tasks}"}
    problem = tasks.create("regression", **options)
    wrt = build.default_wrt(balancers.get(method), problem.shared(problem.model()))
    made = Method(method, wrt, {})
    training = Training(RunSpec("regression", options, problem.recipe, made, SEED, "tuning", "cpu", 1))
    training.run()
    weights = np.stack(training.result.weights)
    return list(problem.sigmas), weights / weights.mean(1, keepdims=True)


def draw_weights(num_tasks: int = 10) -> Figure:
    """Draw the weights of each method over training, a panel for each and a line for each task."""
    made = joblib.Parallel(n_jobs=2)(joblib.delayed(weights_of_tasks)(method, num_tasks) for method in WEIGHTS)
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    axes = figure.subplots(1, len(WEIGHTS), sharey=True)
    ends = []
    for panel, title, (sigmas, weights) in zip(axes, WEIGHTS.values(), made, strict=True):
        shades = sns.color_palette("flare", as_cmap=True)(np.linspace(0.95, 0, num_tasks))
        lines: list[End] = []
        for place, task in enumerate(np.argsort(sigmas)):
            shade = to_hex(shades[place])
            smooth = _smooth(weights[:, task])
            panel.plot(smooth, color=shade, linewidth=1.3)
            lines.append((smooth[-1], f"σ = {sigmas[task]:g}", shade))
        panel.set_title(title)
        log_axis(panel, "y")
        step_axis(panel, len(weights))
        ends.append((panel, [line for i, line in enumerate(lines) if i in (0, num_tasks - 1)]))
    axes[0].set_ylabel("weight (mean 1)")
    label_ends(figure, ends)
    return figure


def _smooth(values: np.ndarray, over: int = 25) -> np.ndarray:
    """Return the running mean over ``over`` steps, which begins with the first value."""
    padded = np.concatenate([np.repeat(values[:1], over - 1), values])
    return np.convolve(padded, np.full(over, 1 / over), mode="valid")


def draw_landscape() -> Figure:
    """Draw the paths that methods take from three starts over the landscape of `conflict-2d`, a panel for each."""
    pairs = [(method, start) for method in PATHS for start in STARTS]
    made = joblib.Parallel(n_jobs=2)(joblib.delayed(path)(method, {"start": start}) for method, start in pairs)
    figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
    axes = figure.subplots(1, len(PATHS), sharex=True, sharey=True)
    for panel, (method, title) in zip(axes, PATHS.items(), strict=True):
        _draw_plane(panel)
        _draw_paths(panel, [points for (of, _), points in zip(pairs, made, strict=True) if of == method])
        panel.set_title(title)
    return figure


def _draw_plane(panel: Axes) -> None:
    """Draw the mean of the two losses as shades, and the Pareto front."""
    x, y = torch.meshgrid(torch.linspace(-10.5, 10.5, 300), torch.linspace(-10.5, 10.5, 300), indexing="xy")
    height = landscape(torch.stack([x, y], -1)).mean(-1)
    panel.contourf(x, y, height, levels=24, cmap=sns.light_palette("#5b7f95", reverse=True, as_cmap=True), alpha=0.9)
    panel.plot(*pareto_front(200).T.numpy(), color="#de8f05", linewidth=4, solid_capstyle="round")
    panel.set(xticks=[], yticks=[], aspect="equal")
    panel.grid(False)
    for spine in panel.spines.values():
        spine.set_visible(False)


def _draw_paths(panel: Axes, paths: Sequence[Tensor]) -> None:
    for points in paths:
        panel.plot(*points.T.numpy(), color=INK, linewidth=1.6)
        panel.plot(*points[0].numpy(), "o", color="white", markeredgecolor=INK, markersize=6)
        panel.plot(*points[-1].numpy(), "o", color=INK, markersize=6)


def draw_evidence() -> Figure:
    """Draw the score of each method on each problem of the evidence, as a table of colours and marks.

    Raises:
        FileNotFoundError: nothing is kept of the evidence.
    """
    made = evidence_tables.make_so_far(EVIDENCE)
    with TemporaryDirectory() as folder:
        evidence_folder.write(made, EVIDENCE, Path(folder))
        figure = effect_picture(results_folder.load(Path(folder)))
    assert figure is not None
    return figure


def save(figure: Figure, name: str) -> None:
    """Write a picture beside this file; equal pictures are equal files."""
    facts: dict[str, Any] = {"dpi": RESOLUTION, "facecolor": "white", "metadata": {"Software": None}}
    figure.savefig(FOLDER / f"{name}.png", **facts)


if __name__ == "__main__":
    with theme(8.5):
        save(draw_landscape(), "landscape")
        save(draw_weights(), "weights")
        save(draw_evidence(), "evidence")
