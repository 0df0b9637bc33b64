"""DB-MTL: train on log-losses, with averaged gradients that are all scaled to the largest one's norm."""

import torch
from torch import Tensor

from .engine import GradientBalancer, Range, Read, Result, State, option, register, state


@register
class DBMTL(GradientBalancer):
    r"""Balance the losses by logarithms, and their gradients by a common norm (dual balancing).

    In step k, counted from 1, the method updates a moving average of each log-loss's gradient,

    .. math:: y_i \leftarrow \beta_k\, y_i + (1 - \beta_k) \nabla \log L_i, \quad \beta_k = \beta / k^\sigma,

    and the shared parameters ``wrt`` receive

    .. math:: \max_j \lVert y_j \rVert\, \sum_i \frac{y_i}{\lVert y_i \rVert}.

    All other parameters receive the gradients of the log-losses. The scale of a loss cancels out. The averages
    :math:`y_i` start at zero. They are not corrected for that start. So the first steps are short, and Adam, which
    remembers them, makes steps that are up to 15 % longer for a while (for ``beta=0.9``). The averages take as much
    memory as T copies of the parameters ``wrt``. ``weights`` holds the factors of the gradients of this step's losses
    themselves, :math:`\max_j \lVert y_j \rVert / (\lVert y_i \rVert L_i)`.

    Args:
        beta: :math:`\beta`, at least 0 and below 1: fraction of itself that an average keeps in a step.
        sigma: :math:`\sigma`, 0 or more: how fast this fraction shrinks from step to step; 0 or 0.5 in the paper.
        fork, wrt, options: see `GradientBalancer`. The method replaces the gradients of the shared parameters, so give
            all of these as ``wrt``, with a fork or with ``fork=None``. ``update_every`` must be 1.

    Raises:
        ValueError: ``beta`` or ``sigma`` is out of range, ``update_every`` is not 1, or ``wrt`` is None.
        ForkError: on the first step, ``wrt`` is not all parameters upstream of the fork.

    Example::

        balancer = DBMTL(net.fork, wrt=net.trunk, beta=0.9, sigma=0.5)
        balancer(losses).backward()

    Source: Lin et al., "Dual-Balancing for Multi-Task Learning", arXiv 2023, algorithm 1. The defaults are those of
    LibMTL, which is the authors' code. It adds 1e-8 in the logarithm and to the norm; this class does not.
    """

    name = "db-mtl"
    summary = "Train on log-losses, with averaged gradients that are all scaled to the largest one's norm."
    reads = "gradients"
    needs_positive_losses = True
    use_when = "When losses and gradients have very different scales, and all tasks are equally important."
    replaces_gradients = True
    default_wrt = "parameters"
    undefined_for = {
        "features": "a moving average of feature gradients would mix different samples",
        "layer": "it replaces the gradients of all shared parameters, not those of one layer",
    }
    beta: float = option(0.9, at_least=0, below=1, tune=Range(0.1, 0.9))
    sigma: float = option(0.0, at_least=0, tune=Range(0.0, 0.5))
    tracks = "averages"
    steps: Tensor = state(shape="")
    """Number of valid steps so far: k - 1 in step k; a scalar."""

    def weigh(self, losses: Tensor) -> Tensor:
        """Return :math:`1 / L_i`, ``(..., T)``, for positive losses."""
        return 1 / losses

    def track(self, gradient: Tensor, tracked: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Return the new :math:`y`, ``(T', ...)``, and its squared norms, ``(T',)``; gradients are of log-losses."""
        y = gradient.lerp_(tracked, self.beta * (state["steps"] + 1) ** -self.sigma)
        return y, y.flatten(1).square().sum(1)

    def update(self, read: Read, state: State) -> Result:
        norms = read.tracked.sqrt()
        factors = torch.where(norms > 0, norms.amax() / norms, 1.0)
        return Result(factors, {"steps": state["steps"] + 1})
