r"""Solve CAGrad's problem: the combination of gradients, within a ball, that gives the worst-off task the most.

The problem minimises a linear function plus a norm on the simplex. Where the norm is zero (a Pareto-stationary point)
it has no derivative, and Newton's method on :math:`\lambda` alone stalls nearby. The solver therefore raises the gain
of the worst-off task until the ball is reached. For a given gain, the shortest vector that reaches it solves a
quadratic program. Apart from complementarity, the conditions for its solution are linear in the multipliers and in the
gain. How far the gain may rise in a step is the root of a quadratic equation, which is taken exactly. Two tasks have a
closed form.
"""

import torch
from torch import Tensor

from .cholesky import Cholesky
from .interior_point import EQUAL, TINY, TO_BOUNDARY, rounding, share_among_equals, steps

GAP = 1e-10
"""Duality gap, for multipliers whose sum is 1, at which the barrier stops falling."""
TO_CENTRE = 0.2
"""Factor by which a step shrinks the duality gap if no boundary cuts the step short."""
RISE = 4.0
"""Limit on how far a step may raise the gain, as a multiple (times the root of T) of what its slowest slack allows.

If the ball can't be reached, steps without a limit would run into that slack. If it can, a smaller limit would need too
many steps.
"""
MORE_STEPS = 2
"""Number of steps beyond those of a quadratic program."""
RIDGE = 1e-13
"""Smallest value for the ridge on the cosines' diagonal, and for divisors that could be zero."""
SMALLEST = 1e-8
"""Smallest norm used for scaling, as a fraction of the largest norm."""


def conflict_averse(gramian: Tensor, c: float) -> Tensor:
    r"""Return CAGrad's weights for T gradients with the Gramian :math:`M = G G^\top` and the mean :math:`g_0`.

    .. math:: \lambda = \arg\min_\lambda \; g_\lambda^\top g_0 + c\,|g_0|\,|g_\lambda| \quad\text{s.t.}\quad
              \lambda \ge 0,\ \textstyle\sum_i \lambda_i = 1, \qquad g_\lambda = G^\top \lambda

    With two tasks and :math:`\delta = |g_2|^2 - |g_1|^2`, :math:`D = 4(|g_1|^2|g_2|^2 - (g_1^\top g_2)^2)`,

    .. math:: \lambda_1 = \tfrac12 + \frac{\delta}{2|g_1 - g_2|^2}
              \bigg(1 + \sqrt{\frac{D}{c^2 D - (1 - c^2)\delta^2}}\bigg), \text{ clipped to } [0, 1];

    where the denominator is negative, the shorter gradient gets all the weight.

    If the solution is not unique (:math:`g_0 = 0`, all gradients zero), the result lies in the middle of the solutions.
    Equal gradients get equal weights. :math:`g_\lambda` may be zero up to rounding (at a Pareto-stationary point):
    callers that divide by :math:`|g_\lambda|` must guard against it.

    Args:
        gramian: ``(..., T, T)``.
        c: the ball's radius divided by :math:`|g_0|`, 0 or more. The paper uses values below 1.

    Returns:
        ``(..., T)``, of the Gramian's type.

    Source: Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021, algorithm 1.
    """
    tasks = gramian.shape[-1]
    M = gramian.double()
    squares = M.diagonal(dim1=-2, dim2=-1)
    if tasks == 1:
        weights = torch.ones_like(squares)
    elif tasks == 2:
        weights = _two(M, squares, c, EQUAL * torch.finfo(gramian.dtype).eps)
    else:
        M = M.reshape(-1, tasks, tasks)
        shares = share_among_equals(M, _interior(M, c, rounding(gramian)), torch.finfo(gramian.dtype).eps)
        weights = (shares / shares.sum(1, keepdim=True)).reshape(squares.shape)
    return weights.to(gramian.dtype)


def _two(M: Tensor, squares: Tensor, c: float, eps: float) -> Tensor:
    """Return the weights of two tasks, ``(..., 2)``, by the closed form."""
    (first, second), product = squares.split(1, -1), M[..., 0, 1:]
    delta = second - first
    # The product is reduced by a rounding, so that equal gradients get equal weights and no difference is negative.
    distance = torch.add(first, second).sub_(product, alpha=2 - 2 * eps).clamp_min_(TINY**2)
    area = torch.mul(first, second).addcmul_(product, product, value=eps - 1).clamp_min_(TINY**2)
    inverse = torch.mul(area, c * c).addcmul_(delta, delta, value=(c * c - 1) / 4).div_(area)
    reach = inverse.clamp_min_(1e-60).rsqrt_().add_(1).mul_(delta)
    share = reach.div_(distance).mul_(0.5).add_(0.5).clamp_(0, 1)
    return torch.cat([share, 1 - share], -1)


