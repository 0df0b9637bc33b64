"""The point of the simplex that is nearest to a given one."""

import torch
from torch import Tensor


def project(point: Tensor, total: Tensor) -> Tensor:
    r"""Return the point nearest to ``point``, ``(T,)``, among all :math:`\lambda_i \ge 0` whose sum is ``total``.

    The sum is ``total`` up to rounding, however large the entries of ``point`` are: only their differences matter.

    Source: Held, Wolfe and Crowder, "Validation of subgradient optimization", Mathematical Programming 1974.
    """
    below = point.double()
    below = below - below.amax()
    counts = torch.arange(1, len(point) + 1, dtype=below.dtype, device=below.device)
    thresholds = (below.sort(descending=True).values.cumsum(0) - total) / counts
    return (below - thresholds.amax()).clamp(min=0).to(point.dtype)
