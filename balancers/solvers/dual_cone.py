r"""Find the shortest combination of gradients with weights :math:`v \ge w`: UPGrad's and DualProj's problem.

:math:`\sum_i v_i g_i` is the projection of :math:`\sum_i w_i g_i` onto the dual cone: the set of directions along which
no loss rises. The quadratic program over :math:`v \ge w` is solved by an interior point method, in 16 steps plus the
root of T for any Gramian. On the CPU there is no device to wait for. There, an active-set method stops as soon as it
has the solution, which agrees with the other one to the accuracy that the tests require. Two tasks have a closed form.
"""

import torch
from torch import Tensor

from .active_set import can_read, read, shortest_above
from .interior_point import EQUAL, TINY, nonnegative_qp, rounding, share_among_equals


def project_on_dual_cone(gramian: Tensor, weights: Tensor) -> Tensor:
    r"""Return the weights of the projection onto the dual cone of T gradients with the Gramian :math:`M = G G^\top`.

    .. math:: v = \arg\min_v v^\top M v \quad\text{s.t.}\quad v \ge w

    so that :math:`M v \ge 0`: no gradient has a negative product with :math:`G^\top v`. With two tasks,

    .. math:: v_1 = \max\Big(w_1, -\frac{g_1^\top g_2}{|g_1|^2} \max(w_2, 0)\Big)

    and :math:`v_2` by symmetry. With more tasks, :math:`v = w + s x`, where :math:`s_i \propto 1/|g_i|` and
    :math:`x \ge 0`.

    :math:`G^\top v` is unique. If :math:`v` is not (a convex combination of gradients is zero, or there are more tasks
    than parameters), :math:`x` is about the shortest solution, and tasks with equal gradients get the same
    :math:`v - w`. The weight of a zero gradient does not affect the result.

    Args:
        gramian: ``(..., T, T)``.
        weights: :math:`w`, ``(..., T)``, usually not negative. Leading dimensions broadcast with the Gramian's.

    Returns:
        ``(..., T)``, of the type to which the two arguments' types are promoted.

    Source: Quinton and Rey, "Jacobian Descent for Multi-Objective Optimization", arXiv 2024, prop. 1 (the quadratic
    program).
    """
    tasks, dtype = gramian.shape[-1], torch.promote_types(gramian.dtype, weights.dtype)
    M, w = gramian.double(), weights.double()
    squares = M.diagonal(dim1=-2, dim2=-1)
    if tasks == 1:
        return w.clamp_min(0).expand(torch.broadcast_shapes(squares.shape, w.shape)).to(dtype)
    if tasks == 2:
        cosines = M[..., 0, 1:] / squares.clamp_min(TINY**2)
        return torch.maximum(w, -cosines * w.flip(-1).clamp_min_(0)).to(dtype)
    # Weights that share a Gramian are the K rows of one problem: M is (N, T, T), and w is (N, K, T).
    if w.shape != squares.shape:
        w, M = torch.broadcast_tensors(w, squares)[0], M.unsqueeze(0) if M.dim() == 2 else M
        M = M.squeeze(-3).expand(*w.shape[:-2], tasks, tasks) if M.shape[-3] == 1 else M.expand(*w.shape, tasks)
    shape, M = w.shape, M.reshape(-1, tasks, tasks)
    w = w.reshape(M.shape[0], -1, tasks)
    gains = torch.bmm(w, M)
    on_host = can_read(gains)
    if on_host and read(gains.amin()) >= 0:
        return w.reshape(shape).to(dtype, copy=True)
    norms = M.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt_().unsqueeze(1)
    scale = norms.reciprocal().nan_to_num_(nan=torch.nan, posinf=0)
    hessian, eps = M * scale * scale.mT, torch.finfo(gramian.dtype).eps
    y = w * norms
    size = y.abs().amax(2, keepdim=True).clamp_min_(TINY)
    linear = gains * scale / size
    if on_host:
        x = shortest_above(hessian, y.div_(size), linear, rounding(gramian))
    else:
        hessians = hessian.unsqueeze(1).expand(*w.shape, tasks).reshape(-1, tasks, tasks)
        x = nonnegative_qp(hessians, linear.reshape(-1, tasks, 1), rounding(gramian)).reshape(w.shape)
    x = x * scale * size
    if not (on_host and read(hessian.triu(1).amax()) < 1 - 2 * EQUAL * eps):
        x = share_among_equals(M, x.mT, eps).mT
    return (w + x).reshape(shape).to(dtype)
