"""Inverse gradient norms: weigh each loss so that all gradients become as long as the average one."""

import torch
from torch import Tensor

from .engine import GradientBalancer, Range, Read, Result, State, option, register, state


@register
class InverseGradientNorm(GradientBalancer):
    r"""Weigh each loss by the mean norm of all gradients, divided by its own gradient's.

    The weights are moving averages. With :math:`n_i = \lVert \nabla L_i \rVert`,

    .. math:: \hat w_i = \frac{1}{n_i} \cdot \frac1T \sum_j n_j, \quad
        w_i \leftarrow \alpha w_i + (1 - \alpha) \hat w_i

    Each step applies the weights that it has just computed. :math:`w_i` starts at 1. With :math:`\alpha = 0` all
    weighted gradients have the length of the mean norm. A task whose gradient is zero keeps its weight, and does not
    count in the mean.

    With ``first_steps=K`` the norms of a task's first K steps are averaged in place of the weights. Each of these steps
    uses :math:`\hat w_i` of the averages so far, and then the weight never changes. From when the host learns that
    this holds for all tasks, which on the CPU is at once, nothing is measured any more. This definition of static
    weights is our own: no source gives one.

    At a fork, the weights are those of the trunk alone, and the heads are trained on the losses as they are. The paper
    weighs the losses, heads included, as ``fork=None`` does.

    Args:
        alpha: :math:`\alpha`, at least 0 and below 1: fraction of itself that a weight keeps in a step. It is not used
            with ``first_steps``.
        first_steps: K, 1 or more; None to update the weights for ever.
        fork, wrt, options: see `GradientBalancer`. The guide updates the weights at every thousandth step:
            ``update_every=1000``. Only these steps count in ``first_steps``.

    Raises:
        ValueError: ``alpha`` or ``first_steps`` is out of range.

    Example::

        balancer = InverseGradientNorm(None, wrt=net, tasks=["equation", "boundary"], update_every=1000)
        balancer(losses).backward()

    Source: Wang, Sankaran, Wang and Perdikaris, "An Expert's Guide to Training Physics-informed Neural Networks", arXiv
    2023, eqs. 2.12 to 2.15. As in its code, JAXPI, the norms are averaged; the paper's formula has their sum, which
    makes :math:`\hat w_i` T times as large, and PINA's ``SelfAdaptiveWeighting`` is that sum without a moving average.
    JAXPI adds :math:`10^{-5}` of the mean norm to each norm in a denominator; this class does not.
    """

    name = "inverse-norm"
    summary = "Weigh each loss by the mean gradient norm, divided by its own."
    reads = "gramian"
    use_when = "For physics-informed networks, where terms of very different scales should all be learnt."
    default_wrt = "parameters"
    alpha: float = option(0.9, at_least=0, below=1, tune=Range(0.5, 0.99))
    first_steps: int | None = option(None, at_least=1, whole=True, fixed=True)
    multipliers: Tensor = state(1.0)
    """:math:`w_i`, ``(T,)``."""
    average_norms: Tensor
    """With ``first_steps``, ``(T,)``: the mean norm of each task in these steps."""
    counts: Tensor
    """With ``first_steps``, ``(T,)``: the number of these steps that each task has had."""

    def prepare(self) -> None:
        if self.first_steps is not None:
            self.declare("average_norms")
            self.declare("counts")

    def update(self, read: Read, state: State) -> Result:
        before, norms = state["multipliers"], read.gramian.diagonal().clamp(min=0).sqrt()
        if self.first_steps is None:
            multipliers = torch.lerp(_ratios(norms), before, self.alpha)
            multipliers = torch.where(multipliers.isfinite(), multipliers, before)
            return Result(multipliers, {"multipliers": multipliers})
        averages, counts = state["average_norms"], state["counts"]
        learns = counts < self.first_steps
        averages = torch.where(learns, torch.lerp(averages, norms, 1 / (counts + 1)), averages)
        ratios = _ratios(averages)
        multipliers = torch.where(learns & ratios.isfinite(), ratios, before)
        return Result(multipliers, {"multipliers": multipliers, "average_norms": averages, "counts": counts + learns})

    def settled(self, state: State) -> Tensor | None:
        # Settled steps reuse the last weights, which contain the weights of another method, and an average of weights.
        if self.first_steps is None or self.weighting is not None or self.averaging > 0:
            return None
        return (self.counts >= self.first_steps).all()

    def not_capturable(self) -> str | None:
        static = self.first_steps is not None
        return "with first_steps its steps are not all alike" if static else super().not_capturable()


def _ratios(norms: Tensor) -> Tensor:
    """Return the mean of the norms that are above zero, divided by each, ``(T,)``; not finite for a norm of zero."""
    return norms.sum() / (norms > 0).sum() / norms
