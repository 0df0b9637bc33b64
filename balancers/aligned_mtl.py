"""Aligned-MTL: the gradients' principal components, made equally long."""

import torch
from torch import Tensor

from .engine.gramian import GramianBalancer
from .engine.method_registry import register
from .solvers.spectrum import eigh


@register
class AlignedMTL(GramianBalancer):
    r"""Weights that make the gradients orthogonal and as long as their least principal component, and take their mean.

    With the Gramian's eigenvalues :math:`\sigma_k` above rounding and their eigenvectors :math:`v_k`,

    .. math:: w = \sqrt{\min_k \sigma_k}\ \sum_k \frac{v_k v_k^\top}{\sqrt{\sigma_k}} \; \frac{\mathbf 1}{T}

    The linear system of the aligned gradients has the condition number 1: no task dominates and none conflicts. Where
    all gradients are zero, :math:`w_i = 1/T`. At the features (``wrt=None``) this is the source's upper-bound variant.

    Args:
        fork, wrt, tasks, update_every, accumulate, check_finite: see `CombiningBalancer`.

    Source: Senushkin, Patakin, Kuznetsov and Konushin, "Independent Component Alignment for Multi-Task Learning", CVPR
    2023, algorithm 1.
    """

    name = "aligned-mtl"
    summary = "Makes the gradients orthogonal and equally long before it takes their mean."
    use_when = "Gradients conflict and differ in length, and steps as short as the weakest direction's will do."

    def solve(self, gramian: Tensor) -> Tensor:
        """Weights ``(..., T)``."""
        num_tasks = gramian.shape[-1]
        rounding = num_tasks * torch.finfo(gramian.dtype).eps
        aligned = _of_two(gramian.double(), rounding) if num_tasks == 2 else _of_all(gramian.double(), rounding)
        return aligned.to(gramian.dtype)


def _of_all(gramian: Tensor, rounding: float) -> Tensor:
    values, vectors = eigh(gramian)
    above = values > rounding * values[..., -1:]
    least = torch.where(above, values, torch.inf).amin(-1, keepdim=True)
    factors = torch.where(above, (least / values).sqrt(), 0.0)
    aligned = (vectors @ (factors * vectors.mean(-2)).unsqueeze(-1)).squeeze(-1)
    return torch.where(above.any(-1, keepdim=True), aligned, 1 / gramian.shape[-1])


def _of_two(gramian: Tensor, rounding: float) -> Tensor:
    r"""By :math:`M^{-1/2} = ((\operatorname{tr} M + s) I - M) / (s \sqrt{\operatorname{tr} M + 2 s})`, with
    :math:`s = \sqrt{\det M}`, which times the least root of an eigenvalue stays finite. Of rank one it is
    :math:`M / \operatorname{tr} M`.
    """
    first, product, _, second = gramian.flatten(-2).unsqueeze(-1).unbind(-2)
    trace, sums = first + second, gramian.sum(-1)
    determinant = torch.addcmul(first * second, product, product, value=-1).clamp_(min=0)
    largest = torch.hypot(first - second, 2 * product).add_(trace) / 2
    s = determinant.sqrt()
    rank_two = determinant > rounding * largest.square()
    full = (trace + s - sums) * (largest * (trace + 2 * s)).rsqrt_()
    return torch.where(rank_two, full, (sums / trace).nan_to_num(1.0)) / 2
