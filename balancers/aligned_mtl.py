"""Aligned-MTL: give the gradients' principal components equal length, then take the mean."""

import torch
from torch import Tensor

from .engine import GradientBalancer, register
from .solvers.spectrum import eigh


@register
class AlignedMTL(GradientBalancer):
    r"""Make the gradients orthogonal and equally long, then take their mean.

    Every aligned gradient is as long as the shortest principal component of the gradients. With the eigenvalues
    :math:`\sigma_k` of the Gramian that exceed rounding errors, and their eigenvectors :math:`v_k`,

    .. math:: w = \sqrt{\min_k \sigma_k}\ \sum_k \frac{v_k v_k^\top}{\sqrt{\sigma_k}} \; \frac{\mathbf 1}{T}

    If the gradients are linearly independent, the linear system of the aligned ones has condition number 1: no task
    dominates, and no two tasks conflict. Dependent gradients are aligned within what they span, so that opposed ones
    stay opposed. Weights may be negative. If all gradients are zero, :math:`w_i = 1/T`. At the features (``wrt=None``)
    this is the source's Aligned-MTL-UB, an approximation.

    Args:
        fork, wrt, options: see `GradientBalancer`.

    Example::

        balancer = AlignedMTL(net.fork, wrt=net.trunk)
        balancer(losses).backward()

    Source: Senushkin, Patakin, Kuznetsov and Konushin, "Independent Component Alignment for Multi-Task Learning",
    CVPR 2023, algorithm 1. The authors' code and LibMTL take the sum of the aligned gradients: T times this direction.
    """

    name = "aligned-mtl"
    summary = "Make the gradients orthogonal and equally long, then take their mean."
    reads = "gramian"
    use_when = "When gradients conflict and differ in length; steps become as short as the weakest direction."
    default_wrt = "parameters"
    may_ascend = True

    def solve(self, gramian: Tensor) -> Tensor:
        """Return weights of shape ``(..., T)`` for Gramians of shape ``(..., T, T)``."""
        num_tasks = gramian.shape[-1]
        rounding = num_tasks * torch.finfo(gramian.dtype).eps
        aligned = _align_two(gramian.double(), rounding) if num_tasks == 2 else _align(gramian.double(), rounding)
        return aligned.to(gramian.dtype)


def _align(gramian: Tensor, rounding: float) -> Tensor:
    """Return the weights for any number of tasks, from the eigenvectors of the Gramian."""
    values, vectors = eigh(gramian)
    above = values > rounding * values[..., -1:]
    least = torch.where(above, values, torch.inf).amin(-1, keepdim=True)
    factors = torch.where(above, (least / values).sqrt(), 0.0)
    aligned = (vectors @ (factors * vectors.mean(-2)).unsqueeze(-1)).squeeze(-1)
    return torch.where(above.any(-1, keepdim=True), aligned, 1 / gramian.shape[-1])


def _align_two(gramian: Tensor, rounding: float) -> Tensor:
    r"""Return the weights for two tasks, in closed form.

    It uses :math:`M^{-1/2} = ((\operatorname{tr} M + s) I - M) / (s \sqrt{\operatorname{tr} M + 2 s})` with
    :math:`s = \sqrt{\det M}`. The product of this and the square root of the smallest eigenvalue stays finite. For a
    Gramian of rank one the product is :math:`M / \operatorname{tr} M`.
    """
    first, product, _, second = gramian.flatten(-2).unsqueeze(-1).unbind(-2)
    trace, sums = first + second, gramian.sum(-1)
    determinant = torch.addcmul(first * second, product, product, value=-1).clamp_(min=0)
    largest = torch.hypot(first - second, 2 * product).add_(trace) / 2
    s = determinant.sqrt()
    rank_two = determinant > rounding * largest.square()
    full = (trace + s - sums) * (largest * (trace + 2 * s)).rsqrt_()
    return torch.where(rank_two, full, (sums / trace).nan_to_num(1.0)) / 2
