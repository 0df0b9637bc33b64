"""UPGrad: project every gradient so that no task's loss rises, then take the mean of the projections."""

import torch
from torch import Tensor

from .engine import GradientBalancer, register
from .solvers.dual_cone import project_on_dual_cone


@register
class UPGrad(GradientBalancer):
    r"""Take the mean of the gradients' projections onto the dual cone of all of them (unconflicting projection).

    .. math:: d = \frac1T \sum_i \pi(\nabla L_i),
        \quad \pi(g) = \arg\min_{x} \lVert x - g \rVert^2 \ \text{with}\ \langle x, \nabla L_j \rangle \ge 0\ \forall j

    To first order, a descent step along it raises no task's loss. Unlike MGDA's, the length of the direction follows
    the lengths of the gradients. Without a conflict it is their mean.

    Args:
        fork, wrt, options: see `GradientBalancer`.

    Example::

        balancer = UPGrad(net.fork, wrt=net.trunk, averaging=0.9)
        balancer(losses).backward()

    Source: Quinton and Rey, "Jacobian Descent for Multi-Objective Optimization", 2024, eqs. 3 and 4.
    """

    name = "upgrad"
    summary = "Project each gradient so that no task's loss rises, and take the mean."
    reads = "gramian"
    use_when = "When gradients conflict, no task may get worse, and each should keep its own scale."
    default_wrt = "parameters"

    def solve(self, gramian: Tensor) -> Tensor:
        """Return weights ``(..., T)``, whose sum is at least 1, for Gramians ``(..., T, T)``."""
        num_tasks = gramian.shape[-1]
        each = torch.eye(num_tasks, dtype=gramian.dtype, device=gramian.device)
        return project_on_dual_cone(gramian.unsqueeze(-3), each).mean(-2)
