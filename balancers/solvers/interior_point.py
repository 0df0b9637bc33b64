r"""Solve convex quadratic programs over :math:`x \ge 0` by an interior point method with a fixed number of steps.

The steps are Newton's method on the optimality conditions. Each step aims at an :math:`x_i z_i` of a twentieth of the
current mean. It takes one Cholesky factor, one solve and fifteen operator calls, and the host decides nothing. A
predictor-corrector method (Mehrotra) would save a third of the steps but more than double the calls of each. It also
makes a few problems in ten thousand go round in circles near the boundary (Cartis 2009); steps that aim at the centre
do not.

Two measures make the fixed number of steps safe. The barrier never falls below the required accuracy, so that further
steps stay where they are instead of dividing by zero. If the solution is not unique, a ridge on :math:`x` selects about
the shortest one. The last steps drop the ridge from the gradient but keep it in the matrix (a proximal point method,
Friedlander and Orban 2012), so that it costs no accuracy elsewhere.

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
"""Number of last steps that drop the ridge from the gradient."""
GAP = 1e-10
"""Duality gap :math:`x^\\top z` at which the barrier stops falling."""
TO_CENTRE = 0.05
"""Factor by which a step shrinks the duality gap if no boundary cuts the step short."""
TO_BOUNDARY = 0.99
"""Largest fraction of the way to the boundary that a step may go."""
RIDGE = 1e-10
"""Smallest ridge."""
EQUAL = 16
"""Number of roundings within which two gradients count as equal."""
TINY = 1e-150
"""Replacement for a norm of zero: far below any other norm, but its square is not zero."""


def rounding(gramian: Tensor) -> float:
    """Return how far below zero rounding may have moved an eigenvalue of a Gramian whose diagonal is 1."""
    return gramian.shape[-1] * torch.finfo(gramian.dtype).eps


def ridge(indefinite: float) -> float:
    """Return the ridge for a matrix in which rounding may have moved an eigenvalue this far below zero."""
    return max(RIDGE, 4 * indefinite)


def steps(tasks: int) -> int:
    """Return the number of steps that reaches the required accuracy on the worst Gramians tried."""
    return 16 + math.isqrt(tasks)


def nonnegative_qp(hessian: Tensor, linear: Tensor, indefinite: float, more_steps: int = 0) -> Tensor:
    r"""Return the :math:`x \ge 0`, ``(B, T, 1)``, that minimises :math:`\tfrac12 x^\top Q x + q^\top x`.

    Args:
        hessian: :math:`Q`, ``(B, T, T)``, positive semidefinite, with a diagonal of about 1.
        linear: :math:`q`, ``(B, T, 1)``, with a largest entry of about 1.
        indefinite: how far below zero rounding may have moved an eigenvalue of ``hessian``.
        more_steps: steps beyond the usual number, for solutions far above 1. Half of them drop the ridge.
    """
    batch, tasks = linear.shape[:2]
    matrix = hessian.clone()
    diagonal = matrix.diagonal(dim1=1, dim2=2).unsqueeze(2)
    diagonal += ridge(indefinite)
    ridged, curvature = matrix.clone(), diagonal.clone()
    # x and z share one tensor, and their decreases another, so that one call can work on both. Columns are transposed
    # rows: with these strides, the solver of triangular systems makes no copies.
    state = linear.new_ones(batch, 1, 2 * tasks).mT
    down, parts = torch.empty_like(state), torch.empty_like(state)
    (x, z), (x_down, z_down) = state.split(tasks, 1), down.split(tasks, 1)
    gradient, ratio, pull = linear.new_empty(3, batch, 1, tasks).mT.unbind()
    x_row, floor = x.mT, linear.new_full((1, 1, 1), GAP / tasks)
    target, blocked = linear.new_empty(2, batch, 1, 1).unbind()
    cholesky, count = Cholesky(matrix), steps(tasks) + more_steps
    without_ridge = PROXIMAL_STEPS + more_steps // 2
    for step in range(count):
        torch.baddbmm(linear, hessian if step >= count - without_ridge else ridged, x, out=gradient)
        torch.div(z, x, out=ratio)
        torch.add(curvature, ratio, out=diagonal)
        # Solve x z = target to first order: (Q + z / x) x_down = gradient - target / x.
        torch.baddbmm(floor, x_row, z, alpha=TO_CENTRE / tasks, out=target)
        torch.div(target, x, out=pull)
        cholesky.solve(matrix, gradient.sub_(pull), half=gradient, out=x_down)
        torch.addcmul(torch.sub(z, pull, out=pull), ratio, x_down, value=-1, out=z_down)
        torch.amax(torch.div(down, state, out=parts), 1, keepdim=True, out=blocked)
        state.addcdiv_(down, blocked.clamp_min_(TO_BOUNDARY), value=-TO_BOUNDARY)
    return state[:, :tasks]


def share_among_equals(gramian: Tensor, values: Tensor, eps: float) -> Tensor:
    """Replace each task's value by the mean over all tasks whose gradient is equal to its own up to rounding.

    An objective can't tell such tasks apart, so that rounding would decide between them.

    Args:
        gramian: ``(B, T, T)``.
        values: ``(B, T, 1)``.
        eps: the rounding of the Gramian's original type.
    """
    squares = gramian.diagonal(dim1=1, dim2=2)
    sums = squares.unsqueeze(2) + squares.unsqueeze(1)
    equal = (torch.add(sums, gramian, alpha=-2) <= EQUAL * eps * sums).to(values.dtype)
    return torch.bmm(equal, values) / equal.sum(2, keepdim=True)
