"""Nash-MTL: let the tasks bargain over a common direction."""

from torch import Tensor

from .engine import GradientBalancer, register
from .solvers.bargaining import fair_bargaining


@register
class NashMTL(GradientBalancer):
    r"""Choose the Nash bargaining solution between the tasks, where a task's gain is :math:`\nabla L_i^\top d`.

    The weights solve, for the Gramian :math:`M`,

    .. math:: M w = 1 / w, \quad w_i > 0

    A task's gain is one over its weight, so the scale of a loss cancels out. The combined gradient has the norm
    :math:`\sqrt T`, whatever the norms of the tasks' gradients. The official code first divides the Gramian by its
    norm and then clips the direction to length 1. Its direction is the same; the length differs, which matters to SGD
    but not to Adam.

    Args:
        fork, wrt, options: see `GradientBalancer`. The paper bargains at each
            step, or at every 50th or so to save time: ``update_every=50``.

    Example::

        balancer = NashMTL(net.fork, wrt=net.trunk, update_every=50)
        balancer(losses).backward()

    Source: Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022, claim 3.1 and eq. 2. The equation is
    solved to rounding, while the paper takes a few convex approximations.
    """

    name = "nash-mtl"
    summary = "Take the direction of a Nash bargain: proportional gains for all tasks, at any scale of their losses."
    reads = "gramian"
    use_when = "When losses have very different scales and none should dominate."
    default_wrt = "parameters"

    def solve(self, gramian: Tensor) -> Tensor:
        """Return positive weights of shape ``(..., T)`` for Gramians of shape ``(..., T, T)``."""
        return fair_bargaining(gramian, alpha=1.0)
