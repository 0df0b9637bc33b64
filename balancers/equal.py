"""Equal weighting: give every task weight 1."""

from torch import Tensor

from .engine import LossBalancer, State, register


@register
class EqualWeighting(LossBalancer):
    """Sum the losses as they are, :math:`w_i = 1`: the baseline of every comparison.

    Example::

        balancer = EqualWeighting(["depth", "normals"])
        balancer(losses).backward()  # the same gradients as those of sum(losses.values())
    """

    name = "equal"
    summary = "Sum the losses as they are: every weight is 1."
    use_when = "Always, as the baseline: with a tuned learning rate it is hard to beat."
    reads = "nothing"

    def weigh(self, state: State) -> Tensor:
        """Return ones, ``(T,)``."""
        return state["last_weights"]
