"""MGDA: take the shortest of all weighted means of the gradients."""

from torch import Tensor

from .engine import GradientBalancer, register
from .solvers.minimum_norm import minimum_norm


@register
class MGDA(GradientBalancer):
    r"""Find the weights in the simplex whose combined gradient is the shortest (multiple-gradient descent algorithm).

    .. math:: \min_\lambda \Big\lVert \sum_i \lambda_i \nabla L_i \Big\rVert^2
        \quad\text{with}\quad \lambda_i \ge 0,\ \sum_i \lambda_i = 1

    To first order, a descent step along the combined gradient raises no task's loss. At a Pareto-stationary point the
    combined gradient is zero. Tasks with large gradients get small weights. At the features (``wrt=None``) this is
    MGDA-UB, the upper bound of Sener and Koltun.

    Args:
        fork, wrt, options: see `GradientBalancer`.

    Example::

        balancer = MGDA(net.fork)  # MGDA-UB, at the features; add wrt=net.trunk for MGDA itself
        balancer(losses).backward()

    Source: Désidéri, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization", Comptes Rendus
    Mathématique 2012; Sener and Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018, eq. 3
    and, at the features, the problem MGDA-UB after eq. 6. The least norm is found to rounding, while the Frank-Wolfe
    iterations of Sener and Koltun stop short of it. Their code trains the heads on the weighted losses; here, as in
    their algorithm 2, heads learn from the losses as they are.
    """

    name = "mgda"
    summary = "Take the shortest of all weighted means of the gradients, so that no task's loss rises."
    reads = "gramian"
    use_when = "When no task may get worse, whatever that costs the others; tasks with small gradients dominate."

    def solve(self, gramian: Tensor) -> Tensor:
        """Return weights of shape ``(..., T)``, in the simplex, for Gramians of shape ``(..., T, T)``."""
        return minimum_norm(gramian)
