"""PCGrad: what of a gradient opposes another is taken out of it."""

from typing import Any

import torch
from torch import Tensor

from .engine.gramian import GramianBalancer
from .engine.method_registry import register
from .engine.rng import Draws


@register
class PCGrad(GramianBalancer):
    r"""Projecting conflicting gradients: each is projected on the normal plane of those it conflicts with.

    For each task i, over the others j in a random order, starting from :math:`g = \nabla L_i`:

    .. math:: g \leftarrow g - \frac{\min(0, \langle g, \nabla L_j \rangle)}{\lVert \nabla L_j \rVert^2} \nabla L_j

    and the sum over tasks of what is left is the direction. Without a conflict it is the plain sum.

    Args:
        seed: of the orders.
        fork, wrt, tasks, update_every, accumulate, check_finite: see `CombiningBalancer`.

    Raises:
        ValueError: ``seed`` is not an integer, 0 or more.

    Source: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, algorithm 1.
    """

    name = "pcgrad"
    summary = "Takes out of each gradient what opposes another's, in a random order, and sums what is left."
    use_when = "Gradients of like size conflict now and then."
    default_wrt = "parameters"
    random = True

    _draws: Draws

    def __init__(self, *args: Any, seed: int = 0, **options: Any) -> None:
        super().__init__(*args, **options)
        self._draws = Draws(seed)

    def solve(self, gramian: Tensor) -> Tensor:
        """Weights ``(..., T)``, each at least 1."""
        if gramian.shape[-1] == 2:
            return of_two(gramian)
        return surgery(gramian, orders(gramian, self._draws))


def of_two(gramian: Tensor) -> Tensor:
    r"""The weights ``(..., 2)`` for two tasks: :math:`1 - \min(0, g_1^\top g_2) / |g_i|^2`."""
    squares = gramian.diagonal(dim1=-2, dim2=-1).clamp(min=torch.finfo(gramian.dtype).tiny)
    return 1 - gramian[..., 0, 1:].clamp(max=0) / squares


def orders(gramian: Tensor, draws: Draws) -> Tensor:
    """For each task a random order of the others, ``(..., T, T - 1)``."""
    if gramian.shape[-1] == 2:  # there is but one
        return torch.arange(1, -1, -1, device=gramian.device).unsqueeze(-1).expand(*gramian.shape[:-1], 1)
    keys = torch.rand(gramian.shape, dtype=gramian.dtype, device=gramian.device, generator=draws.on(gramian.device))
    keys.diagonal(dim1=-2, dim2=-1).fill_(2.0)  # a task itself comes last, and is left out
    return keys.argsort(-1)[..., :-1]


def surgery(gramian: Tensor, order: Tensor) -> Tensor:
    """PCGrad's weights ``(..., T)`` for Gramians ``(..., T, T)`` and orders ``(..., T, T - 1)``."""
    squared_norms = gramian.diagonal(dim1=-2, dim2=-1).unsqueeze(-2).expand_as(gramian)
    parts = torch.eye(gramian.shape[-1], dtype=gramian.dtype, device=gramian.device).repeat(*gramian.shape[:-2], 1, 1)
    products = gramian.clone()  # of each task's gradient, as far as it has been projected, with all others
    for k in range(order.shape[-1]):
        other = order[..., k : k + 1]
        conflicts = products.gather(-1, other).clamp(max=0)
        steps = torch.where(conflicts < 0, conflicts / squared_norms.gather(-1, other), 0.0)
        parts.scatter_add_(-1, other, -steps)
        products -= steps * gramian.gather(-2, other.expand_as(gramian))
    return parts.sum(-2)
