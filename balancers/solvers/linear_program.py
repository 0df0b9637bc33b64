r"""Maximise a linear function on the simplex under linear inequalities: EPO's problem.

The solver is an interior point method with a fixed number of steps. It never has to look for a feasible point: a
variable :math:`t \ge 0` makes up for what a constraint lacks, at a price that no feasible problem pays. The price tells
which problems are not feasible. All weights have to be positive up to the last step, so where many weights are optimal
the result lies in the middle of them. A simplex method would return a corner that rounding chooses.

The matrices of the last steps are nearly singular. They are not formed; Householder reflections of their root give the
factor, without the loss of digits that forming them would cause. Two tasks have a closed form.

Sources: Wright, "Primal-Dual Interior-Point Methods", SIAM 1997, ch. 5 (path-following); Han and Mangasarian, "Exact
penalty functions in nonlinear programming", Mathematical Programming 1979 (the price).
"""

import math

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from .interior_point import TINY, TO_BOUNDARY

PRICE = 1e7
"""The cost of missing a constraint by one unit, where the objective's coefficients differ by at most 1."""
ALLOWED = 1e-7
"""Lack that counts as rounding, as a fraction of the constraint's largest coefficient."""
GAP = 1e-9
"""Duality gap at which the barrier stops falling, for the same objective."""
TO_CENTRE = 0.05
"""Factor by which a step shrinks the duality gap if no boundary cuts the step short."""


def steps(tasks: int) -> int:
    """Return the number of steps that reaches the required accuracy on the worst problems tried."""
    return 16 + 4 * math.isqrt(tasks)


def maximise_on_simplex(objective: Tensor, rows: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the weights of T tasks that solve a linear program with m constraints, and whether there are any.

    .. math:: \max_\alpha c^\top \alpha \quad\text{s.t.}\quad
              A \alpha \ge b, \quad \alpha \ge 0, \quad \textstyle\sum_i \alpha_i = 1

    The objective is within 1e-9 of its maximum, in units of the difference between the largest and the smallest
    :math:`c_i`. A constraint counts as met if it lacks up to 1e-7 of the largest :math:`|A_{ji} - b_j|`. If many
    weights are optimal, the result lies in the middle of them.

    Args:
        objective: :math:`c`, ``(..., T)``.
        rows: :math:`A`, ``(..., m, T)``.
        bounds: :math:`b`, ``(..., m)``; minus infinity for a constraint that does not count.

    Returns:
        The weights, ``(..., T)``, and a bool tensor ``(...)``, false where no weights meet the constraints. These
        weights, and those for numbers that are not finite, mean nothing.
    """
    shape, tasks = objective.shape, objective.shape[-1]
    c, A, b = objective.double(), rows.double(), bounds.double().unsqueeze(-1)
    # The weights sum to 1, so A w >= b is (A - b) w >= 0. A constraint that does not count becomes 1 >= 0.
    A = torch.where(b.isneginf(), 1, A - b)
    A = A / A.abs().amax(-1, keepdim=True).clamp_min(TINY)
    c = c - c.amax(-1, keepdim=True)
    c = c / c.amin(-1, keepdim=True).neg().clamp_min(TINY)
    if tasks == 1:
        weights = torch.ones_like(c)
    elif tasks == 2:
        weights = _on_segment(c, A)
    else:
        weights = _interior(c.reshape(-1, tasks), A.reshape(-1, A.shape[-2], tasks)).reshape(shape)
    lack = (A @ weights.unsqueeze(-1)).squeeze(-1).amin(-1).neg()
    return weights.to(objective.dtype), lack <= ALLOWED


def _on_segment(c: Tensor, A: Tensor) -> Tensor:
    """Return the weights of two tasks, ``(..., 2)``, by the bounds that each constraint sets to the first weight."""
    slopes, start = A[..., 0] - A[..., 1], A[..., 1]
    ends = -start / slopes
    low = torch.where(slopes > 0, ends, 0).amax(-1, keepdim=True).clamp_min(0)
    high = torch.where(slopes < 0, ends, 1).amin(-1, keepdim=True).clamp_max(1)
    gain = c[..., :1] - c[..., 1:]
    middle = (low + high) / 2
    first = torch.where((gain == 0) | (low > high), middle, torch.where(gain > 0, high, low)).clamp(0, 1)
    return torch.cat([first, 1 - first], -1)


def _interior(c: Tensor, A: Tensor) -> Tensor:
    r"""Return the weights, ``(N, T)``, for ``c`` of shape ``(N, T)`` and ``A`` of shape ``(N, m, T)``, both scaled.

    With the price M, and :math:`y` for all weights but the last, and for :math:`M t`, the problem is

    .. math:: \max_y q^\top y \quad\text{s.t.}\quad p = p_0 + K y \ge 0,

    where :math:`p` has the weights, :math:`M t`, and what each constraint has left, :math:`A \alpha + t`. A step of
    Newton's method that aims at :math:`p_i d_i = \mu`, for the multipliers :math:`d \ge 0`, solves

    .. math:: K^\top \mathrm{diag}(d / p)\, K\, \Delta y = q + K^\top (\mu / p), \qquad
              \Delta p = K \Delta y, \quad d + \Delta d = (\mu - d\, \Delta p) / p.
    """
    batch, m, tasks = A.shape
    identity = torch.eye(tasks, dtype=c.dtype, device=c.device)
    price = identity[-1:].expand(batch, 1, tasks)
    to_weights = torch.cat([identity[:-1], identity[-1:] - 1])  # the last weight is 1 minus the others
    to_left = torch.cat([A[..., :-1] - A[..., -1:], A.new_full((batch, m, 1), 1 / PRICE)], -1)
    K = torch.cat([to_weights.expand(batch, tasks, tasks), price, to_left], 1)
    q = torch.cat([c[:, :-1] - c[:, -1:], c.new_full((batch, 1), -1)], 1).unsqueeze(2)

    left = A.mean(2)
    lack = left.amin(1, keepdim=True).neg().clamp_min(0) + 1
    p = torch.cat([torch.full_like(c, 1 / tasks), PRICE * lack, left + lack], 1)
    d_left = torch.full_like(left, PRICE / (2 * m))
    d_weights = c + torch.einsum("nmt,nm->nt", A, d_left)
    d_weights = d_weights.amax(1, keepdim=True) - d_weights + PRICE / tasks
    d = torch.cat([d_weights, torch.full_like(lack, 0.5), d_left], 1)

    state = torch.stack([p, d]).unsqueeze(3)
    p, d = state.unbind()
    pairs = p.shape[1]
    for _ in range(steps(tasks)):
        target = ((p * d).sum(1, keepdim=True) * TO_CENTRE + GAP) / pairs
        ratio, pull = d / p, target / p
        root = torch.linalg.qr(ratio.sqrt() * K, mode="r").R
        right = q + K.mT @ pull
        change = solve_triangular(root, solve_triangular(root.mT, right, upper=False), upper=True)
        p_change = K @ change
        new = torch.stack([p_change, pull - ratio * p_change - d])
        shrinks = (new / state).amin(2, keepdim=True)
        state.addcdiv_(new, shrinks.clamp_max_(-TO_BOUNDARY), value=-TO_BOUNDARY)
    weights = p[:, :tasks, 0]
    return weights / weights.sum(1, keepdim=True)
