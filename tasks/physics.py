"""What physics-informed problems share: a network that knows its derivatives, points for every loss, and the score.

A network ``u`` is trained until it solves a partial differential equation: one task is the equation's residual inside
the domain, the others are what holds on its edges. Source: Raissi, Perdikaris and Karniadakis, "Physics-informed neural
networks: A deep learning framework for solving forward and inverse problems involving nonlinear partial differential
equations", Journal of Computational Physics 378, 2019.

Every loss has points of its own, so that tasks share all parameters and no features: there is no fork.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Generator, Tensor, nn

from .batch_order import batches
from .problem import Metric, Problem, Shared, Split, evaluating

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INSIDE, EDGES = 10_000, 1_000
"""Training points inside the domain, and of every loss on its edges."""
GRID = 100
"""A split is a grid of 100 by 100 points."""
OFFSETS: Mapping[Split, float] = {"validation": 0.25, "test": 0.75}
"""Where a split's points lie within the cells of that grid, as a share of a cell along both axes."""

Box = tuple[tuple[float, float], tuple[float, float]]
"""The lowest and the highest value of each of the two coordinates."""


class Jet(NamedTuple):
    """What a function of two coordinates does at N points.

    ``values`` of shape ``(N,)``, ``gradients`` of shape ``(2, N)``, one row a coordinate, and ``second`` of shape
    ``(N,)``: the sum of the second derivatives along those coordinates that were asked for.
    """

    values: Tensor
    gradients: Tensor
    second: Tensor


class Field(nn.Module):
    """A function of two coordinates, ``(N, 2)`` to ``(N,)``, that can tell its derivatives."""

    @abstractmethod
    def forward(self, points: Tensor) -> Tensor:
        """The values ``(N,)``."""

    @abstractmethod
    def jet(self, points: Tensor, along: Sequence[int]) -> Jet:
        """The values and derivatives, in a graph that ordinary backward passes go through.

        Args:
            points: ``(N, 2)``.
            along: the coordinates whose second derivatives are summed: ``(0, 1)`` for the Laplacian.
        """


class TanhNetwork(Field):
    """Hidden tanh layers and a linear one, with the initial values of Glorot and Bengio and biases of zero.

    The coordinates enter as ``scale * (x - centre of the box)``.

    Derivatives are carried forward with the values, layer by layer, which costs less than to differentiate twice: Li et
    al., "A computational framework for neural network-based variational Monte Carlo with Forward Laplacian", Nature
    Machine Intelligence 6, 2024.

    Args:
        width, depth: units of a hidden layer, and number of those.
        box: where the points lie.
        scale: one a coordinate.
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
        gradients = scale.diag()[:, None]  # (2, 1, 2), the same at all points
        second = torch.zeros_like(values[:1])
        for layer in self.hidden:
            assert isinstance(layer, nn.Linear)
            values, gradients, second = _tanh(layer(values), gradients @ layer.weight.T, second @ layer.weight.T, along)
        weight = self.last.weight.T
        return Jet(self.last(values).squeeze(1), (gradients @ weight).squeeze(2), (second @ weight).squeeze(1))


def _tanh(values: Tensor, gradients: Tensor, second: Tensor, along: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The jet of ``v = tanh(z)`` from that of z, all units at once: shapes ``(N, W)``, ``(2, N, W)``, ``(N, W)``.

    ``v' = (1 - v^2) z'`` and ``v'' = (1 - v^2) (z'' - 2 v z'^2)``.
    """
    v = values.tanh()
    slope = 1 - v.square()
    squares = gradients[along[0]].square()
    for i in along[1:]:
        squares = squares + gradients[i].square()
    return v, slope * gradients, slope * torch.addcmul(second, v, squares, value=-2)


class Grid(NamedTuple):
    """``points`` of shape ``(10000, 2)``, the second coordinate running fastest, and the ``solution``, ``(10000,)``."""

    points: Tensor
    solution: Tensor


@dataclass(frozen=True)
class Domain:
    """The training points ``(N, 2)`` of every task, by name, and the grids on which solutions are compared."""

    pools: Mapping[str, Tensor]
    validation: Grid
    test: Grid


