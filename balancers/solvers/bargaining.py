r"""Compute bargaining weights, which share the progress fairly among the tasks, by an interior-point method.

The weights solve :math:`M w = w^{-1/\alpha}`. Let :math:`v_i = |g_i| w_i`, let :math:`C` be the gradients' cosines, and
let :math:`y = C v` be the progress along the unit gradients. Then the weights solve a complementarity problem:
:math:`v, y > 0` and :math:`v_i y_i = \mu_i`, with targets that depend on the solution,
:math:`\mu_i = |g_i|^{1/\alpha-1} v_i^{1-1/\alpha}`. Newton's method works on both variables; each takes its own
step to just inside its boundary. It needs 5 to 15 iterations, unless the cosines are nearly singular, from condition
numbers of about 1e10 on; on :math:`w` alone it would be slow.

With Nash's fairness, :math:`\alpha = 1`, the targets are constant. The solution is then the problem's analytic centre,
does not depend on the norms, and can be reached from any starting point (it scales a matrix to row sums of 1: Khachiyan
and Kalantari, "Diagonal Matrix Scaling and Linear Programming", SIAM Journal on Optimization, 1992). For any other
:math:`\alpha`, the first iterations move the exponent a little at a time from 1 to :math:`\alpha`. Two tasks need only
one scalar equation.
"""

import torch
from torch import Tensor

from .cholesky import Cholesky

NASH_ITERATIONS = 16
"""Number of iterations for Nash's fairness."""
ITERATIONS = 17
"""Number of iterations for any other fairness."""
APPROACH = 7
"""Number of first iterations, in which the fairness moves from Nash's to the requested one."""
PAIR_ITERATIONS = 4
"""Number of iterations for two tasks."""
TO_BOUNDARY = 0.99
"""Largest fraction of the way to zero that a step may take a variable."""


def fair_bargaining(gramian: Tensor, alpha: float) -> Tensor:
    r"""Return the weights :math:`w > 0` with which T gradients make :math:`\alpha`-fair progress on their tasks.

    .. math:: M w = w^{-1/\alpha}, \qquad M = G G^\top

    The progress of task i along :math:`d = G^\top w` is :math:`g_i^\top d`. :math:`\alpha \to 0` gives the sum of the
    tasks, :math:`\alpha = 1` Nash's bargaining solution, and :math:`\alpha \to \infty` the most to the task that gains
    least. The solver is tested for :math:`0.1 \le \alpha \le 10`. The weights minimise the strictly convex
    :math:`\tfrac12 w^\top M w - \sum_i \phi(w_i)` with :math:`\phi'(w) = w^{-1/\alpha}`. Even where the weights are
    inaccurate, their length is right to rounding, :math:`w^\top M w = \sum_i w_i^{1-1/\alpha}`, for the :math:`M` with
    :math:`\varepsilon` as follows.

    There is no solution if nonnegative weights make the gradients cancel (an exact conflict, a Pareto-stationary
    point). The solver therefore uses the cosines :math:`C + \varepsilon I`, as if each task had a small gradient of its
    own; :math:`\varepsilon` is 4 T times the rounding of the Gramian's type. In a conflict the weights become large:
    for Nash's fairness, up to :math:`\varepsilon^{-1/2}` times as large as without the conflict. The direction stays as
    short as without it.

    A task whose gradient is zero gets the weight of a gradient that is orthogonal to the others and whose squared norm
    is the mean diagonal entry. It changes no other task's weight. If all gradients are zero, all weights are 1. Weights
    too small for the type are 0. The weights of a Gramian that is not finite are NaN.

    Args:
        gramian: :math:`M`, ``(..., T, T)``.
        alpha: the fairness :math:`\alpha`, above 0.

    Returns:
        ``(..., T)``, of the Gramian's type.

    Source: Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022, claim 3.1, for :math:`\alpha = 1`; Ban
    and Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024, for any :math:`\alpha`.
    """
    M, T = gramian.double(), gramian.shape[-1]
    squares = M.diagonal(dim1=-2, dim2=-1)
    mean = squares.mean(-1, keepdim=True)
    squares = torch.where(squares > 0, squares, mean.masked_fill(mean == 0, 1))
    epsilon = 4 * T * torch.finfo(gramian.dtype).eps
    if T == 1:
        return (squares / squares * squares.pow(-alpha / (1 + alpha))).to(gramian.dtype)  # inf / inf makes it NaN
    if T == 2 and alpha == 1:
        cosine = M[..., 0, 1:] * squares.prod(-1, keepdim=True).rsqrt()
        return ((cosine.clamp(min=-1) + (1 + epsilon)) * squares).rsqrt().to(gramian.dtype)
    d = squares.sqrt().unsqueeze(-1)
    C = (M / (d * d.mT)).clamp_(-1, 1)
    C.diagonal(dim1=-2, dim2=-1).fill_(1 + epsilon)
    typical = d.log().mean(-2, keepdim=True).exp()
    d = d / typical
    v = _pair(C, d, alpha) if T == 2 else _centre(C, d, alpha)
    # Scale v to the best length: v^T C v = sum of d^(1/alpha-1) v^(1-1/alpha).
    energy = (v * (C @ v)).sum(-2, keepdim=True).abs()
    progress = (d.pow(1 / alpha - 1) * v.pow(1 - 1 / alpha)).sum(-2, keepdim=True)
    scale = (progress / (energy * typical.square())).pow(alpha / (1 + alpha))
    return (scale * v / d).squeeze(-1).to(gramian.dtype)