def _interior(M: Tensor, c: float, indefinite: float) -> Tensor:
    r"""Return a multiple of the weights, ``(B, T, 1)``, for ``M`` of shape ``(B, T, T)``.

    With :math:`|g_0| = 1` and :math:`b_i = g_i^\top g_0`, the minimum over the simplex equals

    .. math:: \max_{|e| \le c} \min_i \; b_i + g_i^\top e.

    The shortest :math:`e` that gives every task at least the gain :math:`s` is :math:`G^\top v` with

    .. math:: z = b + M v - s \ge 0, \quad v \ge 0, \quad v_i z_i = 0,

    For the :math:`s` at which :math:`v^\top M v = c^2`, :math:`v` has the direction of :math:`\lambda`.

    So that a short gradient is as accurate as a long one, each condition is divided by the gradient's norm. With
    :math:`a_i = \min_j |g_j| / |g_i|`, :math:`M` becomes the cosines, :math:`b_i` the cosine of :math:`g_i` and
    :math:`g_0`, and the gain :math:`a_i s`; :math:`\lambda` has the direction of :math:`a_i v_i`. A step of Newton's
    method that aims at :math:`v_i z_i = \mu` ends at :math:`v = v_0 + s\,v_1` with

    .. math:: (M + \mathrm{diag}(z / v))\, (v_0, v_1) = (z + \mu / v - b,\; a), \qquad
              s = \max \{ s : v^\top M v \le c^2 \}.

    The duality gap of :math:`\lambda` is :math:`(v^\top z + |e| (c - |e|)) / \sum_i a_i v_i` in units of the shortest
    norm. If no gain takes :math:`e` to the ball (an exact conflict), :math:`v` grows until the gap is small.
    """
    batch, tasks = M.shape[:2]
    norms = M.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt().unsqueeze(2)
    norms = torch.maximum(norms, SMALLEST * norms.amax(1, keepdim=True)).clamp_min_(TINY)
    scale = norms.amin(1, keepdim=True) / norms
    M = M / norms / norms.mT
    b = torch.bmm(M, norms)
    smallest_mean = norms.square().sum(1, keepdim=True).mul_(RIDGE * tasks)
    b = b / torch.maximum(torch.bmm(norms.mT, b), smallest_mean).sqrt_()
    M.diagonal(dim1=1, dim2=2).add_(max(2 * indefinite, RIDGE))
    matrix = M.clone()
    curvature, diagonal = (each.diagonal(dim1=1, dim2=2).unsqueeze(2) for each in (M, matrix))

    # v, z and s share one tensor, and their next values another, so that one call can work on several of them.
    state = M.new_ones(batch, 2 * tasks + 1, 1)
    new, parts = torch.empty_like(state), M.new_empty(batch, 2 * tasks, 1)
    (v, z, s), (v_new, z_new, s_new) = state.split([tasks, tasks, 1], 1), new.split([tasks, tasks, 1], 1)
    positive, step, v_row = state[:, : 2 * tasks], new[:, : 2 * tasks], v.mT
    v.mul_(max(c, RIDGE) / M.mean((1, 2), keepdim=True).sqrt() / tasks)
    gains = torch.baddbmm(b, M, v)
    torch.sub((gains / scale).amin(1, keepdim=True), 1, out=s)
    torch.addcmul(gains, scale, s, value=-1, out=z)

    square, floor, rise = (M.new_full((1, 1, 1), x) for x in (c * c + RIDGE, GAP / tasks, RISE * tasks**0.5))
    right = torch.cat([b, scale], 2)
    solutions, images = M.new_empty(batch, 2, tasks).mT, M.new_empty(batch, tasks, 2)
    products = M.new_empty(batch, 2, 2)
    transposed, (v_0, v_1), v_0_right = solutions.mT, solutions.split(1, 2), right[:, :, :1]
    of_0, of_both, of_1 = products[:, :1, :1], products[:, :1, 1:], products[:, 1:, 1:]
    ratio, pull, relative = M.new_empty(3, batch, tasks, 1).unbind()
    fastest, root, target, shrinks = M.new_empty(4, batch, 1, 1).unbind()
    cholesky = Cholesky(M)
    for _ in range(steps(tasks) + MORE_STEPS):
        torch.div(z, v, out=ratio)
        torch.add(curvature, ratio, out=diagonal)
        torch.bmm(v_row, torch.add(floor, z, alpha=TO_CENTRE / tasks, out=relative), out=target)
        torch.addcdiv(z, target, v, out=pull)
        torch.sub(pull, b, out=v_0_right)
        cholesky.solve(matrix, right, half=solutions, out=solutions)

        torch.addcmul(right, ratio, solutions, value=-1, out=images)  # M (v_0, v_1)
        torch.bmm(transposed, images, out=products)
        torch.sub(square, of_0, out=root).mul_(of_1).addcmul_(of_both, of_both).clamp_min_(0).sqrt_()
        torch.amax(torch.div(v_1, v, out=relative), 1, keepdim=True, out=fastest)
        torch.minimum(root.sub_(of_both).div_(of_1), torch.addcdiv(s, rise, fastest, out=fastest), out=s_new)

        torch.addcmul(v_0, s_new, v_1, out=v_new)
        torch.addcmul(pull, ratio, v_new, value=-1, out=z_new)
        new.sub_(state)
        torch.amin(torch.div(step, positive, out=parts), 1, keepdim=True, out=shrinks)
        state.addcdiv_(new, shrinks.clamp_max_(-TO_BOUNDARY), value=-TO_BOUNDARY)
    return state[:, :tasks] * scale
