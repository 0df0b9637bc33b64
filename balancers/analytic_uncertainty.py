"""Analytic uncertainty weighting: compute the weights in closed form instead of learning a noise."""

import torch
from torch import Tensor

from .engine import LossBalancer, Range, option, register, state


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
        options: see `LossBalancer`.

    Raises:
        ValueError: ``temperature`` is not positive and finite.

    Example::

        balancer = AnalyticUncertaintyWeighting(["depth", "normals"], temperature=10.0)
        balancer(losses).backward()

    Source: Kirchdorfer et al., "Analytical Uncertainty-Based Loss Weighting in Multi-Task Learning", GCPR 2024,
    UW-SO. Public implementations add 1e-8 to the losses; this one does not.
    """

    name = "analytic-uncertainty"
    summary = "Weigh each task by a softmax of the inverse losses."
    use_when = "Instead of uncertainty, to avoid its slow start, if you can tune a temperature."
    reads = "losses"
    needs_positive_losses = True
    temperature: float = option(1.0, above=0, tune=Range(0.1, 100.0, log=True))
    last_weights: Tensor = state(lambda balancer: 1 / balancer.num_tasks)

    def weigh(self, losses: Tensor) -> Tensor:
        """Return weights of shape ``(..., T)`` for positive ``losses`` of shape ``(..., T)``."""
        inverse = 1 / (self.temperature * losses)
        return torch.softmax(inverse.clamp(max=torch.finfo(losses.dtype).max), -1)  # a softmax of inf is NaN
