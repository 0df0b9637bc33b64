"""MGDA: the direction of least norm among all weighted means of the gradients."""

from torch import Tensor

from .engine.gramian import GramianBalancer
from .engine.method_registry import register
from .solvers.minimum_norm import minimum_norm


@register
class MGDA(GramianBalancer):
    r"""The multiple-gradient descent algorithm: weights in the simplex whose combined gradient is the shortest.

    .. math:: \min_\lambda \Big\lVert \sum_i \lambda_i \nabla L_i \Big\rVert^2
        \quad\text{with}\quad \lambda_i \ge 0,\ \sum_i \lambda_i = 1

    No task's loss rises along it, to first order, and it is zero where a point is Pareto stationary. Tasks with large
    gradients get small weights. At the features (``wrt=None``) this is the source's upper bound, MGDA-UB.

    Args:
        fork, wrt, tasks, update_every, accumulate, check_finite: see `CombiningBalancer`.

    Source: Désidéri, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization", Comptes Rendus
    Mathématique 2012; Sener and Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018, eqs. 3
    and 5. The least norm is found to rounding; the latter's Frank-Wolfe iterations stop short of it.
    """

    name = "mgda"
    summary = "Takes the shortest of all weighted means of the gradients: no task's loss rises."
    use_when = "No task may lose, whatever that costs the others; small gradients dominate."

    def solve(self, gramian: Tensor) -> Tensor:
        """Weights ``(..., T)`` in the simplex."""
        return minimum_norm(gramian)
