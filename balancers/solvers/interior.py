r"""Convex quadratic programs over :math:`x \ge 0` by an interior point method of a fixed number of steps.

Mehrotra's predictor and corrector: two solves with one Cholesky factor a step, about a dozen steps whatever the
problem, and no decision that the host has to take. Three habits make the fixed number safe. The barrier never falls
below the accuracy asked for, so that further steps stay where they are instead of dividing by zero. The second-order
correction fades when the predictor can't go far (Colombo and Gondzio 2008), and a step keeps its distance from the
boundary; without them, a few problems in ten thousand stall. Where the solution is not unique, a ridge on `x` chooses
about the shortest; the last steps drop it from the gradient and keep it in the matrix (a proximal point method,
Friedlander and Orban 2012), so that it costs no accuracy elsewhere.

Sources: Mehrotra, "On the Implementation of a Primal-Dual Interior Point Method", SIAM J. Optim. 1992; Colombo and
Gondzio, "Further Development of Multiple Centrality Correctors for Interior Point Methods", Comput. Optim. Appl. 2008;
Cartis, "Some Disadvantages of a Mehrotra-Type Primal-Dual Corrector Interior Point Algorithm for Linear Programming",
Appl. Numer. Math. 2009; Friedlander and Orban, "A Primal-Dual Regularized Interior-Point Method for Convex Quadratic
Programs", Math. Prog. Comput. 2012.
"""

import torch
from torch import Tensor

STEPS = 14
PROXIMAL_STEPS = 3
GAP = 1e-10
"""The duality gap :math:`x^\\top z` at which the barrier stays."""
TO_BOUNDARY = 0.96
"""The part of the way to the boundary that a step goes. With the usual 0.99 and more, a problem in some ten thousand
comes so close to it that the steps go round in a circle (Cartis 2009)."""
RIDGE = 1e-11
EQUAL = 16
"""Gradients within this many roundings of each other are equal."""
TINY = 1e-150
"""Stands in for a norm of zero; far below any norm, and its square is not zero."""


def rounding(gramian: Tensor) -> float:
    """How far below zero rounding may have put an eigenvalue of a Gramian whose diagonal is 1."""
    return gramian.shape[-1] * torch.finfo(gramian.dtype).eps


def nonnegative_qp(hessian: Tensor, linear: Tensor, indefinite: float) -> Tensor:
    r"""The :math:`x \ge 0` that minimises :math:`\tfrac12 x^\top Q x + q^\top x`, :math:`Q` positive semidefinite.

    Args:
        hessian: :math:`Q`, ``(B, T, T)``, its diagonal about 1.
        linear: :math:`q`, ``(B, T, 1)``, its largest entry about 1.
        indefinite: how far below zero an eigenvalue of ``hessian`` may be, from rounding.
    """
    matrix = hessian.clone()
    diagonal = matrix.diagonal(dim1=1, dim2=2).unsqueeze(2)
    diagonal += max(RIDGE, 4 * indefinite)
    ridged, curvature = matrix.clone(), diagonal.clone()
    x, z = torch.ones_like(linear), torch.ones_like(linear)
    x_row, tasks = x.mT, x.shape[1]
    for step in range(STEPS):
        gradient = torch.baddbmm(linear, hessian if step >= STEPS - PROXIMAL_STEPS else ridged, x)
        gap, ratio = torch.bmm(x_row, z), z / x
        torch.add(curvature, ratio, out=diagonal)
        factor = torch.linalg.cholesky_ex(matrix)[0]

        # The predictor aims at x z = 0: x goes to x (1 - u) and z to z u, which misses x z u (1 - u).
        u = torch.cholesky_solve(gradient, factor) / x
        low, high = torch.aminmax(u, dim=1, keepdim=True)
        length = torch.maximum(high, (low - 1).neg_()).clamp_min_(1).reciprocal_()
        second = torch.addcmul(u, u, u, value=-1).mul_(z)
        target = ((length - 1).square_() * gap).clamp_min_(GAP) / tasks

        # The corrector aims at x z = target, less what the predictor would have missed.
        pull = torch.addcmul(target / x, second, (2 * length).clamp_max_(1), value=-1)
        x_down = torch.cholesky_solve(gradient - pull, factor)
        z_down = torch.addcmul(z - pull, ratio, x_down, value=-1)
        blocked = torch.maximum(x_down / x, z_down / z).amax(1, keepdim=True).clamp_min_(TO_BOUNDARY)
        x.addcdiv_(x_down, blocked, value=-TO_BOUNDARY)
        z.addcdiv_(z_down, blocked, value=-TO_BOUNDARY)
    return x


def share_among_equals(gramian: Tensor, values: Tensor, eps: float) -> Tensor:
    """The mean of ``values`` ``(B, T, 1)`` over the tasks whose gradient equals the task's own up to rounding.

    An objective can't tell such tasks apart, and rounding would decide between them.
    """
    squares = gramian.diagonal(dim1=1, dim2=2)
    sums = squares.unsqueeze(2) + squares.unsqueeze(1)
    equal = (torch.add(sums, gramian, alpha=-2) <= EQUAL * eps * sums).to(values.dtype)
    return torch.bmm(equal, values) / equal.sum(2, keepdim=True)
