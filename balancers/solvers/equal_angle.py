"""Find the combination of gradients that is at the same angle to all of them: the problem of IMTL-G and ConFIG."""

import torch
from torch import Tensor

from .interior_point import EQUAL
from .spectrum import pseudo_solve


def equal_angle(gramian: Tensor) -> Tensor:
    r"""Return the weights of the direction whose products with all unit gradients are 1, for T gradients.

    With the unit gradients :math:`u_i = g_i / |g_i|` as rows of :math:`U`, and their cosines :math:`C = U U^\top`,

    .. math:: d = U^+ \mathbf 1 = \sum_i w_i g_i, \qquad w_i = (C^+ \mathbf 1)_i / |g_i|

    The cosines and not the Gramian :math:`M = G G^\top` decide on the rank, so that a short gradient counts as much as
    a long one. If the unit gradients are linearly dependent, there may be no direction with all products equal. The
    direction is then the one whose products come nearest to 1 in the least-squares sense. If none comes nearer than the
    zero vector, up to rounding (three gradients at 120 degrees to each other), all weights are 0. The weight of a zero
    gradient is 0.

    Args:
        gramian: :math:`M`, ``(..., T, T)``.

    Returns:
        ``(..., T)``, of the Gramian's type.
    """
    norms = gramian.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    present = (norms > 0).to(gramian.dtype)
    inverse_norms = torch.where(norms > 0, 1 / norms, 0.0)
    cosines = inverse_norms.unsqueeze(-1) * gramian * inverse_norms.unsqueeze(-2)
    shares = pseudo_solve(cosines, present)
    # The vector of the products is the projection of the vector of ones, so their sum is the projection's square.
    products = (cosines @ shares.unsqueeze(-1)).squeeze(-1)
    rounding = EQUAL * gramian.shape[-1] * torch.finfo(gramian.dtype).eps
    vanishes = products.sum(-1, keepdim=True) <= rounding * present.sum(-1, keepdim=True)
    return (inverse_norms * shares).masked_fill(vanishes, 0)
