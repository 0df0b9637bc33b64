"""Random cases to hold a method against its peer: losses, and gradients that belong to them.

Give `Case.gradients` and `Case.losses` to `tests.balancers.planted.Planted`, whose losses then have these values and
gradients, or `Case.rows` and `Case.gramian` to what computes with matrices.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..balancers.planted import draw, matrix, random_losses

COUNT = 200


@dataclass(frozen=True)
class Case:
    """The losses of T tasks and their gradients, in float64."""

    losses: Tensor
    """``(T,)``, positive."""
    gradients: list[Tensor]
    """One tensor for each of the shared parameters of `Planted`, ``(T, *shape)``."""

    @property
    def num_tasks(self) -> int:
        return len(self.losses)

    @property
    def rows(self) -> Tensor:
        """Return each task's gradient as a row, ``(T, n)``."""
        return matrix(self.gradients)

    @property
    def gramian(self) -> Tensor:
        """Return the inner products of the gradients, ``(T, T)``."""
        return self.rows @ self.rows.T


def cases(count: int = COUNT, most_tasks: int = 6, seed: int = 0) -> Iterator[Case]:
    """Yield cases of two to ``most_tasks`` tasks, whose losses and gradients are orders of magnitude apart."""
    generator = torch.Generator().manual_seed(seed)
    for i in range(count):
        yield _case(2 + i % (most_tasks - 1), generator)


def steps(num_tasks: int, count: int = COUNT, seed: int = 0) -> Iterator[Case]:
    """Yield the steps of one run: cases that all have ``num_tasks`` tasks."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield _case(num_tasks, generator)


def _case(num_tasks: int, generator: torch.Generator) -> Case:
    return Case(random_losses(num_tasks, generator), draw(num_tasks, generator))
