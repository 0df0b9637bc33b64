"""Analytic uncertainty weighting: compute the weights in closed form instead of learning a noise."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .engine.base import LossBalancer, Range
from .engine.method_registry import register


@register
class AnalyticUncertaintyWeighting(LossBalancer):
    r"""Weigh each task by a softmax of the inverse losses (soft optimal uncertainty weighting).

    For given losses, the objective of `UncertaintyWeighting` is smallest at :math:`w_i \propto 1 / L_i`. This method
    takes a softmax of these weights, with a temperature :math:`\tau`:

    .. math:: w_i = \frac{e^{1 / (\tau L_i)}}{\sum_j e^{1 / (\tau L_j)}}, \quad \sum_i w_i = 1.

    The method has no state. `ScaleInvariant` takes :math:`1 / L_i` without the softmax. The softmax makes the weights
    depend on the scale of the losses.

    Args:
        tasks: see `LossBalancer`.
        temperature: :math:`\tau`, positive, in units of one over a loss. The larger it is, the more equal are the
            weights. The paper tunes it for each data set and network.
        accumulate, check_finite: see `LossBalancer`.

    Raises:
        ValueError: ``temperature`` is not positive and finite.

    Source: Kirchdorfer et al., "Analytical Uncertainty-Based Loss Weighting in Multi-Task Learning", GCPR 2024,
    UW-SO. Public implementations add 1e-8 to the losses; this one does not.
    """

    name = "analytic-uncertainty"
    summary = "Weigh each task by a softmax of the inverse losses."
    use_when = "Instead of uncertainty, to avoid its slow start, if you can tune a temperature."
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
        """Return weights of shape ``(..., T)`` for positive ``losses`` of shape ``(..., T)``."""
        inverse = 1 / (self.temperature * losses)
        return torch.softmax(inverse.clamp(max=torch.finfo(losses.dtype).max), -1)  # a softmax of inf is NaN
