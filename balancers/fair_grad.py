"""FairGrad: give each task an alpha-fair share of the progress."""

from torch import Tensor

from .engine import GradientBalancer, Range, option, register
from .solvers.bargaining import fair_bargaining


@register
class FairGrad(GradientBalancer):
    r"""Choose the weights under which the tasks' gains :math:`\nabla L_i^\top d` are alpha-fair.

    The weights solve, for the Gramian :math:`M`,

    .. math:: M w = w^{-1/\alpha}, \quad w_i > 0

    With :math:`\alpha = 1` this is `NashMTL`. The larger :math:`\alpha` is, the more the task that gains least
    counts.

    Args:
        alpha: :math:`\alpha`, the fairness, positive; mostly 2 in the paper.
        fork, wrt, options: see `GradientBalancer`.

    Raises:
        ValueError: ``alpha`` is not positive and finite.

    Example::

        balancer = FairGrad(net.fork, wrt=net.trunk, alpha=2.0)
        balancer(losses).backward()

    Source: Ban and Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024, eq. 4. The authors' code
    multiplies the direction by T and then clips it to norm 1. Its default is ``alpha=1``.
    """

    name = "fairgrad"
    summary = "Share the progress fairly between the tasks; a larger alpha shares it more evenly."
    reads = "gramian"
    use_when = "When some tasks are left behind, and you want to choose how much that matters."
    default_wrt = "parameters"
    alpha: float = option(2.0, above=0, tune=Range(0.5, 5.0, log=True))

    def solve(self, gramian: Tensor) -> Tensor:
        """Return positive weights of shape ``(..., T)`` for Gramians of shape ``(..., T, T)``."""
        return fair_bargaining(gramian, self.alpha)
