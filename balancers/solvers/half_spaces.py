r"""Find the vector nearest to a combination of gradients that has required products with them: PCD's problem.

Each required product cuts off a half-space. The dual problem is a quadratic program over multipliers
:math:`\mu \ge 0`, one for each half-space, which an interior point method solves in 24 steps plus the root of T. If
the half-spaces have no point in common, the dual problem has no minimum. The solver then still returns numbers, but
they leave a half-space unreached, which is checked.
"""

import torch
from torch import Tensor

from .interior_point import TINY, nonnegative_qp, rounding

ALLOWED = 1e-6
"""Distance by which a half-space may be missed, as a fraction of the largest distance to one at the start."""
MORE_STEPS = 8
"""Number of steps beyond those of other quadratic programs: multipliers of nearly opposed gradients are large."""


def project_on_half_spaces(gramian: Tensor, weights: Tensor, bounds: Tensor) -> Tensor:
    r"""Return the multipliers of a projection, for T gradients with the Gramian :math:`M = G G^\top`.

    .. math:: d = G^\top (w + \mu) = \arg\min_d |d - G^\top w|^2 \quad\text{s.t.}\quad g_j^\top d \ge b_j

    The multipliers solve

    .. math:: \mu \ge 0, \quad M (w + \mu) \ge b, \quad \mu_j\, (M (w + \mu) - b)_j = 0.

    :math:`d` is unique. If :math:`\mu` is not, the result is about the shortest solution, in units in which all
    gradients have norm 1. If no vector has all the required products, all multipliers are 0. Here, gradients count as
    linearly dependent if their cosines have an eigenvalue of less than about 2e-9, or 2e-5 in float32. The bound of a
    zero gradient is ignored.

    Args:
        gramian: :math:`M`, ``(..., T, T)``.
        weights: :math:`w`, ``(..., T)``.
        bounds: :math:`b`, ``(..., T)``; minus infinity for a task without a bound.

    Returns:
        ``(..., T)``, of the Gramian's type.
    """
    shape, tasks = gramian.shape[:-1], gramian.shape[-1]
    M = gramian.double().reshape(-1, tasks, tasks)
    w, b = (each.double().expand(shape).reshape(-1, tasks, 1) for each in (weights, bounds))
    free = b.isneginf()
    norms = M.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt().unsqueeze(2)
    scale = norms.reciprocal().nan_to_num(nan=torch.nan, posinf=0).masked_fill(free, 0)
    hessian, slopes = M * scale * scale.mT, torch.where(free, 0, torch.bmm(M, w) - b) * scale
    size = slopes.abs().amax(1, keepdim=True).clamp_min(TINY)
    slopes = slopes / size
    x = nonnegative_qp(hessian, slopes, rounding(gramian), MORE_STEPS)
    reached = torch.baddbmm(slopes, hessian, x).amin(1, keepdim=True) >= -ALLOWED
    return torch.where(reached, x * scale * size, 0).reshape(shape).to(gramian.dtype)
