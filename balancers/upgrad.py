"""UPGrad: every gradient projected to where no task's loss rises, and the mean of the projections."""

import torch
from torch import Tensor

from .engine.gramian import GramianBalancer
from .engine.method_registry import register
from .solvers.dual_cone import project_on_dual_cone


@register
class UPGrad(GramianBalancer):
    r"""Unconflicting projection of gradients: the mean of the gradients' projections on the dual cone of all of them.

    .. math:: d = \frac1T \sum_i \pi(\nabla L_i),
        \quad \pi(g) = \arg\min_{x} \lVert x - g \rVert^2 \ \text{with}\ \langle x, \nabla L_j \rangle \ge 0\ \forall j

    No task's loss rises along it, and unlike MGDA's its length keeps to that of the gradients. Without a conflict it
    is their mean.

    Args:
        fork, wrt, tasks, update_every, accumulate, check_finite: see `CombiningBalancer`.

    Source: Quinton and Rey, "Jacobian Descent for Multi-Objective Optimization", 2024, eqs. 4 and 5.
    """

    name = "upgrad"
    summary = "Projects each gradient to where no task's loss rises, and takes the mean."
    use_when = "Gradients conflict and no task may lose, while each keeps its own scale."
    default_wrt = "parameters"

    def solve(self, gramian: Tensor) -> Tensor:
        """Weights ``(..., T)``, whose sum is at least 1."""
        num_tasks = gramian.shape[-1]
        each = torch.eye(num_tasks, dtype=gramian.dtype, device=gramian.device)
        return project_on_dual_cone(gramian.unsqueeze(-3), each).mean(-2)
