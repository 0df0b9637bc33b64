"""Equal weighting: every task counts the same."""

from torch import Tensor

from .engine.base import LossBalancer
from .engine.method_registry import register


@register
class EqualWeighting(LossBalancer):
    r"""The plain sum of the losses, :math:`w_i = 1`: the baseline of every comparison."""

    name = "equal"
    summary = "Every weight is 1: the plain sum of the losses."
    use_when = "Always, as the baseline: with a tuned learning rate it is hard to beat."
    reads = "nothing"

    def weigh(self, losses: Tensor) -> Tensor:
        """Ones, ``(T,)``."""
        return self.weights
