r"""Bargaining: the weights that share the progress fairly among the tasks, by an interior-point method.

In :math:`v_i = |g_i| w_i` and the progress :math:`y = C v` along the unit gradients, with their cosines :math:`C`, the
weights :math:`M w = w^{-1/\alpha}` solve a complementarity problem: :math:`v, y > 0` and :math:`v_i y_i = \mu_i` with
targets that depend on the solution, :math:`\mu_i = |g_i|^{1/\alpha-1} v_i^{1-1/\alpha}`. Newton's method on both
variables, each with its own step to just inside its boundary, takes 5 to 15 iterations, where on :math:`w` alone it is
slow. Nash's fairness, :math:`\alpha = 1`, has constant targets: it is the problem's analytic centre, without the norms,
and reached from anywhere (a matrix scaled to row sums 1: Khachiyan and Kalantari, "Diagonal Matrix Scaling and Linear
Programming", SIAM Journal on Optimization, 1992). Any other is reached on the way from there, the exponent moved a
little with each of the first iterations. Two tasks need one scalar equation.
"""

import torch
from torch import Tensor

from .cholesky import Cholesky

NASH_ITERATIONS = 16
ITERATIONS = 17
APPROACH = 7
"""The iterations in which the fairness goes from Nash's to the one asked for."""
PAIR_ITERATIONS = 4
TO_BOUNDARY = 0.99
"""How far towards zero a step may take a variable."""


def fair_bargaining(gramian: Tensor, alpha: float) -> Tensor:
    r"""Weights :math:`w > 0`, ``(..., T)``, with

    .. math:: M w = w^{-1/\alpha}

    for a Gramian :math:`M = G G^\top`, ``(..., T, T)``: the progress :math:`g_i^\top d` of the tasks along
    :math:`d = G^\top w` is :math:`\alpha`-fair. :math:`\alpha \to 0` is the sum of the tasks, :math:`\alpha = 1` Nash's
    bargaining solution, :math:`\alpha \to \infty` the most for the task that gains least; tested for
    :math:`0.1 \le \alpha \le 10`. The weights are the minimum of the strictly convex
    :math:`\tfrac12 w^\top M w - \sum_i \phi(w_i)` with :math:`\phi'(w) = w^{-1/\alpha}`, and their length is right to
    rounding even where they are not: :math:`w^\top M w = \sum_i w_i^{1-1/\alpha}`.

    There is no solution where nonnegative weights make the gradients cancel (an exact conflict, a Pareto-stationary
    point). The cosines are therefore :math:`C + \varepsilon I`, as if each task had a little gradient of its own;
    :math:`\varepsilon` is 4 T times the rounding of the Gramian's type. In a conflict the weights are large, for Nash's
    up to :math:`\varepsilon^{-1/2}` times as large as without, while the direction stays as short as ever. A task whose
    gradient is zero is weighed as if it were orthogonal to the others and its squared norm the mean diagonal entry, and
    changes no other's weight; where all are zero, all weights are 1. Weights too small for the type are 0; those of a
    Gramian that is not finite are NaN.

    Source: Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022, claim 3.1, for :math:`\alpha = 1`; Ban
    and Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024, for any.
    """
    M, T = gramian.double(), gramian.shape[-1]
    squares = M.diagonal(dim1=-2, dim2=-1)
    mean = squares.mean(-1, keepdim=True)
    squares = torch.where(squares > 0, squares, mean.masked_fill(mean == 0, 1))
    epsilon = 4 * T * torch.finfo(gramian.dtype).eps
    if T == 1:
        return (squares / squares * squares.pow(-alpha / (1 + alpha))).to(gramian.dtype)  # NaN where it is infinite
    if T == 2 and alpha == 1:
        cosine = M[..., 0, 1:] * squares.prod(-1, keepdim=True).rsqrt()
        return ((cosine.clamp(min=-1) + (1 + epsilon)) * squares).rsqrt().to(gramian.dtype)
    d = squares.sqrt().unsqueeze(-1)
    C = (M / (d * d.mT)).clamp_(-1, 1)
    C.diagonal(dim1=-2, dim2=-1).fill_(1 + epsilon)
    typical = d.log().mean(-2, keepdim=True).exp()
    d = d / typical
    v = _pair(C, d, alpha) if T == 2 else _centre(C, d, alpha)
    # The best length: v^T C v = sum of d^(1/alpha-1) v^(1-1/alpha).
    energy = (v * (C @ v)).sum(-2, keepdim=True).abs()
    progress = (d.pow(1 / alpha - 1) * v.pow(1 - 1 / alpha)).sum(-2, keepdim=True)
    scale = (progress / (energy * typical.square())).pow(alpha / (1 + alpha))
    return (scale * v / d).squeeze(-1).to(gramian.dtype)


