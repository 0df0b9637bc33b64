"""The common part of the physics-informed problems: the network and its derivatives, the points, and the score.

A network ``u`` is trained until it solves a partial differential equation. One task is the equation's residual inside
the domain; the others are the conditions on the domain's edges. Source: Raissi, Perdikaris and Karniadakis,
"Physics-informed neural networks: A deep learning framework for solving forward and inverse problems involving
nonlinear partial differential equations", Journal of Computational Physics 378, 2019.

Every loss is computed at points of its own. So the tasks share all parameters but no features, and there is no fork.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Generator, Tensor, nn

from .batch_order import batches
from .held_out import split_indices
from .problem import Metric, Problem, Shared, Split, evaluating

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INSIDE, EDGES = 10_000, 1_000
"""Number of training points inside the domain, and for each condition on its edges."""
GRID = 100
"""Points per axis of the grid that a split consists of, so that it has 100 by 100 points."""
OFFSETS: Mapping[Split, float] = {"validation": 0.25, "test": 0.75}
"""Position of each split's points within the cells of its grid, as a fraction of a cell along both axes."""

Box = tuple[tuple[float, float], tuple[float, float]]
"""Lowest and highest value of each of the two coordinates."""


class Jet(NamedTuple):
    """Values and derivatives of a function of two coordinates at N points.

    Attributes:
        values: shape ``(N,)``.
        gradients: first derivatives, shape ``(2, N)``, one row per coordinate.
        second: sum of the second derivatives along the coordinates that the caller named, shape ``(N,)``.
    """

    values: Tensor
    gradients: Tensor
    second: Tensor


class Field(nn.Module):
    """A function of two coordinates, from ``(N, 2)`` to ``(N,)``, that also computes its derivatives."""

    @abstractmethod
    def forward(self, points: Tensor) -> Tensor:
        """Return the values, shape ``(N,)``, at ``points``, shape ``(N, 2)``."""

    @abstractmethod
    def jet(self, points: Tensor, along: Sequence[int]) -> Jet:
        """Return values and derivatives. An ordinary backward pass goes through both.

        Args:
            points: shape ``(N, 2)``.
            along: the coordinates whose second derivatives are summed, ``(0, 1)`` for the Laplacian.
        """


class TanhNetwork(Field):
    """A network of hidden tanh layers and a linear output layer.

    Weights have the initial values of Glorot and Bengio; biases start at zero. The network's inputs are
    ``scale * (x - centre of the box)``.

    `jet` carries derivatives forward together with the values, layer by layer, which costs less than differentiating
    twice. Source: Li et al., "A computational framework for neural network-based variational Monte Carlo with Forward
    Laplacian", Nature Machine Intelligence 6, 2024.

    Args:
        width: number of units of a hidden layer.
        depth: number of hidden layers.
        box: the box that the points lie in.
        scale: factor of each coordinate.
    """

    def __init__(self, width: int, depth: int, box: Box, scale: tuple[float, float]) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(*sizes) for sizes in pairwise([2] + [width] * depth))
        self.last = nn.Linear(width, 1)
        for layer in (*self.hidden, self.last):
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.register_buffer("centre", torch.tensor(box).mean(1), persistent=False)
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self, points: Tensor) -> Tensor:
        values = (points - self.get_buffer("centre")) * self.get_buffer("scale")
        for layer in self.hidden:
            values = layer(values).tanh()
        outputs: Tensor = self.last(values)
        return outputs.squeeze(1)

    def jet(self, points: Tensor, along: Sequence[int]) -> Jet:
        scale = self.get_buffer("scale")
        values = (points - self.get_buffer("centre")) * scale
        gradients = scale.diag()[:, None]  # (2, 1, 2): the same at all points
        second = torch.zeros_like(values[:1])
        for layer in self.hidden:
            assert isinstance(layer, nn.Linear)
            values, gradients, second = _tanh(layer(values), gradients @ layer.weight.T, second @ layer.weight.T, along)
        weight = self.last.weight.T
        return Jet(self.last(values).squeeze(1), (gradients @ weight).squeeze(2), (second @ weight).squeeze(1))


