"""PCGrad (projecting conflicting gradients): remove from each gradient the part that opposes another one."""

import torch
from torch import Tensor

from .engine import Draws, GradientBalancer, Read, Result, register


@register
class PCGrad(GradientBalancer):
    r"""Project each gradient onto the normal plane of every gradient that it conflicts with.

    For each task i, start from :math:`g = \nabla L_i` and go through the other tasks j in a random order:

    .. math:: g \leftarrow g - \frac{\min(0, \langle g, \nabla L_j \rangle)}{\lVert \nabla L_j \rVert^2} \nabla L_j

    The direction is the sum of all :math:`g`. Without a conflict it is the plain sum of the gradients.

    Args:
        seed: seed of the random orders, which ``torch.manual_seed`` does not change.
        fork, wrt, options: see `GradientBalancer`.

    Raises:
        ValueError: ``seed`` is not an integer, 0 or more.

    Example::

        balancer = PCGrad(net.fork, wrt=net.trunk, weighting=UncertaintyWeighting(2))
        balancer(losses).backward()

    Source: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, algorithm 1.
    """

    name = "pcgrad"
    summary = "Remove from each gradient the parts that oppose other gradients, in a random order, and sum the rest."
    reads = "gramian"
    use_when = "When gradients of similar size conflict now and then."
    default_wrt = "parameters"

    def update(self, read: Read, draws: Draws) -> Result:
        if len(read.gramian) == 2:
            return Result(of_two(read.gramian))
        return Result(surgery(read.gramian, orders(read.gramian, draws)))


def of_two(gramian: Tensor) -> Tensor:
    r"""Return PCGrad's weights ``(..., 2)`` for two tasks, :math:`1 - \min(0, g_1^\top g_2) / |g_i|^2`."""
    squares = gramian.diagonal(dim1=-2, dim2=-1)
    conflict = gramian[..., :1, 1].clamp(max=0)
    return 1 - (conflict / squares).masked_fill_(squares == 0, 0.0)


def orders(gramian: Tensor, draws: Draws) -> Tensor:
    """Return, for each task, the other tasks in a random order, ``(..., T, T - 1)``."""
    if gramian.shape[-1] == 2:  # only one order is possible
        return torch.arange(1, -1, -1, device=gramian.device).unsqueeze(-1).expand(*gramian.shape[:-1], 1)
    keys = draws.uniform(*gramian.shape)
    keys.diagonal(dim1=-2, dim2=-1).fill_(2.0)  # so that the task itself comes last, and is cut off
    return keys.argsort(-1)[..., :-1]


def surgery(gramian: Tensor, order: Tensor) -> Tensor:
    """Return PCGrad's weights ``(..., T)`` for Gramians ``(..., T, T)`` and orders ``(..., T, T - 1)``."""
    squared_norms = gramian.diagonal(dim1=-2, dim2=-1).unsqueeze(-2).expand_as(gramian)
    parts = torch.eye(gramian.shape[-1], dtype=gramian.dtype, device=gramian.device).repeat(*gramian.shape[:-2], 1, 1)
    products = gramian.clone()  # of each gradient, as projected so far, with all gradients
    for k in range(order.shape[-1]):
        other = order[..., k : k + 1]
        conflicts, square = products.gather(-1, other).clamp(max=0), squared_norms.gather(-1, other)
        steps = torch.where(square == 0, 0.0, conflicts / square)
        parts.scatter_add_(-1, other, -steps)
        products -= steps * gramian.gather(-2, other.expand_as(gramian))
    return parts.sum(-2)
