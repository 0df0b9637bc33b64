r"""Find the shortest convex combination of gradients: MGDA's problem.

The problem is a quadratic program on the simplex. Scaling by the gradients' norms turns it into one over
:math:`x \ge 0`; the simplex constraint becomes a square added to the objective (see `minimum_norm`). An interior
point method then needs 16 steps plus the root of T, for any Gramian. Frank-Wolfe, the usual choice, takes more steps
the more accurate the result must be. Two tasks have a closed form.
"""

import torch
from torch import Tensor

from .interior_point import EQUAL, TINY, nonnegative_qp, rounding, share_among_equals

SMALLEST = 1e-12
"""Smallest norm used for scaling, as a fraction of the largest norm."""


def minimum_norm(gramian: Tensor) -> Tensor:
    r"""Return the weights of the shortest convex combination of T gradients with the Gramian :math:`M = G G^\top`.

    .. math:: \lambda = \arg\min_\lambda \lambda^\top M \lambda \quad\text{s.t.}\quad
              \lambda \ge 0,\ \textstyle\sum_i \lambda_i = 1

    With two tasks, :math:`\lambda_1 = \frac{g_2^\top(g_2 - g_1)}{|g_1 - g_2|^2}`, clipped to :math:`[0, 1]`.

    With more tasks, let :math:`\lambda_i = s_i x_i` with :math:`s_i = \min_j |g_j| / |g_i|`, so that
    :math:`C_{ij} = M_{ij} / (|g_i||g_j|)` has a diagonal of 1. The minimum of
    :math:`\tfrac12 x^\top C x + \tfrac12 (s^\top x - 1)^2` over :math:`x \ge 0` then has the direction of the solution:
    the first term is homogeneous, so that only :math:`s^\top x` moves away from 1 (Lawson and Hanson 1974, ch. 23).

    If many combinations are equally short (all gradients zero, more tasks than parameters), the result lies in the
    middle of them. Equal gradients get equal weights. A zero gradient gets all the weight.

    Args:
        gramian: ``(..., T, T)``.

    Returns:
        ``(..., T)``, of the Gramian's type.

    Source: Désidéri, "Multiple-Gradient Descent Algorithm (MGDA) for Multiobjective Optimization", Comptes Rendus
    Mathématique 2012; Sener and Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018, eq. 3
    and algorithm 1 (two tasks).
    """
    tasks, eps = gramian.shape[-1], torch.finfo(gramian.dtype).eps
    M = gramian.double()
    squares = M.diagonal(dim1=-2, dim2=-1)
    if tasks == 1:
        weights = torch.ones_like(squares)
    elif tasks == 2:
        # A rounding of the shorter one is added, so that equal gradients get equal weights.
        shorter = squares.amin(-1, keepdim=True)
        share = (squares.flip(-1) - M[..., 0, 1:]).add_(shorter, alpha=2 * EQUAL * eps).add_(TINY**2)
        weights = (share / share.sum(-1, keepdim=True)).clamp_(0, 1)
    else:
        M = M.reshape(-1, tasks, tasks)
        norms = M.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt().unsqueeze(2)
        norms = torch.maximum(norms, SMALLEST * norms.amax(1, keepdim=True)).clamp_min_(TINY)
        scale = norms.amin(1, keepdim=True) / norms
        hessian = M / norms / norms.mT + scale * scale.mT
        x = share_among_equals(M, nonnegative_qp(hessian, -scale, rounding(gramian)), eps) * scale
        weights = (x / x.sum(1, keepdim=True)).reshape(squares.shape)
    return weights.to(gramian.dtype)
