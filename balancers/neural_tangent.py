"""NTK weighting: give the terms of a physics-informed loss the same rate of convergence."""

import torch
from torch import Tensor

from .engine import Range, Read, ResidualBalancer, Result, State, option, register, state


@register
class NTKWeighting(ResidualBalancer):
    r"""Weigh each term inversely to the mean diagonal of its neural tangent kernel.

    For a loss that is the mean square of a residual :math:`r_i` with :math:`N_i` entries,

    .. math:: k_i = \frac{1}{N_i} \sum_n \lVert \nabla_\theta r_{in} \rVert^2, \quad
        \hat w_i = \frac{\frac1T \sum_j k_j}{k_i}, \quad w \leftarrow \alpha w + (1 - \alpha) \hat w

    :math:`k_i` says how fast gradient descent lowers the residual on average, so that the weights make all terms fall
    equally fast. Neither the size of the residuals nor their number counts. The weights start at 1. A task without a
    gradient, :math:`k_i = 0`, keeps its weight, and does not count in the mean. Give the residuals with `residuals`, in
    each step in which `needs_residuals` is true. Random numbers are drawn with ``probes`` alone.

    Args:
        alpha: :math:`\alpha`, at least 0 and below 1: fraction of the weights that an update keeps.
        update_every: number of windows from one update to the next.
        probes: number of random projections that estimate :math:`k_i`, for one backward pass each. 0 computes it, for
            one backward pass for each entry of the residuals.
        seed: seed of the random projections, which ``torch.manual_seed`` does not change.
        fork, wrt, options: see `GradientBalancer`; ``fork`` is None.

    Raises:
        ValueError: an option is out of range.
        RuntimeError: the residuals were not given in a step that needs them, or FSDP shards the parameters.

    Example::

        balancer = NTKWeighting(None, wrt=net, tasks=["equation", "boundary"], probes=4)
        if balancer.needs_residuals:
            balancer.residuals(residuals)
        balancer({task: r.square().mean() for task, r in residuals.items()}).backward()

    Source: Wang, Yu and Perdikaris, "When and why PINNs fail to train: A neural tangent kernel perspective", Journal of
    Computational Physics 2022, algorithm 1. There the weights are ratios of traces, :math:`\sum_j N_j k_j / (N_i k_i)`,
    without the moving average. The means, the average and the defaults are those of the authors' later code (JAXPI),
    which adds 1e-5 times the mean to :math:`k_i`. PINA's method of this name gives large gradients large weights.
    """

    name = "ntk"
    summary = "Weigh each term inversely to how fast gradient descent lowers its residuals."
    use_when = "For physics-informed networks, whose residuals are at hand and differ in how fast they fall."
    random = True
    alpha: float = option(0.9, at_least=0, below=1, tune=Range(0.5, 0.99))
    update_every: int = option(1000, at_least=1, whole=True)
    next_weights: Tensor = state(1.0)
    """:math:`w_i`, ``(T,)``."""

    def update(self, read: Read, state: State) -> Result:
        k, before = read.norms.square(), state["next_weights"]
        mean = k.sum() / (k > 0).sum()
        found = torch.where(k > 0, mean / k, before)
        return Result(state={"next_weights": torch.lerp(found, before, self.alpha)}, statistics={"kernel": k})

    def weigh(self, state: State) -> Tensor:
        """Return :math:`w_i`, ``(T,)``."""
        return state["next_weights"]