class PhysicsProblem(Problem[Domain]):
    """A differential equation in two coordinates. A subclass says in which box, its points, its losses and solution.

    The score is the relative L2 error of the network on a grid, the norm of ``u - solution`` over that of the solution.
    The grids of the two splits have no point in common; the training points, which carry no labels, are drawn for every
    seed.

    ``baselines`` is empty: ``u = 0`` has a residual of zero, and so the best constant has little to say, and a network
    trained on one of the losses alone isn't meant to solve anything.
    """

    primary = "relative L2 error"
    metrics = (Metric(primary, "norm of the difference to the solution, over the norm of the solution", "", False),)
    baselines = frozenset()

    box: Box

    @abstractmethod
    def pools(self, generator: Generator) -> dict[str, Tensor]:
        """The training points ``(N, 2)`` of every task, by name, on the CPU."""

    @staticmethod
    @abstractmethod
    def solution(points: Tensor) -> Tensor:
        """The equation's solution ``(N,)`` at ``points``, ``(N, 2)``, both in float64 and on the CPU."""

    def data(self, generator: Generator, device: torch.device | str) -> Domain:
        """The points are drawn from ``generator``, task by task; the grids are the same for every seed."""
        pools = {task: points.to(device) for task, points in self.pools(generator).items()}
        grids = (_grid(type(self), offset) for offset in (OFFSETS["validation"], OFFSETS["test"]))
        return Domain(pools, *(Grid(*(part.to(device) for part in grid)) for grid in grids))

    def batches(self, data: Domain, generator: Generator, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """``batch_size`` points ``(batch_size, 2)`` for every task, by name; each goes through its own in epochs.

        Raises:
            ValueError: ``batch_size`` is less than 1 or more than a task has points.
        """
        orders = [batches(len(pool), batch_size, generator, pool.device) for pool in data.pools.values()]
        return (
            {task: pool.index_select(0, chosen) for (task, pool), chosen in zip(data.pools.items(), every, strict=True)}
            for every in zip(*orders, strict=True)
        )

    def shared(self, model: nn.Module) -> Shared:
        """All parameters are shared, and nothing else is."""
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
        """Points: in training, those of all tasks."""
        train = sum(len(pool) for pool in data.pools.values())
        return {"train": train, "validation": len(data.validation.points), "test": len(data.test.points)}

    def draw_points(self, axes: "Axes", data: Domain) -> None:
        """A tenth of every task's training points."""
        for (task, pool), color in zip(data.pools.items(), COLORS, strict=False):
            points = pool[::10].cpu().numpy()
            size = 5 if task == "residual" else 14
            axes.scatter(points[:, 0], points[:, 1], s=size, color=color, label=task, clip_on=False, lw=0)
        axes.set_title("a tenth of the training points")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, markerscale=2, frameon=False)

    def draw_image(self, axes: "Axes", values: Tensor, title: str, limit: float | None = None) -> None:
        """``values`` on the test grid, ``(10000,)``, and a colour bar, from minus to plus ``limit`` if there is one."""
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
"""Of tasks, from seaborn's palette "colorblind"."""


def known(model: nn.Module) -> Field:
    """``model``, once it is one that can tell its derivatives.

    Raises:
        TypeError: it isn't.
    """
    if not isinstance(model, Field):
        raise TypeError(f"expected a tasks.physics.Field, which can tell its derivatives; got {type(model).__name__}")
    return model


def inside(box: Box, generator: Generator) -> Tensor:
    """A Latin hypercube of `INSIDE` points: each of that many equal strips along either axis holds one of them."""
    strips = torch.stack([torch.randperm(INSIDE, generator=generator) for _ in box], 1)
    shares = (strips + torch.rand(INSIDE, len(box), generator=generator)) / INSIDE
    low, high = torch.tensor(box).T
    points: Tensor = low + (high - low) * shares
    return points


def edge(box: Box, axis: int, side: float, count: int, generator: Generator) -> Tensor:
    """``count`` points where coordinate ``axis`` is ``side``, uniform along the other one."""
    low, high = box[1 - axis]
    points = torch.empty(count, 2)
    points[:, axis] = side
    points[:, 1 - axis] = low + (high - low) * torch.rand(count, generator=generator)
    return points


@cache
def _grid(problem: type[PhysicsProblem], offset: float) -> Grid:
    places = (torch.arange(GRID, dtype=torch.float64) + offset) / GRID
    points = torch.cartesian_prod(*(low + (high - low) * places for low, high in problem.box))
    return Grid(points.float(), problem.solution(points).float())
