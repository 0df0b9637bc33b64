"""The Helmholtz equation on a square: a residual inside it and a boundary condition, of very different scale.

``u_xx + u_yy + k^2 u = q`` for x and y in [-1, 1], ``u = 0`` on the boundary, with k = 1 and q such that
``u = sin(pi x) sin(4 pi y)``. As q is 167 times as large as u, the residual's gradients drown the boundary's under
equal weights. Source: Wang, Teng and Perdikaris, "Understanding and Mitigating Gradient Flow Pathologies in
Physics-Informed Neural Networks", SIAM Journal on Scientific Computing 43(5), 2021, section 2; used again by Bischof
and Kraus, "Multi-Objective Loss Balancing for Physics-Informed Deep Learning", 2021.
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
K = 1


@register
class Helmholtz(PhysicsProblem):
    """The tasks: mean squares of the equation's residual inside the square, and of u on its boundary.

    ``static_weights`` are by hand: the boundary counts 300 times as much as the residual, the better of 100 and 300 on
    the validation grid.
    """

    name = "helmholtz"
    summary = "A physics-informed network for the Helmholtz equation on a square: residual and boundary condition."
    tasks = ("residual", "boundary")
    recipe = Recipe("adam", lr=1e-2, schedule="cosine", batch_size=256, steps=1_500)
    full = replace(recipe, steps=15_000)
    static_weights = {"by-hand": (2 / 301, 600 / 301)}
    box: Box = ((-1.0, 1.0), (-1.0, 1.0))

    def pools(self, generator: Generator) -> dict[str, Tensor]:
        """Inside, a Latin hypercube; on the boundary, as many points on every side."""
        within = inside(self.box, generator)
        sides = [edge(self.box, axis, side, EDGES // 4, generator) for axis in (0, 1) for side in self.box[axis]]
        return {"residual": within, "boundary": torch.cat(sides)}

    @staticmethod
    def solution(points: Tensor) -> Tensor:
        x, y = points.T
        return torch.sin(FREQUENCIES[0] * math.pi * x) * torch.sin(FREQUENCIES[1] * math.pi * y)

    def model(self) -> TanhNetwork:
        return TanhNetwork(32, 3, self.box, scale=(2.0, 4.0))

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Means of squares over the batch's points.

        Raises:
            TypeError: ``model`` is no `Field`.
        """
        of_residual = residual(known(model), batch["residual"])
        return [of_residual.square().mean(), model(batch["boundary"]).square().mean()]

    def draw(self, figure: "Figure", data: Domain, model: nn.Module | None = None) -> str:
        """The solution and the training points; of a ``model``, its solution and how far off that is."""
        grid = data.test
        if model is None:
            first, second = figure.subplots(1, 2, sharex=True, sharey=True)
            self.draw_points(second, data)
            panels = [first, second]
        else:
            panels = list(figure.subplots(1, 3, sharex=True, sharey=True))
            with evaluating(model):
                values = model(grid.points)
            self.draw_image(panels[1], values, "the network", limit=1)
            self.draw_image(panels[2], (values - grid.solution).abs(), "absolute error")
        self.draw_image(panels[0], grid.solution, "the solution u", limit=1)
        for axes in panels:
            axes.set_xlabel("x")
        panels[0].set_ylabel("y")
        if model is None:
            return "The solution of the Helmholtz equation, and where the two losses are computed, in training."
        error = self.evaluate(model, data, "test")[self.primary]
        return f"The Helmholtz equation: solution, the network's, and their difference. Relative L2 error {error:.3f}."


def source(points: Tensor) -> Tensor:
    """The right-hand side q at ``points``, ``(N, 2)``: ``(N,)``."""
    x, y = points.T
    a, b = (frequency * math.pi for frequency in FREQUENCIES)
    return (K**2 - a**2 - b**2) * torch.sin(a * x) * torch.sin(b * y)


def residual(model: Field, points: Tensor) -> Tensor:
    """``u_xx + u_yy + k^2 u - q`` of ``model`` at ``points``, ``(N, 2)``: ``(N,)``."""
    u = model.jet(points, along=(0, 1))
    return u.second + K**2 * u.values - source(points)
