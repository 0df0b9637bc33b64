"""Two conflicting objectives of two parameters, as a landscape on which to watch what methods do.

Liu, Liu, Jin, Stone and Liu made it for "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021.
With ``theta = (x, y)``,

    L1 = c1 f1 + c2 g1                            L2 = c1 f2 + c2 g2
    f1 = log max(|(-x - 7) / 2 - tanh(-y)|, 5e-6) + 6
    f2 = log max(|(-x + 3) / 2 + tanh(-y) + 2|, 5e-6) + 6
    g1 = ((-x + 7)^2 + 0.1 (-y - 8)^2) / 10 - 20
    g2 = ((-x - 7)^2 + 0.1 (-y - 8)^2) / 10 - 20
    c1 = max(tanh(y / 2), 0)                      c2 = max(tanh(-y / 2), 0)

Above ``y = 0`` each loss has a narrow, curved valley, where the gradients conflict and differ by orders of magnitude;
below lies the bowl with the Pareto front. The five starts, and ``L1`` at a tenth of its scale, are from the code that
Navon et al. published with "Multi-Task Learning as a Bargaining Game" (Nash-MTL), ICML 2022. The formulas are those of
both papers' public code, which agree.

One start, (0, 0), lies on the edge where both switches are zero: the way down from there is the derivative that PyTorch
gives ``clamp`` at its bound, 1. Losses are negative in most places, which some methods refuse. That code's Adam makes
35,000 steps of 0.001. The recipe here makes fewer, larger ones and shows the same: from (9, 9), equal weighting is
still in a valley at the end. With steps of 0.03 or 0.05 it jumps out.
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
SCALE = 0.1
"""Of ``L1``."""
LOWEST = 5e-6
EXTENT = 11.0
"""Pictures show ``theta`` from -11 to 11."""
FRONT_COLOR, START_COLOR = "#de8f05", "black"


def landscape(theta: Tensor, scale: float = SCALE) -> Tensor:
    """``L1``, times ``scale``, and ``L2`` of points ``theta``: ``(..., 2)`` to ``(..., 2)``."""
    x, y = theta.unbind(-1)
    f1 = (0.5 * (-x - 7) - torch.tanh(-y)).abs().clamp(min=LOWEST).log() + 6
    f2 = (0.5 * (-x + 3) + torch.tanh(-y) + 2).abs().clamp(min=LOWEST).log() + 6
    g1 = ((-x + 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20
    g2 = ((-x - 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20
    c1 = torch.tanh(y / 2).clamp(min=0)
    c2 = torch.tanh(-y / 2).clamp(min=0)
    return torch.stack([scale * (c1 * f1 + c2 * g1), c1 * f2 + c2 * g2], -1)


def pareto_front(num_points: int) -> Tensor:
    r"""Points ``theta``, ``(num_points, 2)`` in float64, that no other point beats in both losses, by growing ``x``.

    They are the minima of :math:`p L_1 + (1-p) L_2` (unscaled) for ``p`` from 0 to 1, all of them below ``y = 0``.
    There ``c2``, which both losses are multiplied by, depends on ``y`` alone. So the weighted sum is least at
    :math:`x = 7 (2p - 1)`, where it equals :math:`c_2(y) (19.6 p (1-p) + 0.01 (y+8)^2 - 20)`; the one zero that this
    has as a derivative in ``y`` is found by bisection. The scale of ``L1`` changes which ``p`` finds a point, not the
    points.
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
    """One parameter ``theta``, of shape ``(2,)``, that calling it returns."""

    def __init__(self, start: tuple[float, float]) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(start))

    def forward(self) -> Tensor:
        return self.theta


@register
class Conflict2D(Problem[None]):
    """The landscape, descended from one of its five starts. An illustration: its scores say nothing about methods.

    There are no data, no random numbers, no heads and no fork: gradients are those of the one parameter.

    Args:
        start: 1 to 5, in the order of ``STARTS``.
        scale: of ``L1``; 1 is the landscape of CAGrad, 0.1 that of Nash-MTL.

    Raises:
        ValueError: no such start, or ``scale`` is not a positive, finite number.
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
        """There are none."""

    def batches(self, data: None, generator: Generator, batch_size: int) -> Iterator[None]:
        """Nothing, again and again."""
        while True:
            yield None

    def model(self) -> Point:
        """A point at the start; nothing about it is random."""
        return Point(self.start)

    def shared(self, model: nn.Module) -> Shared:
        """All there is, the point, and no fork: measure gradients with ``wrt = "parameters"``."""
        return Shared(None, None, tuple(model.parameters()))

    def losses(self, model: nn.Module, batch: None) -> Tensor:
        """``L1`` and ``L2``: ``(2,)``."""
        return landscape(model(), self.scale)

    def evaluate(
        self, model: nn.Module, data: None, split: Split, start: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """The two losses and their mean; there are no samples to split."""
        with evaluating(model):
            first, second = self.losses(model, None).tolist()
        return {self.primary: (first + second) / 2, "loss L1": first, "loss L2": second}

    def draw(self, figure: "Figure", data: None, model: nn.Module | None = None) -> str:
        """The landscape, its Pareto front and the starts, in the parameters and in the losses."""
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
                axes.scatter(*point[:, None].numpy(), color="#0173b2", marker="*", s=200, zorder=4, label="the end")
        left.set_title("Contours of the mean of L1 and L2, unscaled")
        left.set_ylabel("y")
        left.set_xlabel("x")
        right.set_title("The same in the losses")
        right.set_xlabel("loss L1" if self.scale == 1 else f"loss L1, scaled by {self.scale:g}")
        right.set_ylabel("loss L2")
        right.legend()
        return "The landscape with its Pareto front and the five starts: over the parameters, and as pairs of losses."


def draw_trajectories(figure: "Figure", paths: Mapping[str, Sequence[Tensor]]) -> str:
    """Draws into an empty ``figure`` the ways that methods take over the landscape, a panel each.

    Args:
        figure: is made as high as the panels need.
        paths: by the name of a method, its trajectories, points ``(num_points, 2)`` at equal distances in steps.

    Returns:
        What is to be seen, in a sentence or two.
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
        "Where each method goes from the starts (dots) to the end of its steps (crosses), over contours of the mean of "
        "both losses, L1 unscaled; the thick line is the Pareto front."
    )


def _draw_landscape(axes: "Axes") -> None:
    """Contours of the unscaled losses' mean."""
    ticks = torch.linspace(-EXTENT, EXTENT, 201)
    points = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), -1)
    means = landscape(points, scale=1).mean(-1)
    axes.contour(ticks.numpy(), ticks.numpy(), means.numpy(), levels=14, colors="0.75", linewidths=0.7, linestyles="-")
    axes.set_aspect("equal")
    axes.set_xticks((-10, 0, 10))
    axes.set_yticks((-10, 0, 10))
