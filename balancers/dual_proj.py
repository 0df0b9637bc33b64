"""DualProj: the mean gradient projected to where no task's loss rises."""

from torch import Tensor

from .engine.gramian import GramianBalancer
from .engine.method_registry import register
from .solvers.dual_cone import project_on_dual_cone


@register
class DualProj(GramianBalancer):
    r"""The mean gradient's projection on the dual cone of the tasks' gradients.

    .. math:: d = \arg\min_x \lVert x - \bar g \rVert^2
        \quad\text{with}\quad \langle x, \nabla L_j \rangle \ge 0\ \forall j,
        \quad \bar g = \frac1T \sum_i \nabla L_i

    No task's loss rises along it, and it is the mean gradient wherever that already holds.

    Args:
        fork, wrt, tasks, update_every, accumulate, check_finite: see `CombiningBalancer`.

    Source: Lopez-Paz and Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017, eq. 11, with the
    tasks in the place of the memories.
    """

    name = "dual-proj"
    summary = "Projects the mean gradient to where no task's loss rises."
    use_when = "The mean gradient is right but for a conflict now and then."
    default_wrt = "parameters"

    def solve(self, gramian: Tensor) -> Tensor:
        """Weights ``(..., T)``, each at least 1/T."""
        num_tasks = gramian.shape[-1]
        return project_on_dual_cone(gramian, gramian.new_full((num_tasks,), 1 / num_tasks))