def _centre(C: Tensor, d: Tensor, alpha: float) -> Tensor:
    r""":math:`v > 0` with :math:`C v = d^{1/\alpha-1} v^{-1/\alpha}`, ``(..., T, 1)``, for positive definite cosines
    ``(..., T, T)`` and norms ``(..., T, 1)``.
    """
    state = torch.ones_like(torch.stack([d, d]))
    new, parts = torch.empty_like(state), torch.empty_like(state)
    (v, y), (v_new, y_new) = state.unbind(), new.unbind()
    E, right, target, rest = torch.empty_like(torch.stack([d, d, d, d])).unbind()
    K, cholesky = C.clone(), Cholesky(C)
    C_diagonal, K_diagonal = (matrix.diagonal(dim1=-2, dim2=-1).unsqueeze(-1) for matrix in (C, K))
    stays, shrinks = cholesky.failed[..., None, None], d.new_empty(2, *d.shape[:-2], 1, 1)
    for k in range(NASH_ITERATIONS if alpha == 1 else ITERATIONS):
        # Newton's step to v_new and y_new = C v_new solves (C + E) v_new = right, E diagonal. The targets are
        # linearised in the variable in which they are concave, and only where they are below v y: E stays positive.
        now = alpha ** min(1, (k + 1) / APPROACH)
        if alpha != 1 and k < APPROACH:
            of_norms = d.pow(1 / now - 1 if now > 1 else 1 - now)
        if now == 1:
            torch.div(y, v, out=E)
            torch.add(torch.reciprocal(v, out=right), y, out=right)
        elif now > 1:
            torch.pow(v, -1 / now, out=target).mul_(of_norms)  # of y
            torch.sub(y, torch.minimum(y, target, out=rest), alpha=1 - 1 / now, out=rest)
            torch.div(rest, v, out=E)
            torch.add(rest, target, out=right)
        else:
            torch.pow(y, -now, out=target).mul_(of_norms)  # of v
            torch.sub(v, torch.minimum(v, target, out=rest), alpha=1 - now, out=rest)
            torch.div(y, rest, out=E)
            torch.addcmul(y, E, target, out=right)
        torch.add(C_diagonal, E, out=K_diagonal)
        cholesky.solve(K, right, half=rest, out=v_new)
        torch.addcmul(right, E, v_new, value=-1, out=y_new)
        # Rounding of more than epsilon can leave no factor: then stay.
        new.sub_(state).masked_fill_(stays != 0, 0)
        torch.amin(torch.div(new, state, out=parts), -2, keepdim=True, out=shrinks)
        state.addcdiv_(new, shrinks.clamp_max_(-TO_BOUNDARY), value=-TO_BOUNDARY)
    return state[0]


def _pair(C: Tensor, d: Tensor, alpha: float) -> Tensor:
    r"""The same for two tasks, up to its length.

    With :math:`t = \log(v_2/v_1)` and :math:`s = \log(y_2/y_1)`, :math:`s + t/\alpha = (1/\alpha-1) \log(d_2/d_1)`, and
    the one of smaller size is a concave function of the other: Newton's method from below increases to the solution.
    """
    cosine = C[..., :1, 1:]
    agree = cosine >= 0
    c = (cosine.abs() / C[..., :1, :1]).clamp(min=1e-300)
    total = (1 / alpha - 1) * (d[..., 1:, :] / d[..., :1, :]).log()
    # z is the larger, t where the tasks agree, s where they conflict: z_share z + share log(upper / lower) = |total|.
    z_share = torch.where(agree, 1 / alpha, 1.0)
    share = torch.where(agree, 1.0, 1 / alpha)
    length, curve, one = total.abs(), share * (1 - c * c), torch.ones_like(c)
    z = torch.maximum(length / (z_share + curve / (one + c).square()), (length + share * c.log()) / z_share)
    for _ in range(PAIR_ITERATIONS):
        q = z.neg().exp_()
        upper, lower = torch.addcmul(one, c, q), c + q
        excess = torch.addcmul(z_share * z - length, share, (upper / lower).log_())
        slope = torch.addcdiv(z_share, curve * q, upper * lower)
        z = torch.addcdiv(z, excess, slope, value=-1)
    q = z.neg().exp_()
    t = torch.where(agree, z, ((one + c * q) / (c + q)).log()) * total.sign()
    return torch.cat([-t / 2, t / 2], -2).exp()
