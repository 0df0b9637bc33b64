r"""CAGrad's problem: the combination of gradients that gives the worst-off task the most within a ball.

A linear function plus a norm, minimised on the simplex. Where the norm vanishes (a Pareto-stationary point) it has no
derivative, and a gradient or Newton method on :math:`\lambda` alone stalls nearby. So the maximisation that the
minimisation came from is solved along with it, where the norm is a constraint :math:`|e| \le 1`, by a primal-dual
interior point method: :math:`e` stays well inside the ball at such a point. Two tasks have a closed form.
"""

import torch
from torch import Tensor

from .interior import EQUAL, TINY, rounding, share_among_equals

STEPS = 15
GAP = 1e-10
"""The part of the duality gap that belongs to the simplex, at which its barrier stays."""
BALL_GAP = 1e-7
r"""The ball's, :math:`\theta s`. Its effect on the objective is mostly of second order. Rounding in
:math:`M \lambda / \theta` is a reason not to go lower: at a Pareto-stationary point :math:`\theta` is about this."""
TO_BOUNDARY = 0.99
TO_BALL = 0.8
"""The part of the way that a step goes, to the simplex's boundary and to the ball's. The ball is curved: with longer
steps, `s` and theta stick to zero and one problem in a hundred stalls."""
RIDGE = 1e-13


