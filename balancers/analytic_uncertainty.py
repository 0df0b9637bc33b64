"""Analytic uncertainty weighting: the noise that would be learned, in closed form."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .engine.base import LossBalancer, Range
from .engine.method_registry import register


@register
class AnalyticUncertaintyWeighting(LossBalancer):
    r"""Soft optimal uncertainty weighting: a softmax of the weights that are best under a learned noise.

    Given the losses, `UncertaintyWeighting`'s objective is least where :math:`w_i \propto 1 / L_i`. With a temperature
    :math:`\tau`,

    .. math:: w_i = \frac{e^{1 / (\tau L_i)}}{\sum_j e^{1 / (\tau L_j)}}, \quad \sum_i w_i = 1.

    A method without state. Unlike `ScaleInvariant`, the same without the softmax, it depends on the losses' scale.

    Args:
        tasks: see `LossBalancer`.
        temperature: :math:`\tau`, positive, in units of one over a loss: the larger, the more equal the weights. The
            paper tunes it for each data set and network.
        accumulate, check_finite: see `LossBalancer`.

    Raises:
        ValueError: ``temperature`` is not positive and finite.

    Source: Kirchdorfer et al., "Analytical Uncertainty-Based Loss Weighting in Multi-Task Learning", GCPR 2024, UW-SO.
    Public implementations add 1e-8 to the losses.
    """

    name = "analytic-uncertainty"
    summary = "Weighs each task by a softmax of the inverse losses."
    use_when = "As uncertainty, without its slow start, where a temperature can be tuned."
    reads = "losses"
    needs_positive_losses = True
    tunable = {"temperature": Range(0.1, 100.0, log=True)}

    def __init__(
        self,
        tasks: int | Sequence[str],
        *,
        temperature: float = 1.0,
        accumulate: int = 1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(tasks, accumulate=accumulate, check_finite=check_finite)
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature is {temperature!r}; expected a positive, finite number")
        self.temperature = temperature
        self.weights.fill_(1 / self.num_tasks)

    def weigh(self, losses: Tensor) -> Tensor:
        """Weights of shape ``(..., T)`` for positive ``losses`` of shape ``(..., T)``."""
        inverse = 1 / (self.temperature * losses)
        return torch.softmax(inverse.clamp(max=torch.finfo(losses.dtype).max), -1)  # a softmax of infinities is nan
