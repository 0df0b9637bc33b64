"""CoV-weighting: give more weight to the losses that still vary."""

import torch
from torch import Tensor

from .engine import LossBalancer, Read, Result, State, option, register, state

EPSILON = 1e-8
"""Added to the variance, so that losses that have not changed at all get equal weights."""


@register
class CoefficientOfVariation(LossBalancer):
    r"""Weigh each task by how much its loss has varied, relative to its mean.

    The loss ratio :math:`\ell_i(t) = L_i(t) / \mu_{L_i}(t - 1)` divides a loss by the mean of the losses before it.
    With the mean :math:`\mu_{\ell_i}` and the standard deviation :math:`\sigma_{\ell_i}` of these ratios over all
    steps before this one,

    .. math:: w_i \propto \frac{(\sigma_{\ell_i}^2 + 10^{-8})^{1/2}}{\mu_{\ell_i}}, \quad \sum_i w_i = 1.

    The first ratio is 1. The term :math:`10^{-8}` counts where ratios vary by :math:`10^{-4}` or less. The weights are
    :math:`1/T` until each task has two ratios. The scale of a loss cancels out. A task without a loss in a step keeps
    its weight, and the other tasks share the rest.

    Args:
        tasks: see `LossBalancer`.
        decay: fraction of itself that each mean, as a moving average, keeps in a step, between 0 and 1. With None the
            means are over the whole history. The sum behind the variance never decays.
        options: see `LossBalancer`.

    Raises:
        ValueError: ``decay`` is not between 0 and 1.

    Example::

        balancer = CoefficientOfVariation(["depth", "normals"], decay=0.99)
        balancer(losses).backward()

    Source: Groenendijk, Karaoglu, Gevers and Mensink, "Multi-Loss Weighting with Coefficient of Variations", WACV
    2021. As in the official code, the weights follow from the steps before this one, and the variance with ``decay``
    is Welford's sum with the decayed means.
    """

    name = "cov"
    summary = "Weigh each task by the coefficient of variation of its loss ratios."
    reads = "losses"
    needs_positive_losses = True
    use_when = "When the losses of one problem have different scales and some settle early; nothing to tune."
    decay: float | None = option(None, above=0, below=1)
    next_weights: Tensor = state(lambda balancer: 1 / balancer.num_tasks)
    """:math:`w_i`, ``(T,)``."""
    last_weights: Tensor = state(lambda balancer: 1 / balancer.num_tasks)
    mean_losses: Tensor = state(1.0)
    r""":math:`\mu_{L_i}`, ``(T,)``."""
    mean_ratios: Tensor = state(1.0)
    r""":math:`\mu_{\ell_i}`, ``(T,)``."""
    squares: Tensor = state()
    """Welford's sum of squared deviations of the ratios, ``(T,)``."""
    counts: Tensor = state()
    """Number of losses that each task has had, ``(T,)``."""

    def weigh(self, state: State) -> Tensor:
        """Return the weights that follow from the steps before this one, ``(T,)``."""
        return state["next_weights"]

    def update(self, read: Read, state: State) -> Result:
        before, counts = state["counts"], state["counts"] + 1
        kept = before / counts if self.decay is None else self.decay * before.clamp(max=1)
        ratios = torch.where(before == 0, 1.0, read.losses / state["mean_losses"])
        mean_ratios = torch.lerp(ratios, state["mean_ratios"], kept)
        squares = state["squares"] + (ratios - state["mean_ratios"]) * (ratios - mean_ratios)
        variations = (squares / counts + EPSILON).sqrt() / mean_ratios
        weights = (1 - read.rest) * variations / variations.sum()
        new = {
            "next_weights": torch.where((counts > 1).all(), weights, state["next_weights"]),
            "mean_losses": torch.lerp(read.losses, state["mean_losses"], kept),
            "mean_ratios": mean_ratios,
            "squares": squares,
            "counts": counts,
        }
        return Result(state=new)