def conflict_averse(gramian: Tensor, c: float) -> Tensor:
    r"""CAGrad's weights for T gradients with the Gramian :math:`M = G G^\top` and the mean :math:`g_0`.

    .. math:: \lambda = \arg\min_\lambda \; g_\lambda^\top g_0 + c\,|g_0|\,|g_\lambda| \quad\text{s.t.}\quad
              \lambda \ge 0,\ \textstyle\sum_i \lambda_i = 1, \qquad g_\lambda = G^\top \lambda

    With two tasks and :math:`\delta = |g_2|^2 - |g_1|^2`, :math:`D = 4(|g_1|^2|g_2|^2 - (g_1^\top g_2)^2)`,

    .. math:: \lambda_1 = \tfrac12 + \frac{\delta}{2|g_1 - g_2|^2}
              \bigg(1 + \sqrt{\frac{D}{c^2 D - (1 - c^2)\delta^2}}\bigg), \text{ clipped to } [0, 1];

    where the denominator is negative, the shorter gradient takes all.

    Where the solution is not unique (:math:`g_0 = 0`, all gradients zero) it is one from the middle of the solutions;
    equal gradients get equal weights. :math:`g_\lambda` may be zero up to rounding (Pareto-stationary): whoever divides
    by :math:`|g_\lambda|` guards against it.

    Args:
        gramian: ``(..., T, T)``.
        c: the ball's radius over :math:`|g_0|`, 0 or more; below 1 in the paper.

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
    delta, product = squares.flip(-1) - squares, M[..., 0, 1:]
    total, both = squares.sum(-1, keepdim=True), squares.prod(-1, keepdim=True)
    # A rounding of both is added, so that equal gradients share alike and no difference is below zero.
    distance = torch.sub(total, product, alpha=2).add_(total, alpha=eps).clamp_min_(TINY**2)
    area = torch.addcmul(both, product, product, value=-1).add_(both, alpha=eps).clamp_min_(TINY**2)
    inverse = (delta * delta / area).clamp_max_(1e60).mul_((c * c - 1) / 4).add_(c * c)
    reach = inverse.clamp_min_(1e-60).rsqrt_().add_(1) * delta
    return torch.div(reach, distance).mul_(0.5).add_(0.5).clamp_(0, 1)


def _interior(M: Tensor, c: float, indefinite: float) -> Tensor:
    r"""A multiple of the weights, ``(B, T, 1)``, for `M` of shape ``(B, T, T)``.

    With :math:`|g_0| = 1` and :math:`b_i = g_i^\top g_0`, the minimum over the simplex equals

    .. math:: \max_{|e| \le 1} \min_i \; b_i + c\, g_i^\top e,

    whose conditions, for :math:`e = G^\top a`, slacks :math:`z, s \ge 0` and multipliers :math:`\lambda, \theta \ge 0`,

    .. math:: z = b + c M a - \nu,\quad s = \tfrac12(1 - a^\top M a),\quad c M \lambda = \theta M a,\quad
              \lambda z = \theta s = 0,

    are solved by Newton's method with :math:`\lambda_i z_i` and :math:`\theta s` going to zero. As the objective is
    homogeneous, :math:`\nu = \tau - \sum_i \lambda_i` leaves the direction of :math:`\lambda` as it is and makes the
    constraint on the simplex superfluous; :math:`\tau = c + \tfrac32` is above the minimum. Eliminating `a`,

    .. math:: \begin{pmatrix} c^2 M + \theta (11^\top + \mathrm{diag}(z / \lambda)) & -c M a \\
              -c (M a)^\top & 1 - s \end{pmatrix}
              \begin{pmatrix} \Delta\lambda \\ \Delta\theta \end{pmatrix} = -
              \begin{pmatrix} c^2 M \lambda + \theta (b - \nu) \\ \theta (1 - s) - c \lambda^\top M a \end{pmatrix}
              + \theta \begin{pmatrix} \mu / \lambda \\ \mu / \theta \end{pmatrix}

    and :math:`\Delta a = (c(\lambda + \Delta\lambda) - a(\theta + \Delta\theta)) / \theta`, in each step first with
    :math:`\mu = 0` (predictor), then with second-order terms (corrector).
    """
    batch, tasks = M.shape[:2]
    tau = c + 1.5
    M = M / M.diagonal(dim1=1, dim2=2).mean(1).clamp_min(TINY**2)[:, None, None]
    M.diagonal(dim1=1, dim2=2).add_(2 * indefinite)
    b = M.mean(2, keepdim=True)
    b = b / b.mean(1, keepdim=True).clamp_min_(RIDGE).sqrt_()
    linear = b - tau

    # Lambda and theta lie in one tensor, z and s in another, a and its step in a third: what concerns both is one call.
    X = torch.cat([M.new_full((batch, tasks, 1), tau / tasks), M.new_ones(batch, 1, 1)], 1)
    Z = torch.cat([b - b.amin(1, keepdim=True) + 1, M.new_full((batch, 1, 1), 0.5)], 1)
    A = M.new_zeros(batch, tasks, 2)
    weights, theta, s = X[:, :tasks], X[:, tasks:], Z[:, tasks:]
    a, a_step = A[:, :, :1], A[:, :, 1:]
    X_row, weights_row, A_row, a_row = X.mT, weights.mT, A.mT, a.mT
    floor = torch.cat([M.new_full((tasks, 1), GAP / tasks), M.new_full((1, 1), BALL_GAP)])
    one, half = M.new_ones(1, 1, 1), M.new_full((1, 1, 1), 0.5)

    scaled = c * c * M
    ridged = scaled.clone()
    ridged.diagonal(dim1=1, dim2=2).add_(c * c * RIDGE)
    matrix, gradient = M.new_zeros(batch, tasks + 1, tasks + 1), torch.empty_like(X)
    block, corner, border = matrix[:, :tasks, :tasks], matrix[:, tasks:, tasks:], matrix[:, tasks:, :tasks].mT
    diagonal = block.diagonal(dim1=1, dim2=2).unsqueeze(2)
    weights_gradient, theta_gradient = gradient[:, :tasks], gradient[:, tasks:]

    for _ in range(STEPS):
        Ma = torch.bmm(M, a)
        torch.clamp_min(torch.baddbmm(half, a_row, Ma, alpha=-0.5), RIDGE, out=s)
        ratio = Z / X
        torch.add(ridged, theta, out=block)
        diagonal.addcmul_(theta, ratio[:, :tasks])
        torch.mul(Ma, -c, out=border)
        torch.sub(one, s, out=corner)
        factor = torch.linalg.cholesky_ex(matrix)[0]
        excess = linear + weights.sum(1, keepdim=True)
        torch.addcmul(torch.bmm(scaled, weights), theta, excess, out=weights_gradient)
        torch.sub(theta * corner, torch.bmm(weights_row, Ma), alpha=c, out=theta_gradient)

        # The predictor: X goes to X (1 - u) and Z to Z u.
        X_down = torch.cholesky_solve(gradient, factor)
        u = X_down / X
        rest = u - 1
        target_a = weights * (c / theta)
        change = target_a - a
        torch.addcmul(torch.addcmul(change, target_a, u[:, :tasks], value=-1), a, u[:, tasks:], out=a_step)
        M_step = torch.bmm(M, a_step)
        along, square = torch.bmm(A_row, M_step).split(1, 1)
        length = torch.maximum(u, -rest).amax(1, keepdim=True).clamp_min_(1).reciprocal_()
        mu = torch.maximum((length - 1).square_() * torch.bmm(X_row, Z) / (tasks + 1), floor)

        # The corrector: what the predictor missed in X Z, in theta M a and in a^T M a, faded as in `nonnegative_qp`.
        fade = (2 * length).clamp_max_(1)
        pull = torch.addcmul(mu / X, (u * rest).mul_(Z), fade)
        right = torch.addcmul(gradient, theta, pull, value=-1)
        missed = fade * X_down[:, tasks:]
        right[:, :tasks].addcmul_(M_step, missed, value=c)
        right[:, tasks:].sub_(torch.addcmul(missed * along, fade * theta, square, value=0.5))
        X_down = torch.cholesky_solve(right, factor)
        Z_down = torch.addcmul(Z - pull, ratio, X_down, value=-1)
        u = X_down / X
        theta_u = u[:, tasks:]
        change = torch.addcmul(change, a_step, missed / theta)
        torch.addcmul(torch.addcmul(change, target_a, u[:, :tasks], value=-1), a, theta_u, out=a_step)

        # 1 / blocked is the step that meets a boundary; the ball's is the root of a quadratic equation.
        along, square = (torch.bmm(A_row, torch.bmm(M, a_step)) / (s + s)).split(1, 1)
        ball = torch.addcmul(square, along, along).clamp_min_(0).sqrt_().add_(along)
        blocked = torch.maximum(u, Z_down / Z)[:, :tasks].amax(1, keepdim=True)
        blocked = torch.maximum(blocked, torch.maximum(ball, theta_u) * (TO_BOUNDARY / TO_BALL)).clamp_min_(TO_BOUNDARY)
        a.addcdiv_(a_step, blocked, value=TO_BOUNDARY)
        X.addcdiv_(X_down, blocked, value=-TO_BOUNDARY)
        Z.addcdiv_(Z_down, blocked, value=-TO_BOUNDARY)
    return weights
