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
    :math:`\sqrt T`, whatever the norms of the tasks' gradients. It is shorter where the gradients nearly cancel, and
    tasks whose gradient is zero don't count in T.

    The official code first divides the Gramian by its norm and then clips the direction to length 1. Its direction is
    the same; the length differs, which matters to SGD but not to Adam. It also trains the heads on the weighted losses;
    here they learn from the losses as they are.

    Args:
        fork, wrt, options: see `GradientBalancer`. The paper bargains at each
            step, or at every 50th or so to save time: ``update_every=50``.

    Example::

        balancer = NashMTL(net.fork, wrt=net.trunk, update_every=50)
        balancer(losses).backward()

    Source: Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022, claim 3.1 and eq. 2. The paper
    takes a few convex approximations; here 16 steps of an interior-point method solve the equation to rounding, unless
    the gradients nearly cancel. If they cancel but for 1 %, the direction is up to 1 % off in float32, and its length
    up to 26 %. In float64 the direction is within 0.01 %, even if they cancel but for a millionth.
    """

    name = "nash-mtl"
    summary = "Take the direction of a Nash bargain: proportional gains for all tasks, at any scale of their losses."
    reads = "gramian"
    use_when = "When losses have very different scales and none should dominate."
    default_wrt = "parameters"

    def solve(self, gramian: Tensor) -> Tensor:
        """Return positive weights of shape ``(..., T)`` for Gramians of shape ``(..., T, T)``."""
        return fair_bargaining(gramian, alpha=1.0)
