"""The problem ``conflict-2d``: two conflicting losses of two parameters, a landscape on which to watch methods.

The landscape is from Liu, Liu, Jin, Stone and Liu, "Conflict-Averse Gradient Descent for Multi-task Learning" (CAGrad),
NeurIPS 2021. With ``theta = (x, y)``,

    L1 = c1 f1 + c2 g1                            L2 = c1 f2 + c2 g2
    f1 = log max(|(-x - 7) / 2 - tanh(-y)|, 5e-6) + 6
    f2 = log max(|(-x + 3) / 2 + tanh(-y) + 2|, 5e-6) + 6
    g1 = ((-x + 7)^2 + 0.1 (-y - 8)^2) / 10 - 20
    g2 = ((-x - 7)^2 + 0.1 (-y - 8)^2) / 10 - 20
    c1 = max(tanh(y / 2), 0)                      c2 = max(tanh(-y / 2), 0)

Above ``y = 0`` each loss has a narrow, curved valley. There the gradients conflict and differ by orders of magnitude.
Below ``y = 0`` lies a bowl with the Pareto front. The five starts, and ``L1`` at a tenth of its scale, are from the
code that Navon et al. published with "Multi-Task Learning as a Bargaining Game" (Nash-MTL), ICML 2022. The formulas are
those of both papers' public code, which agree.

At one start, (0, 0), both factors ``c1`` and ``c2`` are zero, exactly where each maximum switches from its first
argument to 0. There the maxima take the derivative of their first argument, as in the papers' code, so that descent can
begin. Losses are negative in most places; some methods refuse negative losses.

The Nash-MTL code trains with Adam for 35,000 steps of 0.001. The recipe here makes fewer, larger steps, with the same
outcome: from (9, 9), equal weighting is still in a valley at the end. With steps of 0.03 or 0.05 it would jump out.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator, Tensor, nn

from .problem import Metric, Problem, Recipe, Shared, Split, evaluating
from .problem_registry import register

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STARTS = ((-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0))
"""The points ``(x, y)`` that the options 1 to 5 start from."""
SCALE = 0.1
"""Default factor of ``L1``."""
LOWEST = 5e-6
"""Lower bound of the logarithms' arguments, which keeps the valleys' floors finite."""
EXTENT = 11.0
"""Largest absolute coordinate that pictures show: both axes run from -11 to 11."""
FRONT_COLOR, START_COLOR = "#de8f05", "black"


def landscape(theta: Tensor, scale: float = SCALE) -> Tensor:
    """Return ``scale * L1`` and ``L2``, of shape ``(..., 2)``, at the points ``theta``, of shape ``(..., 2)``."""
    x, y = theta.unbind(-1)
    f1 = _at_least(LOWEST, (0.5 * (-x - 7) - torch.tanh(-y)).abs()).log() + 6
    f2 = _at_least(LOWEST, (0.5 * (-x + 3) + torch.tanh(-y) + 2).abs()).log() + 6
    g1 = ((-x + 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20
    g2 = ((-x - 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20
    c1 = _at_least(0, torch.tanh(y / 2))
    c2 = _at_least(0, torch.tanh(-y / 2))
    return torch.stack([scale * (c1 * f1 + c2 * g1), c1 * f2 + c2 * g2], -1)


def _at_least(bound: float, values: Tensor) -> Tensor:
    """Return the maximum of ``bound`` and ``values``, with derivative 1 where they are equal.

    `torch.clamp` has this derivative up to PyTorch 2.13. From 2.14 on it has derivative 0 there.
    """
    return torch.where(values < bound, bound, values)  # this way round a NaN stays a NaN, as in clamp


def pareto_front(num_points: int) -> Tensor:
    r"""Return points of the Pareto front in order of increasing ``x``: ``(num_points, 2)``, float64.

    No other point is better in both losses. The points minimise :math:`p L_1 + (1-p) L_2`, with ``L1`` unscaled, for
    ``p`` from 0 to 1, and all lie below ``y = 0``. There both losses are a product with ``c2``, which depends on ``y``
    alone. So the weighted sum is least at :math:`x = 7 (2p - 1)`, where it equals
    :math:`c_2(y) (19.6 p (1-p) + 0.01 (y+8)^2 - 20)`. The derivative of this in ``y`` has one zero, which bisection
    finds. The scale of ``L1`` changes which ``p`` leads to a point, but not the set of points.
    """
    p = torch.linspace(0, 1, num_points, dtype=torch.float64)
    low, high = torch.full_like(p, -12), torch.full_like(p, -8)
    for _ in range(60):
        y = (low + high) / 2
        c2 = torch.tanh(-y / 2)
        slope = -(1 - c2**2) / 2 * (19.6 * p * (1 - p) + 0.01 * (y + 8) ** 2 - 20) + c2 * 0.02 * (y + 8)
        low, high = torch.where(slope < 0, y, low), torch.where(slope < 0, high, y)
    return torch.stack([7 * (2 * p - 1), (low + high) / 2], -1)


class Point(nn.Module):
    """A model that is one parameter, ``theta`` of shape ``(2,)``. Calling the model returns the parameter."""

    def __init__(self, start: tuple[float, float]) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(start))

    def forward(self) -> Tensor:
        return self.theta


@register
class Conflict2D(Problem[None]):
    """Two conflicting losses of one point in the plane: CAGrad's landscape.

    An illustration: its scores say nothing about methods.

    Data: none. A batch is None, and nothing is random.

    Tasks: "L1" and "L2", the two losses defined at the top of this file.

    Model: one parameter ``theta`` of shape ``(2,)``, which both tasks share. It has no trunk, heads or fork, so the
    tasks' gradients are those of ``theta``.

    Metrics: the two losses, and their mean, which is the primary metric.

    Sources: Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021; the starts and the
    default scale: Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022.

    Args:
        start: number of the start, 1 to 5, in the order of ``STARTS``.
        scale: factor of ``L1``: 1 gives the landscape of CAGrad, 0.1 that of Nash-MTL.

    Raises:
        ValueError: If ``start`` is not one of these numbers, or ``scale`` is not a positive, finite number.

    Example::

        problem = tasks.create("conflict-2d", start=2, scale=0.1)
        point = problem.model()
        first, second = problem.losses(point, None)
        balancer = CAGrad(None, wrt=point, tasks=problem.tasks)
    """

    illustration: ClassVar[bool] = True
    name = "conflict-2d"
    summary = "An illustration: two conflicting objectives of two parameters, CAGrad's landscape."
    tasks = ("L1", "L2")
    primary = "mean loss"
    metrics = (
        Metric(primary, "mean of the two losses, which equal weighting descends on", "", False),
        Metric("loss L1", "the first loss, scaled", "", False, "L1"),
        Metric("loss L2", "the second loss", "", False, "L2"),
    )
    recipe = Recipe("adam", lr=0.02, schedule="constant", batch_size=1, steps=1_500)
    baselines = frozenset()

    def __init__(self, *, start: int = 1, scale: float = SCALE) -> None:
        if type(start) is not int or not 1 <= start <= len(STARTS):
            raise ValueError(f"start is {start!r}; expected a whole number, 1 to {len(STARTS)}")
        if not (isinstance(scale, int | float) and 0 < scale < math.inf):
            raise ValueError(f"scale is {scale!r}; expected a positive, finite number")
        self.start = STARTS[start - 1]
        self.scale = float(scale)
        self.static_weights = {"inverse-scale": (2 / (1 + scale), 2 * scale / (1 + scale))}

    def data(self, generator: Generator, device: torch.device | str) -> None:
        """Return None: there are no data."""

    def batches(self, data: None, generator: Generator, batch_size: int) -> Iterator[None]:
        """Yield None without end."""
        while True:
            yield None

    def split(self, data: None, generator: Generator, batch_size: int) -> tuple[None, None]:
        """Return nothing twice: there are no samples."""
        return None, None

    def model(self) -> Point:
        """Return a point at the start. Nothing about it is random."""
        return Point(self.start)

    def shared(self, model: nn.Module) -> Shared:
        """Return the point as the only shared parameter.

        There is no fork and no layer: gradients are measured with ``wrt = "parameters"``.
        """
        return Shared(None, None, tuple(model.parameters()))

    def losses(self, model: nn.Module, batch: None) -> Tensor:
        """Return the scaled ``L1`` and ``L2``, of shape ``(2,)``."""
        return landscape(model(), self.scale)

    def evaluate(
        self, model: nn.Module, data: None, split: Split, start: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """Return the two losses and their mean, which are the same for both splits."""
        with evaluating(model):
            first, second = self.losses(model, None).tolist()
        return {self.primary: (first + second) / 2, "loss L1": first, "loss L2": second}

    def draw(self, figure: "Figure", data: None, model: nn.Module | None = None) -> str:
        """Draw the landscape, its Pareto front and the starts, over the parameters and as pairs of losses."""
        left, right = figure.subplots(1, 2)
        front, starts = pareto_front(200), torch.tensor(STARTS)
        _draw_landscape(left)
        left.plot(*front.T.numpy(), color=FRONT_COLOR, linewidth=4)
        right.plot(*landscape(front, self.scale).T.numpy(), color=FRONT_COLOR, linewidth=4, label="Pareto front")
        for axes, points in ((left, starts), (right, landscape(starts, self.scale))):
            axes.scatter(*points.T.numpy(), color=START_COLOR, s=30, zorder=3, label="starts")
            for number, point in enumerate(points.tolist(), 1):
                axes.annotate(str(number), point, xytext=(5, 5), textcoords="offset points")
        if model is not None:
            theta = model().detach().cpu()
            for axes, point in ((left, theta), (right, landscape(theta, self.scale))):
                axes.scatter(*point[:, None].numpy(), color="#0173b2", marker="*", s=200, zorder=4, label="trained")
        left.set_title("Contours of the mean of L1 and L2, unscaled")
        left.set_ylabel("y")
        left.set_xlabel("x")
        right.set_title("The same points as pairs of losses")
        right.set_xlabel("loss L1" if self.scale == 1 else f"loss L1, scaled by {self.scale:g}")
        right.set_ylabel("loss L2")
        right.legend()
        return "The landscape with its Pareto front and the five starts: over the parameters, and as pairs of losses."


def draw_trajectories(figure: "Figure", paths: Mapping[str, Sequence[Tensor]]) -> str:
    """Draw the paths that methods take over the landscape, one panel per method.

    Args:
        figure: an empty figure. Its height is set to what the panels need.
        paths: each method's trajectories, by the method's name. A trajectory has shape ``(num_points, 2)``: points at
            equal intervals of steps.

    Returns:
        A caption of one or two sentences.
    """
    from matplotlib.collections import LineCollection

    columns = min(4, len(paths))
    rows = -(-len(paths) // columns)
    figure.set_size_inches(9, 2.2 * rows + 0.4)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    front = pareto_front(100)
    for axes in panels.flat[len(paths) :]:
        axes.set_axis_off()
    for axes, (name, of_method) in zip(panels.flat, paths.items(), strict=False):
        _draw_landscape(axes)
        axes.plot(*front.T.numpy(), color=FRONT_COLOR, linewidth=4)
        for path in of_method:
            points = path.detach().cpu()
            pieces = list(torch.stack([points[:-1], points[1:]], 1).numpy())
            progress = torch.linspace(0, 100, len(pieces)).numpy()
            line = LineCollection(pieces, cmap="viridis", array=progress, linewidth=1.5)
            axes.add_collection(line)
            axes.scatter(*points[:1].T.numpy(), color=START_COLOR, s=12, zorder=3)
            axes.scatter(*points[-1:].T.numpy(), color=START_COLOR, marker="x", s=30, zorder=4)
        axes.set_title(name, fontsize=10)
    figure.supxlabel("x", fontsize=10)
    figure.supylabel("y", fontsize=10)
    figure.colorbar(line, ax=panels, label="share of the steps (%)", aspect=15 * rows, pad=0.01)
    return (
        "The path of each method from the starts (dots) to its last step (crosses), over contours of the mean of both "
        "losses, L1 unscaled. The thick line is the Pareto front."
    )


def _draw_landscape(axes: "Axes") -> None:
    """Draw contours of the mean of the unscaled losses."""
    ticks = torch.linspace(-EXTENT, EXTENT, 201)
    points = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), -1)
    means = landscape(points, scale=1).mean(-1)
    axes.contour(ticks.numpy(), ticks.numpy(), means.numpy(), levels=14, colors="0.75", linewidths=0.7, linestyles="-")
    axes.set_aspect("equal")
    axes.set_xticks((-10, 0, 10))
    axes.set_yticks((-10, 0, 10))
