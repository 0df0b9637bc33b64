"""Unit norm: scale each task's gradient to length one."""

import torch
from torch import Tensor

from .engine import GradientBalancer, register


@register
class UnitNorm(GradientBalancer):
    r"""Divide each gradient by its norm, so that all tasks pull equally hard.

    .. math:: \lambda_i = 1 / \lVert \nabla L_i \rVert

    By itself it sums the unit gradients. As the ``weighting`` of a method that combines gradients, that method
    combines them: ``MGDA(fork, weighting=UnitNorm(fork))``. A task whose gradient is zero has the weight 0.

    Args:
        fork, wrt, options: see `GradientBalancer`.

    Example::

        balancer = MGDA(net.fork, weighting=UnitNorm(net.fork))
        balancer(losses).backward()

    Source: Sener and Koltun's MGDA code offers it as the gradients' normalization "l2" (NeurIPS 2018). That code finds
    MGDA's weights for the unit gradients, but applies them to the gradients as they are. ``MGDA`` with this weighting
    applies them to the unit gradients, as LibMTL does.
    """

    name = "unit-norm"
    summary = "Scale each task's gradient to length one, and sum them."
    reads = "gramian"
    compares_tasks = False
    use_when = "When gradients differ in size by orders of magnitude; also as the weighting before a combining method."
    default_wrt = "parameters"

    def solve(self, gramian: Tensor) -> Tensor:
        """Return weights of shape ``(..., T)`` for Gramians of shape ``(..., T, T)``."""
        norms = gramian.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
        return torch.where(norms > 0, 1 / norms, 0.0)
