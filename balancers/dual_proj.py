"""DualProj: project the mean gradient so that no task's loss rises."""

from torch import Tensor

from .engine import GradientBalancer, register
from .solvers.dual_cone import project_on_dual_cone


@register
class DualProj(GradientBalancer):
    r"""Project the mean gradient onto the dual cone of the tasks' gradients.

    .. math:: d = \arg\min_x \lVert x - \bar g \rVert^2
        \quad\text{with}\quad \langle x, \nabla L_j \rangle \ge 0\ \forall j,
        \quad \bar g = \frac1T \sum_i \nabla L_i

    To first order, a descent step along it raises no task's loss. If the mean gradient already has that property, it
    is left as it is.

    Args:
        fork, wrt, options: see `GradientBalancer`.

    Example::

        balancer = DualProj(net.fork, wrt=net.trunk)
        balancer(losses).backward()
        balancer.weights  # 1/T each without a conflict, and more for the tasks that would lose

    Source: Lopez-Paz and Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017, eqs. 8 and 11, with
    the tasks in place of the memories.
    """

    name = "dual-proj"
    summary = "Project the mean gradient so that no task's loss rises."
    reads = "gramian"
    use_when = "When the mean gradient is right except for an occasional conflict."
    default_wrt = "parameters"

    def solve(self, gramian: Tensor) -> Tensor:
        """Return weights of shape ``(..., T)``, each at least 1/T, for Gramians of shape ``(..., T, T)``."""
        num_tasks = gramian.shape[-1]
        return project_on_dual_cone(gramian, gramian.new_full((num_tasks,), 1 / num_tasks))
