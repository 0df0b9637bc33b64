"""M-ConFIG: combine moving averages of the gradients; each step renews one of them."""

import torch
from torch import Tensor

from .conflict_free import conflict_free
from .engine import GradientBalancer, Range, Read, Result, State, option, register, state


@register
class MomentumConFIG(GradientBalancer):
    r"""Apply `ConFIG` to moving averages of the gradients, one of which is renewed in each step.

    In a step of task i,

    .. math:: m_i \leftarrow \beta m_i + (1 - \beta) \nabla L_i, \quad t_i \leftarrow t_i + 1, \quad
        \hat m_i = \frac{m_i}{1 - \beta^{t_i}}

    and the shared parameters ``wrt`` receive ConFIG's combination of all :math:`\hat m_j`. Called with all tasks'
    losses, a balancer takes the tasks in turn, one a step: only that task's loss is differentiated, so that a step
    costs hardly more than one with a single loss. Called with a ``{task: loss}`` dict of some tasks, it renews the
    averages of these, and the other losses need not be computed. Until each task had a step, the shared parameters
    receive zero. The averages take as much memory as T copies of the parameters ``wrt``. All other parameters receive
    the gradients of the losses of the step's tasks.

    Args:
        beta: :math:`\beta`, at least 0 and below 1: fraction of itself that an average keeps.
        takes_turns: False to renew the averages of all tasks in a step that has all losses.
        fork, wrt, options: see `GradientBalancer`. The method replaces the gradients of the shared parameters, so give
            all of these as ``wrt``, with a fork or with ``fork=None``. ``update_every`` must be 1.

    Raises:
        ValueError: ``beta`` is out of range, ``update_every`` is not 1, or ``wrt`` is None.

    Example::

        balancer = MomentumConFIG(net.fork, wrt=net.trunk, tasks=["class", "box"])
        balancer(losses).backward()  # of the loss of "class" alone
        balancer({"box": losses_of(net, batch)["box"]}).backward()  # a step that computes one loss

    Source: Liu, Chu and Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks", ICLR
    2025, algorithm 1, with the start of the authors' code. There the direction is also divided by the root of a moving
    average of squares of a pseudo-gradient, :math:`(f_t - \beta f_{t-1}) / (1 - \beta)` for directions :math:`f`. This
    class leaves the division to the optimiser. Adam with ``betas=(0, 0.999)`` is near it, but averages the squares of
    the direction itself. Where noise rules, these are smaller, and its steps are up to
    :math:`\sqrt{(1 + \beta) / (1 - \beta)} = 4.4` times as long.
    """

    name = "m-config"
    summary = "Combine moving averages of the gradients like config, and renew one of them in each step."
    use_when = "Instead of config, when a backward pass for each task is too slow."
    reads = "gradients"
    replaces_gradients = True
    sees_all_tasks = True
    default_wrt = "parameters"
    may_ascend = True
    undefined_for = {
        "features": "a moving average of feature gradients would mix different samples",
        "layer": "it replaces the gradients of all shared parameters, not those of one layer",
    }
    beta: float = option(0.9, at_least=0, below=1, tune=Range(0.5, 0.99))
    takes_turns: bool = option(True, fixed=True)
    tracks = "averages"
    counts: Tensor = state()
    """:math:`t_i`, ``(T,)``."""

    def track(self, gradient: Tensor, tracked: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Return the new :math:`m`, ``(T, ...)``, and their inner products, ``(T, T)``."""
        kept = 1 - (1 - self.beta) * state["present"]
        m = gradient.lerp_(tracked, kept.view(-1, *[1] * (tracked.ndim - 1)))
        rows = m.flatten(1)
        return m, rows @ rows.mT

    def update(self, read: Read, state: State) -> Result:
        present = torch.ones_like(read.losses) if read.present is None else read.present
        counts = state["counts"] + present
        seen = counts > 0
        corrections = torch.where(seen, 1 / (1 - self.beta**counts), 0.0)
        weights = corrections * conflict_free(read.tracked * torch.outer(corrections, corrections))
        return Result(torch.where(seen.all(), weights, 0.0), {"counts": counts})
