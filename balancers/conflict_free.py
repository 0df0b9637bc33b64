"""ConFIG: a direction at the same angle to all gradients, as long as what they agree on."""

import torch
from torch import Tensor

from .engine.gramian import GramianBalancer
from .engine.method_registry import register
from .solvers.spectrum import pseudo_solve


@register
class ConFIG(GramianBalancer):
    r"""The conflict-free inverse gradient: equally aligned with all gradients, and as long as their projections' sum.

    With the gradients' directions :math:`u_i = \nabla L_i / \lVert \nabla L_i \rVert` as rows of :math:`U`,

    .. math:: d = \Big( \sum_i \nabla L_i^\top \hat d \Big)\, \hat d, \quad
        \hat d = \frac{U^{+} \mathbf 1}{\lVert U^{+} \mathbf 1 \rVert}

    Here :math:`U^{+} \mathbf 1 = U^\top C^{+} \mathbf 1` with the cosines :math:`C = U U^\top`. A task without a
    gradient has the weight 0.

    Args:
        fork, wrt, tasks, update_every, accumulate, check_finite: see `CombiningBalancer`.

    Source: Liu, Chu and Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks", ICLR
    2025, eq. 2.
    """

    name = "config"
    summary = "Takes the direction at one angle to all gradients, as long as their projections on it add up to."
    use_when = "Physics-informed networks, whose losses' gradients differ by orders of magnitude."
    default_wrt = "parameters"

    def solve(self, gramian: Tensor) -> Tensor:
        """Weights ``(..., T)``."""
        norms = gramian.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
        inverse_norms = torch.where(norms > 0, 1 / norms, 0.0)
        if gramian.shape[-1] == 2:  # the bisector
            present = (norms > 0).sum(-1, keepdim=True).clamp(min=1)
            return norms.sum(-1, keepdim=True) / present * inverse_norms
        cosines = inverse_norms.unsqueeze(-1) * gramian * inverse_norms.unsqueeze(-2)
        shares = pseudo_solve(cosines, (norms > 0).to(gramian.dtype))
        alignments = torch.einsum("...ij,...j->...i", cosines, shares)
        squared_norm = (shares * alignments).sum(-1, keepdim=True)
        length = (norms * alignments).sum(-1, keepdim=True) / squared_norm
        return torch.where(squared_norm > 0, length * shares * inverse_norms, 0.0)
