"""Compute and draw the paths that methods take over the landscape of `conflict-2d`, from each of its starts."""

from collections.abc import Mapping
from typing import Any

import joblib
import torch
from torch import Tensor

import balancers
import tasks
from bench.run import build, result_picture
from bench.run.result_picture import Picture
from bench.run.spec import Method, RunSpec
from bench.run.training import Training, reproducible
from tasks.conflict_2d import STARTS, draw_trajectories

METHODS = ("equal", "random", "mgda", "pcgrad", "imtl-g", "cagrad", "nash-mtl", "upgrad")
"""Methods that are drawn; each of them accepts negative losses."""
EVERY = 5
"""Number of steps between two points of a path."""


def picture(options: Mapping[str, Any]) -> Picture:
    """Draw the paths, one panel per method; ``options`` are the problem's, without ``start``."""
    pairs = [(method, start) for method in METHODS for start in range(1, len(STARTS) + 1)]
    made = joblib.Parallel(n_jobs=joblib.cpu_count())(
        joblib.delayed(path)(method, {**options, "start": start}) for method, start in pairs
    )
    paths: dict[str, list[Tensor]] = {method: [] for method in METHODS}
    for (method, _), points in zip(pairs, made, strict=True):
        paths[method].append(points)

    return result_picture.render(lambda figure: draw_trajectories(figure, paths))


def path(method: str, options: Mapping[str, Any]) -> Tensor:
    """Return the path of ``theta`` under the default recipe, a point every `EVERY` steps, shape ``(points, 2)``."""
    problem = tasks.create("conflict-2d", **options)
    wrt = build.default_wrt(balancers.get(method), problem.shared(problem.model()))
    training = Training(RunSpec("conflict-2d", options, problem.recipe, Method(method, wrt, {}), 1, "tuning", "cpu", 1))
    with reproducible("cpu"):
        training.prepare()
        make_step = training.stepper()
        (theta,) = training.model.parameters()
        points: list[Tensor] = []
        for step in range(problem.recipe.steps):
            if step % EVERY == 0:
                points.append(theta.detach().clone())
            make_step(None)
    return torch.stack([*points, theta.detach()])
