"""CAGrad: improve the worst task as much as possible, close to the mean gradient."""

import torch
from torch import Tensor

from .engine import GradientBalancer, Range, option, register
from .solvers.conflict_averse import conflict_averse

STATIONARY = 1e-4
"""A point counts as Pareto stationary if g_lambda, divided by the joint norm of its parts, is at most this long."""


@register
class CAGrad(GradientBalancer):
    r"""Improve the worst task the most, within a ball around the mean gradient (conflict-averse gradient descent).

    With the mean gradient :math:`g_0`, the combined gradient :math:`g_\lambda = \sum_i \lambda_i \nabla L_i`, and the
    simplex :math:`\Delta`,

    .. math:: d = g_0 + \frac{c\,\lVert g_0 \rVert}{\lVert g_\lambda \rVert}\, g_\lambda,
        \quad \lambda = \arg\min_{\lambda \in \Delta}\
        g_\lambda^\top g_0 + c\,\lVert g_0 \rVert \lVert g_\lambda \rVert

    For :math:`c < 1` it converges to a minimum of the mean loss. Where :math:`g_\lambda` vanishes (the point is Pareto
    stationary, or a satisfied task has no gradient), the direction is the mean, :math:`d = g_0`, as in the official
    code; TorchJD's is then zero. The official code multiplies the direction by :math:`T / (1 + c^2)`; the paper and
    this class do not.

    Args:
        c: radius of the ball relative to :math:`\lVert g_0 \rVert`, 0 or more; 0.4 in the paper on NYUv2 and
            Cityscapes.
        fork, wrt, options: see `GradientBalancer`.

    Raises:
        ValueError: ``c`` is negative or not finite.

    Example::

        balancer = CAGrad(net.fork, wrt=net.trunk, c=0.4)
        balancer(losses).backward()

    Source: Liu, Liu, Jin, Stone and Liu, "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021,
    eqs. 3 and 5, algorithm 1.
    """

    name = "cagrad"
    summary = "Improve the worst task the most, within a ball around the mean gradient."
    reads = "gramian"
    use_when = "When gradients conflict, and the mean loss is what counts in the end."
    default_wrt = "parameters"
    c: float = option(0.4, at_least=0, tune=Range(0.1, 0.9))

    def solve(self, gramian: Tensor) -> Tensor:
        """Return weights of shape ``(..., T)`` for Gramians of shape ``(..., T, T)``."""
        num_tasks = gramian.shape[-1]
        shares = conflict_averse(gramian, self.c).unsqueeze(-1)
        products = gramian @ shares  # of each gradient with g_lambda
        squared_norm = shares.mT @ products
        mean_squared_norm = gramian.mean((-2, -1), keepdim=True).clamp_(min=0)
        minimum = products.mean(-2, keepdim=True) + self.c * (mean_squared_norm * squared_norm).sqrt_()
        squares = gramian.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
        trace = squares.sum(-2, keepdim=True)
        satisfied = (squares == 0).any(-2, keepdim=True) & (trace > 0)
        # A satisfied task alone makes the minimum zero. Shares that give no less are rounding errors.
        parts = (shares.square() * squares).sum(-2, keepdim=True)  # what g_lambda would measure without cancellation
        vanishes = (squared_norm <= STATIONARY**2 * parts) | (satisfied & (minimum >= 0))
        length = (mean_squared_norm / squared_norm).sqrt_()
        weights = (shares * length).mul_(self.c).add_(1 / num_tasks)
        return torch.where(vanishes, 1 / num_tasks, weights).squeeze(-1)