def _tanh(values: Tensor, gradients: Tensor, second: Tensor, along: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return values, gradients and second derivatives of ``v = tanh(z)`` from those of z, for all W units of a layer.

    The shapes, of arguments and results alike, are ``(N, W)``, ``(2, N, W)`` and ``(N, W)``. The formulas are
    ``v' = (1 - v^2) z'`` and ``v'' = (1 - v^2) (z'' - 2 v z'^2)``.
    """
    v = values.tanh()
    slope = 1 - v.square()
    squares = gradients[along[0]].square()
    for i in along[1:]:
        squares = squares + gradients[i].square()
    return v, slope * gradients, slope * torch.addcmul(second, v, squares, value=-2)


class Grid(NamedTuple):
    """A grid of points and the solution there.

    Attributes:
        points: shape ``(N, 2)``; the second coordinate changes fastest. N is 10,000, less what lies outside the domain.
        solution: shape ``(N,)``.
    """

    points: Tensor
    solution: Tensor


@dataclass(frozen=True)
class Domain:
    """Training points, and the grids on which the network is compared with the solution.

    Attributes:
        pools: the training points of each task, shape ``(N, 2)``, by the task's name.
        validation: the validation grid.
        test: the test grid.
    """

    pools: Mapping[str, Tensor]
    validation: Grid
    test: Grid


class PhysicsProblem(Problem[Domain]):
    """Base class for a differential equation in two coordinates.

    A subclass defines ``box``, ``pools``, ``solution``, ``model``, ``residuals`` and the usual facts of a problem.

    Data: random training points without labels, drawn anew for every seed; for validation and test, two fixed grids
    that have no point in common. They lie half a cell apart in one known solution, so a validation score is close to a
    test score, and what validation chooses, such as a learning rate, is chosen by the solution. Who solves an equation
    in earnest has no such grid.

    Metric: the relative L2 error on a grid, which is the norm of ``u - solution`` divided by the norm of ``solution``.

    ``baselines`` is empty. The best constant, ``u = 0``, is not a meaningful reference, since its residual can be zero;
    and a network trained on one loss alone does not solve the equation.

    Attributes:
        box: lowest and highest value of each coordinate.
    """

    primary = "relative L2 error"
    metrics = (
        Metric(primary, "norm of the difference to the solution, divided by the norm of the solution", "", False),
    )
    baselines = frozenset()

    box: Box

    @abstractmethod
    def pools(self, generator: Generator) -> dict[str, Tensor]:
        """Draw the training points of each task, shape ``(N, 2)``, on the CPU, and return them by the task's name."""

    @staticmethod
    @abstractmethod
    def solution(points: Tensor) -> Tensor:
        """Return the solution, shape ``(N,)``, at ``points``, shape ``(N, 2)``. Both are float64 and on the CPU."""

    def data(self, generator: Generator, device: torch.device | str) -> Domain:
        """Draw the training points from ``generator``, task by task. The grids are the same for every seed."""
        pools = {task: points.to(device) for task, points in self.pools(generator).items()}
        grids = (_grid(type(self), offset) for offset in (OFFSETS["validation"], OFFSETS["test"]))
        return Domain(pools, *(Grid(*(part.to(device) for part in grid)) for grid in grids))

    def batches(self, data: Domain, generator: Generator, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Return batches that map each task's name to its points, of shape ``(batch_size, 2)``.

        Each task goes through its own points in epochs, independently of the other tasks.

        Raises:
            ValueError: If ``batch_size`` is less than 1 or more than the number of points of a task.
        """
        orders = [batches(len(pool), batch_size, generator, pool.device) for pool in data.pools.values()]
        return (
            {task: pool.index_select(0, chosen) for (task, pool), chosen in zip(data.pools.items(), every, strict=True)}
            for every in zip(*orders, strict=True)
        )

    def split(self, data: Domain, generator: Generator, batch_size: int) -> tuple[Domain, Domain]:
        """Hold out some of each task's points."""
        chosen = {task: split_indices(len(pool), generator, batch_size) for task, pool in data.pools.items()}
        kept, held = (
            {task: pool.index_select(0, chosen[task][k].to(pool.device)) for task, pool in data.pools.items()}
            for k in (0, 1)
        )
        return replace(data, pools=kept), replace(data, pools=held)

    @abstractmethod
    def residuals(self, model: nn.Module, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Return what each task's condition leaves over at the batch's points, shape ``(N,)``.

        Raises:
            TypeError: If ``model`` is not a `Field`.
        """

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Return each task's mean square over the batch's points.

        Raises:
            TypeError: If ``model`` is not a `Field`.
        """
        return [residuals.square().mean() for residuals in self.residuals(model, batch)]

    def shared(self, model: nn.Module) -> Shared:
        """Return all parameters as shared, without a fork and without a layer."""
        return Shared(None, None, tuple(model.parameters()))

    def evaluate(
        self, model: nn.Module, data: Domain, split: Split, start: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        grid = {"validation": data.validation, "test": data.test}[split]
        with evaluating(model):
            difference = model(grid.points) - grid.solution
        norm = torch.linalg.vector_norm
        return {self.primary: float(norm(difference) / norm(grid.solution))}

    def sizes(self, data: Domain) -> Mapping[str, int]:
        """Return the number of points of each split; for training, the sum over the tasks."""
        train = sum(len(pool) for pool in data.pools.values())
        return {"train": train, "validation": len(data.validation.points), "test": len(data.test.points)}

    def draw_points(self, axes: "Axes", data: Domain) -> None:
        """Draw a tenth of each task's training points."""
        for (task, pool), color in zip(data.pools.items(), COLORS, strict=False):
            points = pool[::10].cpu().numpy()
            size = 5 if task == "residual" else 14
            axes.scatter(points[:, 0], points[:, 1], s=size, color=color, label=task, clip_on=False, lw=0)
        axes.set_title("a tenth of the training points")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, markerscale=2, frameon=False)

    def draw_image(self, axes: "Axes", values: Tensor, title: str, limit: float | None = None) -> None:
        """Draw ``values`` on the test grid, shape ``(10000,)``, with a colour bar.

        The colours range from ``-limit`` to ``limit``; if ``limit`` is None, from the lowest to the highest value.
        """
        image = axes.imshow(
            values.view(GRID, GRID).T.cpu().numpy(),
            origin="lower",
            extent=(*self.box[0], *self.box[1]),
            aspect="auto",
            cmap="cividis" if limit is None else "viridis",
            vmin=None if limit is None else -limit,
            vmax=limit,
        )
        axes.set_title(title)
        assert axes.figure is not None
        axes.figure.colorbar(image, ax=axes, location="bottom", shrink=0.9)


COLORS = ("#0173b2", "#de8f05", "#029e73")
"""The tasks' colours, from seaborn's palette "colorblind"."""


def known(model: nn.Module) -> Field:
    """Return ``model`` if it is a `Field`.

    Raises:
        TypeError: If it isn't.
    """
    if not isinstance(model, Field):
        raise TypeError(f"expected a tasks.physics.Field, which computes its derivatives; got {type(model).__name__}")
    return model


def inside(box: Box, generator: Generator) -> Tensor:
    """Draw a Latin hypercube of `INSIDE` points in ``box``, shape ``(INSIDE, 2)``.

    If either axis is divided into `INSIDE` equal strips, each strip holds exactly one point.
    """
    strips = torch.stack([torch.randperm(INSIDE, generator=generator) for _ in box], 1)
    shares = (strips + torch.rand(INSIDE, len(box), generator=generator)) / INSIDE
    low, high = torch.tensor(box).T
    points: Tensor = low + (high - low) * shares
    return points


def edge(box: Box, axis: int, side: float, count: int, generator: Generator) -> Tensor:
    """Draw ``count`` points, shape ``(count, 2)``: coordinate ``axis`` equals ``side``, the other is uniform."""
    low, high = box[1 - axis]
    points = torch.empty(count, 2)
    points[:, axis] = side
    points[:, 1 - axis] = low + (high - low) * torch.rand(count, generator=generator)
    return points


@cache
def _grid(problem: type[PhysicsProblem], offset: float) -> Grid:
    """Return the grid whose points lie at the fraction ``offset`` of each cell, and the solution there."""
    places = (torch.arange(GRID, dtype=torch.float64) + offset) / GRID
    points = torch.cartesian_prod(*(low + (high - low) * places for low, high in problem.box))
    return Grid(points.float(), problem.solution(points).float())
