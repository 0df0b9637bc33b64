"""The problem ``burgers``: a network learns to solve Burgers' equation, whose solution steepens into a shock.

The equation is ``u_t + u u_x = nu u_xx`` for t in [0, 1] and x in [-1, 1], with ``u = -sin(pi x)`` at t = 0, ``u = 0``
at x = -1 and x = 1, and nu = 0.01 / pi. Sources: Raissi, Perdikaris and Karniadakis, "Physics-informed neural
networks", Journal of Computational Physics 378, 2019; Basdevant et al., "Spectral and finite difference solutions of
the Burgers equation", Computers & Fluids 14(1), 1986.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Generator, Tensor, nn

from .physics import COLORS, EDGES, GRID, Box, Domain, Field, PhysicsProblem, TanhNetwork, edge, inside, known
from .problem import Recipe, evaluating
from .problem_registry import register

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NU = 0.01 / math.pi
"""Viscosity."""
NODES = 120
"""Number of nodes of the Gauss-Hermite quadrature."""
SLICES = (0.25, 0.5, 0.75)
"""Times at which pictures show the solution as a curve."""


@register
class Burgers(PhysicsProblem):
    """A physics-informed network for Burgers' equation.

    Data: random points ``(t, x)`` without labels, 10,000 inside the domain for the residual and 1,000 each for the
    initial and the boundary condition. A batch holds ``batch_size x 2`` points per task.

    Tasks: "residual", the mean square of the equation's residual inside the domain; "initial" and "boundary", the mean
    squared errors of u at t = 0 and at x = -1 and x = 1.

    Model: a tanh network from ``(t, x)`` to u. Tasks share all parameters but have points of their own, so there is no
    fork.

    Metric: the relative L2 error to the exact solution on a grid of 100 by 100 points. The shock at x = 0 is about
    0.006 wide, a third of the grid's spacing. Once a network has learnt the rest, nearly all of its error is that of
    the two columns beside the shock, so that its scores on the two grids may differ by tens of per cent.

    Sources: Raissi, Perdikaris and Karniadakis, Journal of Computational Physics 378, 2019; the exact solution:
    Basdevant et al., Computers & Fluids 14(1), 1986.

    ``static_weights`` were set by hand: the best of a few on the validation grid. With them, 50,000 steps of the full
    recipe, three and a half minutes on one core, reduced the error to 0.014.

    Example::

        problem = tasks.create("burgers")
        balancer = StaticWeighting(problem.static_weights["by-hand"], tasks=problem.tasks)
        u = problem.solution(torch.rand(100, 2))  # the exact solution at points (t, x), (100,)
    """

    name = "burgers"
    summary = "A physics-informed network for Burgers' equation: residual, initial and boundary condition."
    tasks = ("residual", "initial", "boundary")
    recipe = Recipe("adam", lr=1e-2, schedule="cosine", batch_size=128, steps=1_200)
    full = replace(recipe, lr=5e-3, batch_size=256, steps=13_000)
    static_weights = {"by-hand": (3 / 7, 9 / 7, 9 / 7)}
    box: Box = ((0.0, 1.0), (-1.0, 1.0))

    def pools(self, generator: Generator) -> dict[str, Tensor]:
        """Draw a Latin hypercube inside the domain, uniform points at t = 0, and equally many at x = -1 and x = 1."""
        within = inside(self.box, generator)
        start = edge(self.box, 0, 0.0, EDGES, generator)
        sides = [edge(self.box, 1, side, EDGES // 2, generator) for side in self.box[1]]
        return {"residual": within, "initial": start, "boundary": torch.cat(sides)}

    @staticmethod
    def solution(points: Tensor) -> Tensor:
        r"""Compute the solution with the Cole-Hopf transform and Gauss-Hermite quadrature.

        With :math:`y = x - 2 \sqrt{\nu t}\, z`, u is the mean of :math:`-\sin(\pi y)` over z, where z has a density
        proportional to :math:`\exp(-z^2 - \cos(\pi y) / (2 \pi \nu))`. The exponent reaches 50, so its maximum over z
        is subtracted before the exponential is taken (a softmax).

        Source: Basdevant et al. 1986, equation (2.5) and the text after it.
        """
        t, x = points.T[..., None]
        z, weights = map(torch.from_numpy, np.polynomial.hermite.hermgauss(NODES))
        y = x - 2 * (NU * t).sqrt() * z
        exponents = weights.log() - torch.cos(math.pi * y) / (2 * math.pi * NU)
        return -(exponents.softmax(1) * torch.sin(math.pi * y)).sum(1)

    def model(self) -> TanhNetwork:
        return TanhNetwork(32, 4, self.box, scale=(2.0, 2.0))

    def residuals(self, model: nn.Module, batch: Mapping[str, Tensor]) -> list[Tensor]:
        of_residual = residual(known(model), batch["residual"])
        start, sides = batch["initial"], batch["boundary"]
        of_start = model(start) + torch.sin(math.pi * start[:, 1])
        return [of_residual, of_start, model(sides)]

    def draw(self, figure: "Figure", data: Domain, model: nn.Module | None = None) -> str:
        """Draw the solution beside the training points or the trained ``model``'s solution; below, u at three times."""
        grid = data.test
        layout = figure.add_gridspec(2, 6, height_ratios=(1.5, 1))
        columns = 2 if model is None else 3
        width = 6 // columns
        tops = [figure.add_subplot(layout[0, i * width : (i + 1) * width]) for i in range(columns)]
        if model is None:
            self.draw_points(tops[1], data)
        else:
            with evaluating(model):
                values = model(grid.points)
            self.draw_image(tops[1], values, "the network's u", limit=1)
            self.draw_image(tops[2], (values - grid.solution).abs(), "absolute error")
        self.draw_image(tops[0], grid.solution, "the solution u", limit=1)
        for axes in tops:
            axes.set_xlabel("t")
        tops[0].set_ylabel("x")

        places = grid.points[:GRID, 1].cpu()
        for i, time in enumerate(SLICES):
            axes = figure.add_subplot(layout[1, 2 * i : 2 * i + 2])
            at = torch.stack([torch.full_like(places, time), places], 1)
            axes.plot(places.numpy(), self.solution(at.double()).numpy(), color=COLORS[0], label="solution")
            if model is not None:
                with evaluating(model):
                    curve = model(at.to(grid.points.device)).cpu()
                axes.plot(places.numpy(), curve.numpy(), color=COLORS[1], ls="--", label="network")
            axes.set(title=f"t = {time}", xlabel="x", ylim=(-1.15, 1.15))
            if i == 0:
                axes.set_ylabel("u")
                axes.legend(frameon=False, loc="lower left")
        if model is None:
            return (
                "The solution of Burgers' equation, and the points at which the three losses are computed. Below, the "
                "solution at three times, as it steepens into a shock."
            )
        error = self.evaluate(model, data, "test")[self.primary]
        return (
            f"Burgers' equation: the exact solution, the network's solution and the absolute error. Below, both "
            f"solutions at three times. Relative L2 error {error:.3f}."
        )


def residual(model: Field, points: Tensor) -> Tensor:
    """Return ``u_t + u u_x - nu u_xx`` of ``model``, shape ``(N,)``, at the points ``(t, x)``, shape ``(N, 2)``."""
    u, (u_t, u_x), u_xx = model.jet(points, along=(1,))
    found: Tensor = u_t + u * u_x - NU * u_xx
    return found