def _centre(C: Tensor, d: Tensor, alpha: float) -> Tensor:
    r"""Return :math:`v > 0`, ``(..., T, 1)``, with :math:`C v = d^{1/\alpha-1} v^{-1/\alpha}`.

    Args:
        C: positive definite cosines, ``(..., T, T)``.
        d: the gradients' norms, ``(..., T, 1)``.
        alpha: the fairness.
    """
    state = torch.ones_like(torch.stack([d, d]))
    new, parts = torch.empty_like(state), torch.empty_like(state)
    (v, y), (v_new, y_new) = state.unbind(), new.unbind()
    E, right, target, rest = torch.empty_like(torch.stack([d, d, d, d])).unbind()
    K, cholesky = C.clone(), Cholesky(C)
    C_diagonal, K_diagonal = (matrix.diagonal(dim1=-2, dim2=-1).unsqueeze(-1) for matrix in (C, K))
    stays, shrinks = cholesky.failed[..., None, None], d.new_empty(2, *d.shape[:-2], 1, 1)
    for k in range(NASH_ITERATIONS if alpha == 1 else ITERATIONS):
        # Newton's step to v_new and y_new = C v_new solves (C + E) v_new = right with E diagonal. The targets are
        # linearised in the variable in which they are concave, and only where they are below v y. So E stays positive.
        now = alpha ** min(1, (k + 1) / APPROACH)
        if alpha != 1 and k < APPROACH:
            of_norms = d.pow(1 / now - 1 if now > 1 else 1 - now)
        if now == 1:
            torch.div(y, v, out=E)
            torch.add(torch.reciprocal(v, out=right), y, out=right)
        elif now > 1:
            torch.pow(v, -1 / now, out=target).mul_(of_norms)  # the target of y
            torch.sub(y, torch.minimum(y, target, out=rest), alpha=1 - 1 / now, out=rest)
            torch.div(rest, v, out=E)
            torch.add(rest, target, out=right)
        else:
            torch.pow(y, -now, out=target).mul_(of_norms)  # the target of v
            torch.sub(v, torch.minimum(v, target, out=rest), alpha=1 - now, out=rest)
            torch.div(y, rest, out=E)
            torch.addcmul(y, E, target, out=right)
        torch.add(C_diagonal, E, out=K_diagonal)
        cholesky.solve(K, right, half=rest, out=v_new)
        torch.addcmul(right, E, v_new, value=-1, out=y_new)
        # Rounding beyond epsilon can make the factorisation fail: then take no step.
        new.sub_(state).masked_fill_(stays != 0, 0)
        torch.amin(torch.div(new, state, out=parts), -2, keepdim=True, out=shrinks)
        state.addcdiv_(new, shrinks.clamp_max_(-TO_BOUNDARY), value=-TO_BOUNDARY)
    return state[0]


def _pair(C: Tensor, d: Tensor, alpha: float) -> Tensor:
    r"""Return a multiple of the same solution for two tasks.

    With :math:`t = \log(v_2/v_1)` and :math:`s = \log(y_2/y_1)`, the equation to solve is
    :math:`s + t/\alpha = (1/\alpha-1) \log(d_2/d_1)`. The smaller of the two in size is a concave function of the
    other. Newton's method therefore starts from below and increases to the solution.
    """
    cosine = C[..., :1, 1:]
    agree = cosine >= 0
    c = (cosine.abs() / C[..., :1, :1]).clamp(min=1e-300)
    total = (1 / alpha - 1) * (d[..., 1:, :] / d[..., :1, :]).log()
    # z is the larger of the two: t where the tasks agree, s where they conflict. It solves
    # z_share z + share log(upper / lower) = |total|.
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
