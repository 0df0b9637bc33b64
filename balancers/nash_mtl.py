"""Nash-MTL: the gradients bargain over a common direction."""

from torch import Tensor

from .engine.gramian import GramianBalancer
from .engine.method_registry import register
from .solvers.bargaining import fair_bargaining


@register
class NashMTL(GramianBalancer):
    r"""Weights that are the Nash bargaining solution between tasks, whose gains are :math:`\nabla L_i^\top d`.

    .. math:: M w = 1 / w, \quad w_i > 0

    A task's gain is inverse to its weight, so the loss's scale cancels out; the combined gradient has the norm
    :math:`\sqrt T`, whatever the gradients' own. The official code divides the Gramian by its norm first and then
    clips the direction to length 1: the same direction, of another length, which matters to SGD and not to Adam.

    Args:
        fork, wrt, tasks, update_every, accumulate, check_finite: see `CombiningBalancer`. The paper bargains at each
            step, or to save time at every 50th or so: ``update_every=50``.

    Source: Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022, claim 3.1 and eq. 2. Solved to
    rounding, where the source takes a few convex approximations.
    """

    name = "nash-mtl"
    summary = "Finds the direction that tasks would agree on in a bargain: proportional gains, whatever their scale."
    use_when = "Losses of very different scales, none of which is to dominate."
    default_wrt = "parameters"

    def solve(self, gramian: Tensor) -> Tensor:
        """Weights ``(..., T)``, positive."""
        return fair_bargaining(gramian, alpha=1.0)
