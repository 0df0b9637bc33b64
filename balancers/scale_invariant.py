"""Scale-invariant weighting: minimise the sum of the log-losses."""

import torch
from torch import Tensor

from .engine import LossBalancer, register


@register
class ScaleInvariant(LossBalancer):
    r"""Minimise the sum of the log-losses, :math:`\sum_i \log L_i`.

    .. math:: w_i = 1 / L_i

    The method has no parameters and no state. Multiplying a loss by a constant makes no difference to the network.
    The weights grow without bound as losses fall.

    Example::

        balancer = ScaleInvariant(["depth", "normals"])
        loss = balancer(losses)  # T in every step: log the losses, not this number
        loss.backward()

    Source: Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022, where it is the baseline SI.
    """

    name = "scale-invariant"
    summary = "Minimise the sum of the logarithms of the losses."
    use_when = "As a baseline for losses that have different scales and stay well above zero; nothing to tune."
    compares_tasks = False
    needs_positive_losses = True

    def weigh(self, losses: Tensor) -> Tensor:
        """Return weights of shape ``(..., T)`` for positive ``losses`` of shape ``(..., T)``."""
        return (1 / losses).clamp(max=torch.finfo(losses.dtype).max)
