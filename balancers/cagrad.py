"""CAGrad: the best direction for the worst task, near the mean gradient."""

import math
from typing import Any

from torch import Tensor

from .engine.base import Range
from .engine.gramian import GramianBalancer
from .engine.method_registry import register
from .solvers.conflict_averse import conflict_averse

STATIONARY = 1e-4
"""A combination shorter than this, relative to the gradients' joint norm, is taken for a Pareto-stationary point's."""


@register
class CAGrad(GramianBalancer):
    r"""Conflict-averse gradient descent: the most for the task that gains least, in a ball around the mean gradient.

    With the mean gradient :math:`g_0` and :math:`g_\lambda = \sum_i \lambda_i \nabla L_i`,

    .. math:: d = g_0 + \frac{c\,\lVert g_0 \rVert}{\lVert g_\lambda \rVert}\, g_\lambda,
        \quad \lambda = \arg\min_{\lambda \in \Delta}\
        g_\lambda^\top g_0 + c\,\lVert g_0 \rVert \lVert g_\lambda \rVert

    For :math:`c < 1` it converges to a minimum of the mean loss. Where :math:`g_\lambda` vanishes, at a
    Pareto-stationary point, all weights are zero. The official code divides the direction by :math:`1 + c^2`; here, as
    in the paper, it is not.

    Args:
        c: the ball's radius relative to :math:`\lVert g_0 \rVert`, 0 or more; the paper's is 0.4 on NYUv2 and
            Cityscapes.
        fork, wrt, tasks, update_every, accumulate, check_finite: see `CombiningBalancer`.

    Raises:
        ValueError: ``c`` is negative or not finite.

    Source: Liu, Liu, Jin, Stone and Liu, "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021,
    eqs. 3 and 5, algorithm 1.
    """

    name = "cagrad"
    summary = "Improves the worst task the most, within a ball around the mean gradient."
    use_when = "Gradients conflict, and the mean loss is what counts in the end."
    default_wrt = "parameters"
    tunable = {"c": Range(0.1, 0.9)}

    def __init__(self, *args: Any, c: float = 0.4, **options: Any) -> None:
        super().__init__(*args, **options)
        if not (math.isfinite(c) and c >= 0):
            raise ValueError(f"c is {c!r}; expected a finite number, 0 or more")
        self.c = c

    def solve(self, gramian: Tensor) -> Tensor:
        """Weights ``(..., T)``."""
        shares = conflict_averse(gramian, self.c).unsqueeze(-1)
        squared_norm = shares.mT @ gramian @ shares
        mean_squared_norm = gramian.mean((-2, -1), keepdim=True).clamp_(min=0)
        trace = gramian.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        length = (mean_squared_norm / squared_norm).sqrt_()
        weights = (shares * length).mul_(self.c).add_(1 / gramian.shape[-1])
        return weights.masked_fill_(squared_norm <= STATIONARY**2 * trace, 0).squeeze(-1)
