"""IMTL-G: take a direction whose projections on all tasks' gradients are equal."""

import torch
from torch import Tensor

from .engine import GradientBalancer, register
from .solvers.equal_angle import equal_angle


@register
class IMTLGradient(GradientBalancer):
    r"""Take the direction with equal projections on all gradients: the gradient half of impartial multi-task learning.

    .. math:: \Big\langle \sum_j w_j \nabla L_j, \frac{\nabla L_i}{\lVert \nabla L_i \rVert} \Big\rangle
        \ \text{equal for all } i, \quad \sum_i w_i = 1

    Equivalently, :math:`w_i \propto (C^{+} \mathbf 1)_i / \lVert \nabla L_i \rVert` with the cosines :math:`C` of the
    gradients.

    With three tasks or more, weights may be negative, and they grow without bound as the sum by which they are divided
    nears zero. If it is negative, the common projection is too: then a step raises all losses. If it is zero, or if the
    gradients balance each other so that only the zero vector has equal projections, :math:`w_i = 1/T`. If the gradients
    are linearly dependent and no direction has equal projections, they are as nearly equal as least squares makes them.

    Args:
        fork, wrt, options: see `GradientBalancer`. The paper measures the
            gradients of the features, ``wrt=None``.

    Example::

        balancer = IMTLGradient(net.fork)
        balancer(losses).backward()
        balancer.weights.sum()  # 1

    Source: Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021, eqs. 1 and 2.
    """

    name = "imtl-g"
    summary = "Take the direction whose projections on all gradients are equal."
    reads = "gramian"
    use_when = "When all tasks should make equal progress, whatever the sizes of their gradients."
    may_ascend = True

    def solve(self, gramian: Tensor) -> Tensor:
        """Return weights of shape ``(..., T)``, whose sum is 1, for Gramians of shape ``(..., T, T)``."""
        num_tasks = gramian.shape[-1]
        norms = gramian.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
        if num_tasks == 2:  # the direction is the bisector
            inverse = torch.where(norms > 0, 1 / norms, 0.0)
            total = inverse.sum(-1, keepdim=True)
            return torch.where(total > 0, inverse / total, 1 / num_tasks)
        weights = equal_angle(gramian)
        total, size = weights.sum(-1, keepdim=True), weights.abs().sum(-1, keepdim=True)
        cancels = total.abs() <= size * num_tasks * torch.finfo(gramian.dtype).eps
        return torch.where(cancels, 1 / num_tasks, weights / total)
