"""The point of the simplex that is nearest to a given one."""

import torch
from torch import Tensor


def project(point: Tensor, total: Tensor) -> Tensor:
    r"""Return the point nearest to ``point``, ``(T,)``, among all :math:`\lambda_i \ge 0` whose sum is ``total``.

    Source: Held, Wolfe and Crowder, "Validation of subgradient optimization", Mathematical Programming 1974.
    """
    counts = torch.arange(1, len(point) + 1, dtype=point.dtype, device=point.device)
    thresholds = (point.sort(descending=True).values.cumsum(0) - total) / counts
    return (point - thresholds.amax()).clamp(min=0)
