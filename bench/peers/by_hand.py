"""Make steps of PCGrad at all shared parameters by hand: a few lines that serve one network, and check nothing.

Our step takes longer than these lines by a balancer's own work: checks, hooks, state, statistics. It takes less time
where the engine forms fewer weight gradients. These lines make one backward pass through the heads, and one through the
trunk for each task. They then combine the tasks' gradients in one of three ways.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from balancers.engine import Draws
from balancers.engine.method.declared_method import Wrt
from balancers.pcgrad import of_two, orders, surgery
from bench.cost.subject import MakeStep

from .contender import Contender

Rows = Sequence[Sequence[Tensor]]
"""For each task its gradient of each parameter."""
Weigh = Callable[[Tensor], Tensor]
"""Returns weights ``(T,)`` for inner products ``(T, T)``."""


def side_by_side(rows: Rows, weigh: Weigh) -> list[Tensor]:
    """Return each parameter's combined gradient, by way of one tensor of all, ``(T, P)``."""
    flat = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    parts = (weigh(flat @ flat.mT) @ flat).split([part.numel() for part in rows[0]])
    return [part.view_as(like) for part, like in zip(parts, rows[0], strict=True)]


def by_parameter(rows: Rows, weigh: Weigh) -> list[Tensor]:
    """Return the same, by way of one tensor for each parameter, ``(T, ...)``."""
    columns = [torch.stack(column).flatten(1) for column in zip(*rows, strict=True)]
    weights = weigh(torch.stack([column @ column.mT for column in columns]).sum(0))
    return [(weights @ column).view_as(like) for column, like in zip(columns, rows[0], strict=True)]


def without_copies(rows: Rows, weigh: Weigh) -> list[Tensor]:
    """Return the same, from the gradients as they are."""
    upper = {
        (i, j): torch.stack([torch.dot(a.flatten(), b.flatten()) for a, b in zip(rows[i], rows[j], strict=True)]).sum()
        for i, j in itertools.combinations_with_replacement(range(len(rows)), 2)
    }
    pairs = itertools.product(range(len(rows)), repeat=2)
    weights = weigh(torch.stack([upper[min(i, j), max(i, j)] for i, j in pairs]).view(len(rows), -1)).unbind()
    combined = [part * weights[0] for part in rows[0]]
    for weight, row in zip(weights[1:], rows[1:], strict=True):
        for total, part in zip(combined, row, strict=True):
            total.addcmul_(part, weight)
    return combined


COMBINE: Mapping[str, Callable[[Rows, Weigh], list[Tensor]]] = {
    "side by side": side_by_side,
    "by parameter": by_parameter,
    "without copies": without_copies,
}
"""By name, the ways to combine gradients."""


class ByHand(Contender):
    """Combines gradients with PCGrad.

    Args:
        make_step: see `Contender`.
        num_tasks: T.
        way: one of `COMBINE`.
    """

    name = "by hand"

    def __init__(self, make_step: MakeStep, num_tasks: int, way: str) -> None:
        super().__init__(make_step)
        self._aliases = _Aliases(num_tasks)
        self.subject.model.add_module("fork", self._aliases)
        self._parameters = list(self.trunk.parameters())
        self._combine = COMBINE[way]
        self._steps = 0

    def backward(self, losses: list[Tensor]) -> None:
        torch.autograd.backward(losses)
        features, of_tasks = self._aliases.take()
        rows = [
            torch.autograd.grad(features, self._parameters, of_task, retain_graph=number < len(losses))
            for number, of_task in enumerate(of_tasks, 1)
        ]
        for parameter, gradient in zip(self._parameters, self._combine(rows, self._weigh), strict=True):
            parameter.grad = gradient

    def _weigh(self, gramian: Tensor) -> Tensor:
        self._steps += 1
        if len(gramian) == 2:
            return of_two(gramian)
        return surgery(gramian, orders(gramian, Draws(0, self._steps, gramian)))


class _Aliases(nn.Module):
    """Takes the fork's place: gives each of T heads a copy of the features' tensor, at which its graph begins."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self._num_tasks = num_tasks
        self._seen: tuple[Tensor, list[Tensor]] | None = None

    def forward(self, features: Tensor) -> list[Tensor]:
        aliases = [features.detach().requires_grad_() for _ in range(self._num_tasks)]
        self._seen = features, aliases
        return aliases

    def take(self) -> tuple[Tensor, list[Tensor]]:
        """Return the features, and each task's gradient of them; forget both."""
        assert self._seen is not None
        (features, aliases), self._seen = self._seen, None
        return features, [alias.grad for alias in aliases if alias.grad is not None]


def has(method: str, place: Wrt) -> bool:
    """Return whether these lines are our method at this place."""
    return (method, place) == ("pcgrad", "parameters")


def ways(make_step: MakeStep, num_tasks: int) -> dict[str, Callable[[], ByHand]]:
    """Return, by name, what makes a contender."""
    return {way: partial(ByHand, make_step, num_tasks, way) for way in COMBINE}
