"""CoV-weighting: give more weight to the losses that still vary."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .engine.base import LossBalancer
from .engine.method_registry import register

EPSILON = 1e-8
"""Added to the variance, so that losses that have not changed at all get equal weights."""


@register
class CoefficientOfVariation(LossBalancer):
    r"""Weigh each task by how much its loss has varied, relative to its mean.

    The loss ratio :math:`\ell_i(t) = L_i(t) / \mu_{L_i}(t - 1)` divides a loss by the mean of the losses before it.
    With the mean :math:`\mu_{\ell_i}` and the standard deviation :math:`\sigma_{\ell_i}` of these ratios over all
    steps before this one,

    .. math:: w_i \propto \frac{\sigma_{\ell_i}}{\mu_{\ell_i}}, \quad \sum_i w_i = 1.

    The first ratio is 1. The weights are :math:`1/T` until each task has two ratios. The scale of a loss cancels out.
    A task without a loss in a step keeps its weight, and the other tasks share the rest.

    Args:
        tasks: see `LossBalancer`.
        decay: fraction of itself that each mean, as a moving average, keeps in a step, between 0 and 1. With None the
            means are over the whole history. The sum behind the variance never decays.
        accumulate, check_finite: see `LossBalancer`.

    Raises:
        ValueError: ``decay`` is not between 0 and 1.

    Source: Groenendijk, Karaoglu, Gevers and Mensink, "Multi-Loss Weighting with Coefficient of Variations", WACV
    2021. As in the official code, the weights follow from the steps before this one, and the variance with ``decay``
    is Welford's sum with the decayed means.
    """

    name = "cov"
    summary = "Weigh each task by the coefficient of variation of its loss ratios."
    reads = "losses"
    reads_now = False
    needs_positive_losses = True
    use_when = "When the losses of one problem have different scales and some settle early; nothing to tune."

    next_weights: Tensor
    """:math:`w_i`, ``(T,)``."""
    mean_losses: Tensor
    r""":math:`\mu_{L_i}`, ``(T,)``."""
    mean_ratios: Tensor
    r""":math:`\mu_{\ell_i}`, ``(T,)``."""
    squares: Tensor
    """Welford's sum of squared deviations of the ratios, ``(T,)``."""
    counts: Tensor
    """Number of losses that each task has had, ``(T,)``."""

    def __init__(
        self, tasks: int | Sequence[str], *, decay: float | None = None, accumulate: int = 1, check_finite: bool = False
    ) -> None:
        super().__init__(tasks, accumulate=accumulate, check_finite=check_finite)
        if decay is not None and not 0 < decay < 1:
            raise ValueError(f"decay is {decay!r}; expected a number between 0 and 1, or None")
        self.decay = decay
        self._register_constants("next_weights", [1 / self.num_tasks] * self.num_tasks)
        self.register_buffer("mean_losses", torch.ones(self.num_tasks))
        self.register_buffer("mean_ratios", torch.ones(self.num_tasks))
        self.register_buffer("squares", torch.zeros(self.num_tasks))
        self.register_buffer("counts", torch.zeros(self.num_tasks))

    def weigh(self, losses: Tensor) -> Tensor:
        """Return the weights that follow from the steps before this one, ``(T,)``."""
        return self.next_weights.clone()

    def update(self, losses: Tensor, given: Tensor | None) -> Tensor:
        readable = (losses > 0) & (losses < math.inf)
        valid = readable.all() if given is None else (readable | ~given).all()
        known = valid.expand_as(losses) if given is None else valid & given
        first = self.counts == 0
        kept = self.counts / (self.counts + 1) if self.decay is None else self.decay * self.counts.clamp(max=1)
        ratios = torch.where(first, 1.0, losses / self.mean_losses)
        mean_ratios = torch.lerp(ratios, self.mean_ratios, kept)
        squares = self.squares + (ratios - self.mean_ratios) * (ratios - mean_ratios)
        mean_losses = torch.lerp(losses, self.mean_losses, kept)
        for state, new in (
            (self.mean_ratios, mean_ratios),
            (self.squares, squares),
            (self.mean_losses, mean_losses),
            (self.counts, self.counts + 1),
        ):
            state.copy_(torch.where(known, new, state))

        variations = known * (self.squares / self.counts + EPSILON).sqrt() / self.mean_ratios
        share = 1 - torch.dot(self.next_weights, (~known).to(losses.dtype))
        weights = share * variations / variations.sum()
        self.next_weights.copy_(torch.where(known & (self.counts > 1).all(), weights, self.next_weights))
        return valid
