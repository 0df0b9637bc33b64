"""PCD: follow one task's gradient as closely as the progress that every other task must make allows."""

import torch
from torch import Tensor

from .engine import GradientBalancer, Range, Read, Result, State, option, register, state
from .solvers.half_spaces import project_on_half_spaces


@register
class PCD(GradientBalancer):
    r"""Follow a primary task's gradient, and give every other task a share of progress (priority-constrained descent).

    Gradients are divided by a moving average of their size. In a task's step t, counted from 1, with
    :math:`n_i = \lVert \nabla L_i \rVert`,

    .. math:: v_i \leftarrow \beta v_i + (1 - \beta)\, n_i^2, \quad
        s_i = \Big( \frac{v_i}{1 - \beta^t} + \varepsilon \Big)^{-1/2}, \quad \tilde g_i = s_i \nabla L_i.

    With p for the primary task, the direction is the nearest to :math:`\tilde g_p` under which each other task gains at
    least a fraction :math:`\tau` of what a step along its own gradient would gain:

    .. math:: \tilde d = \arg\min_d \lVert d - \tilde g_p \rVert^2 \quad\text{s.t.}\quad
        \tilde g_j^\top d \ge \tau \lVert \tilde g_j \rVert^2 \quad (j \ne p).

    It has the form :math:`\tilde d = \tilde g_p + \sum_j \mu_j \tilde g_j` with :math:`\mu_j \ge 0`, and is scaled to
    the norm of the primary gradient: :math:`w_p = s_p\, n_p / \lVert \tilde d \rVert` and
    :math:`w_j = \mu_j s_j\, n_p / \lVert \tilde d \rVert`. With two tasks,
    :math:`\mu_j = \max(0, \tau - \tilde g_p^\top \tilde g_j / \lVert \tilde g_j \rVert^2)`.

    If no direction gives all tasks their share, the primary task is followed alone. If the primary gradient is zero, or
    :math:`\tilde d` is, all weights are zero. A step without the primary task changes nothing: all tasks keep their
    weights and :math:`v_i`.

    Args:
        primary: the task to follow, by its index or its name.
        tau: :math:`\tau`, 0 to 1: the share of progress of each other task.
        beta: :math:`\beta`, at least 0 and below 1: fraction of itself that the average :math:`v_i` keeps in a step.
        eps: :math:`\varepsilon`, 0 or more.
        fork, wrt, options: see `GradientBalancer`. The paper measures all parameters.

    Raises:
        ValueError: ``primary`` is not a task, or ``tau``, ``beta`` or ``eps`` is out of range.

    Example::

        balancer = PCD(net.fork, wrt=net.trunk, tasks=["class", "sparsity"], primary="class", tau=0.05)
        balancer(losses).backward()

    Source: Varam and AlHajri, "Not All Objectives Are Born Equal: Priority-Constrained Descent for Hierarchical
    Multi-Objective Optimization", TMLR 2026, algorithm 1. The official code and TorchJD count one t for all tasks,
    which differs where tasks are left out of steps. They also take a :math:`\tau` for each task; this class does not.
    """

    name = "pcd"
    summary = "Follow a primary task's gradient as closely as a share of progress for every other task allows."
    reads = "gramian"
    use_when = "When one task is the aim and the others are side conditions, such as penalties that must keep falling."
    default_wrt = "parameters"
    primary: int | str = option(0, task=True)
    tau: float = option(0.02, at_least=0, at_most=1, tune=Range(5e-3, 0.2, log=True))
    beta: float = option(0.999, at_least=0, below=1)
    eps: float = option(1e-8, at_least=0)
    square_norms: Tensor = state()
    """:math:`v_i`, ``(T,)``."""
    steps: Tensor = state()
    """Number of valid steps so far in which a task took part, ``(T,)``: t - 1 in step t."""

    def update(self, read: Read, state: State) -> Result:
        squares, is_primary = read.gramian.diagonal(), state["is_primary"].double()
        steps = state["steps"] + 1
        v = torch.lerp(squares, state["square_norms"], self.beta)
        sizes = v.double() / (1 - self.beta ** steps.double()) + self.eps
        scales = torch.where(sizes > 0, sizes.rsqrt(), 0)
        gramian = (scales.unsqueeze(1) * read.gramian * scales).to(squares.dtype)

        shares = is_primary + _multipliers(gramian, is_primary, self.tau)
        square, terms = shares @ gramian.double() @ shares, shares * gramian.diagonal().sqrt()
        is_zero = square <= 10 * torch.finfo(squares.dtype).eps * terms.sum().square()  # up to rounding
        weights = shares * scales * torch.where(is_zero, 0, (squares.double() @ is_primary / square).sqrt())
        has_primary = is_primary.sum() > 0
        return Result(
            torch.where(has_primary, weights.to(squares.dtype), state["last_weights"]),
            {
                "square_norms": torch.where(has_primary, v, state["square_norms"]),
                "steps": torch.where(has_primary, steps, state["steps"]),
            },
        )


def _multipliers(gramian: Tensor, is_primary: Tensor, tau: float) -> Tensor:
    r"""Return :math:`\mu`, ``(T',)``, which is zero for the primary task, for the Gramian of :math:`\tilde g_i`."""
    squares = gramian.diagonal()
    bounds = torch.where(is_primary > 0, -torch.inf, tau * squares)
    if len(gramian) > 2:
        return project_on_half_spaces(gramian, is_primary, bounds)
    return torch.where(squares > 0, (bounds - gramian.double() @ is_primary) / squares, 0).clamp_min(0)
