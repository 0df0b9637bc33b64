r"""Convex quadratic programs over :math:`x \ge 0` by an interior point method of a fixed number of steps.

Newton's method on the optimality conditions, each step sending :math:`x_i z_i` to a twentieth of its mean: one Cholesky
factor, one solve, fifteen operator calls, and no decision that the host has to take. A predictor and a corrector
(Mehrotra) would save a third of the steps and more than double their calls; and a few problems in ten thousand then go
round in circles near the boundary (Cartis 2009), which steps that aim at the centre do not. Two habits make the fixed
number safe. The barrier never falls below the accuracy asked for, so that further steps stay where they are instead of
dividing by zero. Where the solution is not unique, a ridge on `x` chooses about the shortest; the last steps drop it
from the gradient and keep it in the matrix (a proximal point method, Friedlander and Orban 2012), so that it costs no
accuracy elsewhere.

Sources: Wright, "Primal-Dual Interior-Point Methods", SIAM 1997, ch. 5 (path-following); Cartis, "Some Disadvantages of
a Mehrotra-Type Primal-Dual Corrector Interior Point Algorithm for Linear Programming", Appl. Numer. Math. 2009;
Friedlander and Orban, "A Primal-Dual Regularized Interior-Point Method for Convex Quadratic Programs", Math. Prog.
Comput. 2012.
"""

import math

import torch
from torch import Tensor

from .cholesky import Cholesky

PROXIMAL_STEPS = 2
GAP = 1e-10
"""The duality gap :math:`x^\\top z` at which the barrier stays."""
TO_CENTRE = 0.05
"""What becomes of the duality gap in a step that no boundary cuts short."""
TO_BOUNDARY = 0.99
"""The part of the way to the boundary that a step goes."""
RIDGE = 1e-10
EQUAL = 16
"""Gradients within this many roundings of each other are equal."""
TINY = 1e-150
"""Stands in for a norm of zero; far below any norm, and its square is not zero."""


def rounding(gramian: Tensor) -> float:
    """How far below zero rounding may have put an eigenvalue of a Gramian whose diagonal is 1."""
    return gramian.shape[-1] * torch.finfo(gramian.dtype).eps


def steps(tasks: int) -> int:
    """As many as reach the accuracy asked for from the worst Gramians tried."""
    return 16 + math.isqrt(tasks)


def nonnegative_qp(hessian: Tensor, linear: Tensor, indefinite: float) -> Tensor:
    r"""The :math:`x \ge 0` that minimises :math:`\tfrac12 x^\top Q x + q^\top x`, :math:`Q` positive semidefinite.

    Args:
        hessian: :math:`Q`, ``(B, T, T)``, its diagonal about 1.
        linear: :math:`q`, ``(B, T, 1)``, its largest entry about 1.
        indefinite: how far below zero an eigenvalue of ``hessian`` may be, from rounding.
    """
    batch, tasks = linear.shape[:2]
    matrix = hessian.clone()
    diagonal = matrix.diagonal(dim1=1, dim2=2).unsqueeze(2)
    diagonal += max(RIDGE, 4 * indefinite)
    ridged, curvature = matrix.clone(), diagonal.clone()
    # x and z lie in one tensor, and how far each is to go down in another: what concerns both is one call.
    state = linear.new_ones(batch, 2 * tasks, 1)
    down, parts = torch.empty_like(state), torch.empty_like(state)
    (x, z), (x_down, z_down) = state.split(tasks, 1), down.split(tasks, 1)
    gradient, ratio, pull = linear.new_empty(3, batch, tasks, 1).unbind()
    x_row, floor = x.mT, linear.new_full((1, 1, 1), GAP / tasks)
    target, blocked = linear.new_empty(2, batch, 1, 1).unbind()
    cholesky, count = Cholesky(matrix), steps(tasks)
    for step in range(count):
        torch.baddbmm(linear, hessian if step >= count - PROXIMAL_STEPS else ridged, x, out=gradient)
        torch.div(z, x, out=ratio)
        torch.add(curvature, ratio, out=diagonal)
        # x z = target, to first order: (Q + z / x) x_down = gradient - target / x.
        torch.baddbmm(floor, x_row, z, alpha=TO_CENTRE / tasks, out=target)
        torch.div(target, x, out=pull)
        cholesky.solve(matrix, gradient.sub_(pull), half=gradient, out=x_down)
        torch.addcmul(torch.sub(z, pull, out=pull), ratio, x_down, value=-1, out=z_down)
        torch.amax(torch.div(down, state, out=parts), 1, keepdim=True, out=blocked)
        state.addcdiv_(down, blocked.clamp_min_(TO_BOUNDARY), value=-TO_BOUNDARY)
    return state[:, :tasks]


def share_among_equals(gramian: Tensor, values: Tensor, eps: float) -> Tensor:
    """The mean of ``values`` ``(B, T, 1)`` over the tasks whose gradient equals the task's own up to rounding.

    An objective can't tell such tasks apart, and rounding would decide between them.
    """
    squares = gramian.diagonal(dim1=1, dim2=2)
    sums = squares.unsqueeze(2) + squares.unsqueeze(1)
    equal = (torch.add(sums, gramian, alpha=-2) <= EQUAL * eps * sums).to(values.dtype)
    return torch.bmm(equal, values) / equal.sum(2, keepdim=True)
