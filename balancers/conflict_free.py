"""ConFIG: take a direction at the same angle to all gradients, as long as the sum of their projections onto it."""

import torch
from torch import Tensor

from .engine import GradientBalancer, register
from .solvers.equal_angle import equal_angle


@register
class ConFIG(GradientBalancer):
    r"""Take the direction at the same angle to all gradients (conflict-free inverse gradient).

    Its length is the sum of the gradients' projections onto it. With the gradients' directions
    :math:`u_i = \nabla L_i / \lVert \nabla L_i \rVert` as rows of :math:`U`,

    .. math:: d = \Big( \sum_i \nabla L_i^\top \hat d \Big)\, \hat d, \quad
        \hat d = \frac{U^{+} \mathbf 1}{\lVert U^{+} \mathbf 1 \rVert}

    This needs only the cosines :math:`C = U U^\top`, because :math:`U^{+} \mathbf 1 = U^\top C^{+} \mathbf 1`. A task
    whose gradient is zero gets weight 0. Weights may be negative.

    If the gradients are linearly dependent, there may be no direction at the same angle to all. Then :math:`\hat d` is
    the one that least squares finds, and a step along it may raise a loss. If the gradients balance each other (two
    opposed ones, three at 120 degrees), the direction is zero; with three tasks or more, so are all weights.

    Args:
        fork, wrt, options: see `GradientBalancer`.

    Example::

        balancer = ConFIG(None, wrt=net, tasks=["equation", "boundary"])  # no fork: the losses share parameters alone
        balancer(losses).backward()

    Source: Liu, Chu and Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks", ICLR
    2025, eq. 2.
    """

    name = "config"
    summary = "Take the direction at the same angle to all gradients, as long as the sum of their projections onto it."
    reads = "gramian"
    use_when = "For physics-informed networks, where the gradients of the losses differ by orders of magnitude."
    default_wrt = "parameters"
    may_ascend = True

    def solve(self, gramian: Tensor) -> Tensor:
        """Return weights of shape ``(..., T)`` for Gramians of shape ``(..., T, T)``."""
        return conflict_free(gramian)


def conflict_free(gramian: Tensor) -> Tensor:
    """Return ConFIG's weights, ``(..., T)``, for Gramians ``(..., T, T)``."""
    if gramian.shape[-1] == 2:  # the direction is the bisector
        norms = gramian.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
        present = (norms > 0).sum(-1, keepdim=True).clamp(min=1)
        return norms.sum(-1, keepdim=True) / present * torch.where(norms > 0, 1 / norms, 0.0)
    weights = equal_angle(gramian)
    products = (gramian @ weights.unsqueeze(-1)).squeeze(-1)
    squared_norm = (weights * products).sum(-1, keepdim=True)
    return torch.where(squared_norm > 0, products.sum(-1, keepdim=True) / squared_norm * weights, 0.0)
