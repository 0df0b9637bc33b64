"""Scale-invariant weighting: descend on the sum of the losses' logarithms."""

import torch
from torch import Tensor

from .engine.base import LossBalancer
from .engine.method_registry import register


@register
class ScaleInvariant(LossBalancer):
    r"""Weights whose sum of losses has the gradient of the sum of log-losses, :math:`\sum_i \log L_i`.

    .. math:: w_i = 1 / L_i

    A method without parameters or state: what a loss is multiplied by makes no difference to the network. The weights
    grow without bound as losses fall.

    Source: Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022, whose baseline SI it is.
    """

    name = "scale-invariant"
    summary = "Descends on the sum of the logarithms of the losses."
    use_when = "As a baseline for losses on different scales that stay well above zero; nothing to tune."
    reads = "losses"
    needs_positive_losses = True

    def weigh(self, losses: Tensor) -> Tensor:
        """Weights of shape ``(..., T)`` for positive ``losses`` of shape ``(..., T)``."""
        return (1 / losses).clamp(max=torch.finfo(losses.dtype).max)
