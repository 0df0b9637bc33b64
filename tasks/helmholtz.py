"""The problem ``helmholtz``: a network learns to solve the Helmholtz equation on a square.

The equation is ``u_xx + u_yy + k^2 u = q`` for x and y in [-1, 1], with ``u = 0`` on the boundary and k = 1. The
right-hand side q is chosen so that ``u = sin(pi x) sin(4 pi y)``. It is 167 times as large as u. Under equal weights
the gradients of the residual are therefore so much larger than those of the boundary condition that the latter hardly
count. Source: Wang, Teng and Perdikaris, "Understanding and Mitigating Gradient Flow Pathologies in Physics-Informed
Neural Networks", SIAM Journal on Scientific Computing 43(5), 2021, section 2; used again by Bischof and Kraus,
"Multi-Objective Loss Balancing for Physics-Informed Deep Learning", 2021.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn

from .physics import EDGES, Box, Domain, Field, PhysicsProblem, TanhNetwork, edge, inside, known
from .problem import Recipe, evaluating
from .problem_registry import register

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FREQUENCIES = (1, 4)
"""Frequencies of the solution in x and in y, in multiples of pi."""
K = 1
"""Wave number k."""


@register
class Helmholtz(PhysicsProblem):
    """A physics-informed network for the Helmholtz equation, with two tasks of very different scale.

    Data: random points ``(x, y)`` without labels, 10,000 inside the square for the residual and 1,000 on its sides for
    the boundary condition. A batch holds ``batch_size x 2`` points per task.

    Tasks: "residual", the mean square of the equation's residual inside the square; "boundary", the mean square of u on
    its sides.

    Model: a tanh network from ``(x, y)`` to u. Tasks share all parameters but have points of their own, so there is no
    fork.

    Metric: the relative L2 error to the exact solution on a grid of 100 by 100 points.

    Source: Wang, Teng and Perdikaris, SIAM Journal on Scientific Computing 43(5), 2021, section 2.

    ``static_weights`` were set by hand: the boundary weighs 300 times as much as the residual. Of 100 and 300, this was
    the better on the validation grid.

    Example::

        problem = tasks.create("helmholtz")
        data = problem.data(torch.Generator().manual_seed(1), "cpu")
        batch = next(problem.batches(data, torch.Generator().manual_seed(2), batch_size=64))
        residual, boundary = problem.residuals(problem.model(), batch)  # the losses are their mean squares
    """

    name = "helmholtz"
    summary = "A physics-informed network for the Helmholtz equation on a square: residual and boundary condition."
    tasks = ("residual", "boundary")
    recipe = Recipe("adam", lr=1e-2, schedule="cosine", batch_size=256, steps=1_500)
    full = replace(recipe, steps=15_000)
    static_weights = {"by-hand": (2 / 301, 600 / 301)}
    box: Box = ((-1.0, 1.0), (-1.0, 1.0))

    def pools(self, generator: Generator) -> dict[str, Tensor]:
        """Draw a Latin hypercube inside the square, and equally many uniform points on each side."""
        within = inside(self.box, generator)
        sides = [edge(self.box, axis, side, EDGES // 4, generator) for axis in (0, 1) for side in self.box[axis]]
        return {"residual": within, "boundary": torch.cat(sides)}

    @staticmethod
    def solution(points: Tensor) -> Tensor:
        """Return ``sin(pi x) sin(4 pi y)``."""
        x, y = points.T
        return torch.sin(FREQUENCIES[0] * math.pi * x) * torch.sin(FREQUENCIES[1] * math.pi * y)

    def model(self) -> TanhNetwork:
        return TanhNetwork(32, 3, self.box, scale=(2.0, 4.0))

    def residuals(self, model: nn.Module, batch: Mapping[str, Tensor]) -> list[Tensor]:
        return [residual(known(model), batch["residual"]), model(batch["boundary"])]

    def draw(self, figure: "Figure", data: Domain, model: nn.Module | None = None) -> str:
        """Draw the solution beside the training points, or beside the trained ``model``'s solution and its error."""
        grid = data.test
        if model is None:
            first, second = figure.subplots(1, 2, sharex=True, sharey=True)
            self.draw_points(second, data)
            panels = [first, second]
        else:
            panels = list(figure.subplots(1, 3, sharex=True, sharey=True))
            with evaluating(model):
                values = model(grid.points)
            self.draw_image(panels[1], values, "the network's u", limit=1)
            self.draw_image(panels[2], (values - grid.solution).abs(), "absolute error")
        self.draw_image(panels[0], grid.solution, "the solution u", limit=1)
        for axes in panels:
            axes.set_xlabel("x")
        panels[0].set_ylabel("y")
        if model is None:
            return "The solution of the Helmholtz equation, and the training points at which both losses are computed."
        error = self.evaluate(model, data, "test")[self.primary]
        return (
            f"The Helmholtz equation: the exact solution, the network's solution and the absolute error. Relative L2 "
            f"error {error:.3f}."
        )


def source(points: Tensor) -> Tensor:
    """Return the right-hand side q, shape ``(N,)``, at ``points``, shape ``(N, 2)``."""
    x, y = points.T
    a, b = (frequency * math.pi for frequency in FREQUENCIES)
    return (K**2 - a**2 - b**2) * torch.sin(a * x) * torch.sin(b * y)


def residual(model: Field, points: Tensor) -> Tensor:
    """Return ``u_xx + u_yy + k^2 u - q`` of ``model``, shape ``(N,)``, at ``points``, shape ``(N, 2)``."""
    u = model.jet(points, along=(0, 1))
    return u.second + K**2 * u.values - source(points)
