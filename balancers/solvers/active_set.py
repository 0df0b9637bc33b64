r"""Find the shortest combination of gradients with bounded weights, on the CPU, where the host may read values.

The method guesses which entries of :math:`t \ge y` are above their bounds, solves the linear system for them, and then
corrects all wrong guesses together. This is Newton's method on the nonsmooth equation :math:`\min(t - y, Q t) = 0`. It
stops when no guess is wrong, which takes 1 to 5 systems for most Gramians; an interior point method needs twenty.

The guesses can go round in circles if :math:`Q` is nearly singular. So their number is limited, the optimality
conditions are checked, and the interior point method solves the problems that fail the check. Both methods use the same
ridge, and proximal steps to undo it. If there are many solutions, both choose about the shortest :math:`t - y`.

Sources: Kostreva, "Block Pivot Methods for Solving the Complementarity Problem", Linear Algebra and its Applications
1978; Hintermüller, Ito and Kunisch, "The Primal-Dual Active Set Strategy as a Semismooth Newton Method", SIAM Journal
on Optimization 2002.
"""

from typing import Any

import torch
from torch import Tensor

from .cholesky import Cholesky
from .interior_point import PROXIMAL_STEPS, nonnegative_qp, ridge

GUESSES = 6
"""Largest number of guesses. Gramians of full rank need up to 6 with 100 tasks."""
ZERO = 1e-14
"""Size up to which an entry counts as zero in a guess."""
SOLVED = 1e-13
"""Residual of the optimality conditions at which the proximal steps stop."""
ALLOWED = 1e-10
"""Largest residual of a solution that passes the check."""


def can_read(tensor: Tensor) -> bool:
    """Return whether the host may branch on values: those of a plain CPU tensor that no compiler traces."""
    return tensor.device.type == "cpu" and type(tensor) is Tensor and not torch.compiler.is_compiling()


def read(scalar: Tensor) -> float:
    """Return the value of a scalar on the CPU, without a call of an operator."""
    value: Any = scalar.tolist()
    return float(value)


def shortest_above(hessian: Tensor, bounds: Tensor, slopes: Tensor, indefinite: float) -> Tensor:
    r"""Return :math:`t - y` for the :math:`t \ge y` that minimise :math:`t^\top Q t`, K of them for each :math:`Q`.

    Args:
        hessian: :math:`Q`, ``(N, T, T)``, positive semidefinite, with a diagonal of about 1.
        bounds: :math:`y` as rows, ``(N, K, T)``, each with a largest entry of about 1.
        slopes: :math:`y Q`, ``(N, K, T)``.
        indefinite: how far below zero rounding may have moved an eigenvalue of ``hessian``.

    Returns:
        ``(N, K, T)``, not negative.
    """
    identity = torch.eye(bounds.shape[2], dtype=bounds.dtype)
    excess = torch.add(hessian, identity, alpha=ridge(indefinite) - 1)  # over the identity, of Q with the ridge
    above, right, fall = torch.empty((3, *bounds.shape), dtype=bounds.dtype).unbind()
    rows, columns, excesses = above.unsqueeze(2), above.unsqueeze(3), excess.unsqueeze(1)
    right_column, fall_column = right.unsqueeze(2).mT, fall.unsqueeze(2).mT  # with the strides that LAPACK wants
    matrix = excess.new_empty((*bounds.shape, bounds.shape[2]))
    cholesky = Cholesky(matrix)
    guess = torch.lt(slopes, -ZERO, out=above).tolist()
    for _ in range(GUESSES):
        # The rows and columns of entries that are guessed to be at their bounds become those of the identity.
        torch.addcmul(identity, excesses, torch.mul(rows, columns, out=matrix), out=matrix)
        torch.mul(slopes, above, out=right)
        cholesky.solve(matrix, right_column, half=fall_column, out=fall_column)
        # Q t minus t - y: one of the two is zero.
        torch.lt(torch.baddbmm(slopes, fall, excess, alpha=-1), -ZERO, out=above)
        last, guess = guess, above.tolist()
        if guess == last:
            break
    t = bounds - fall
    x, gains, error, allowed = t - bounds, torch.bmm(t, hessian), 0.0, max(ALLOWED, indefinite)
    for _ in range(PROXIMAL_STEPS):
        if error > allowed:  # without the ridge, some guesses are wrong
            torch.lt(gains - x, -ZERO, out=above)
            torch.addcmul(bounds, x, above, out=t)
            torch.bmm(t, hessian, out=gains)
            cholesky.factor(torch.addcmul(identity, excesses, torch.mul(rows, columns, out=matrix), out=matrix))
        torch.mul(gains, above, out=right)
        cholesky.substitute(right_column, half=fall_column, out=fall_column)
        x, gains = t.sub_(fall) - bounds, torch.bmm(t, hessian)
        error = read(torch.minimum(x, gains).abs_().amax())
        if error <= max(SOLVED, indefinite / 1000):
            break
    if not error <= allowed:  # also where it is NaN
        passed = torch.minimum(x, gains).abs_().amax(2) <= allowed
        n, k = passed.logical_not_().nonzero(as_tuple=True)
        x[n, k] = nonnegative_qp(hessian[n], slopes[n, k].unsqueeze(2), indefinite).squeeze(2)
    return x.clamp_min_(0)
