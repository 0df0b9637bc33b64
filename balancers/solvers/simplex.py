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


def kept_total(shares: Tensor, num_tasks: int) -> Tensor:
    """Return what the new shares of the tasks of a step must add up to: what the old ones did, a scalar.

    If the step has all ``num_tasks`` tasks, old shares that add up to 0 or to more than 1 are damaged, as large slopes
    left them in state saved by earlier versions. The total is then 1.
    """
    total = shares.sum()
    return torch.where((total > 0) & (total < 1), total, 1) if len(shares) == num_tasks else total
