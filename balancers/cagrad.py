"""CAGrad: improve the worst task as much as possible, close to the mean gradient."""

import math
from typing import Any

from torch import Tensor

from .engine.base import Range
from .engine.gramian import GramianBalancer
from .engine.method_registry import register
from .solvers.conflict_averse import conflict_averse

STATIONARY = 1e-4
"""A point counts as Pareto stationary if g_lambda, divided by the joint norm of all gradients, is at most this long."""


@register
class CAGrad(GramianBalancer):
    r"""Improve the worst task the most, within a ball around the mean gradient (conflict-averse gradient descent).

    With the mean gradient :math:`g_0`, the combined gradient :math:`g_\lambda = \sum_i \lambda_i \nabla L_i`, and the
    simplex :math:`\Delta`,

    .. math:: d = g_0 + \frac{c\,\lVert g_0 \rVert}{\lVert g_\lambda \rVert}\, g_\lambda,
        \quad \lambda = \arg\min_{\lambda \in \Delta}\
        g_\lambda^\top g_0 + c\,\lVert g_0 \rVert \lVert g_\lambda \rVert

    For :math:`c < 1` it converges to a minimum of the mean loss. At a Pareto-stationary point :math:`g_\lambda`
    vanishes, and all weights are zero. The official code divides the direction by :math:`1 + c^2`; the paper and this
    class do not.

    Args:
        c: radius of the ball relative to :math:`\lVert g_0 \rVert`, 0 or more; 0.4 in the paper on NYUv2 and
            Cityscapes.
        fork, wrt, tasks, update_every, accumulate, check_finite: see `CombiningBalancer`.

    Raises:
        ValueError: ``c`` is negative or not finite.

    Source: Liu, Liu, Jin, Stone and Liu, "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021,
    eqs. 3 and 5, algorithm 1.
    """

    name = "cagrad"
    summary = "Improve the worst task the most, within a ball around the mean gradient."
    use_when = "When gradients conflict, and the mean loss is what counts in the end."
    default_wrt = "parameters"
    tunable = {"c": Range(0.1, 0.9)}

    def __init__(self, *args: Any, c: float = 0.4, **options: Any) -> None:
        super().__init__(*args, **options)
        if not (math.isfinite(c) and c >= 0):
            raise ValueError(f"c is {c!r}; expected a finite number, 0 or more")
        self.c = c

    def solve(self, gramian: Tensor) -> Tensor:
        """Return weights of shape ``(..., T)`` for Gramians of shape ``(..., T, T)``."""
        shares = conflict_averse(gramian, self.c).unsqueeze(-1)
        squared_norm = shares.mT @ gramian @ shares
        mean_squared_norm = gramian.mean((-2, -1), keepdim=True).clamp_(min=0)
        trace = gramian.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        length = (mean_squared_norm / squared_norm).sqrt_()
        weights = (shares * length).mul_(self.c).add_(1 / gramian.shape[-1])
        return weights.masked_fill_(squared_norm <= STATIONARY**2 * trace, 0).squeeze(-1)
