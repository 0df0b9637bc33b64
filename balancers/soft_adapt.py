"""SoftAdapt: weigh the tasks by a softmax of the rates at which their losses change."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .engine.base import LossBalancer, Range
from .engine.method_registry import register
from .engine.period_means import PeriodMeans


@register
class SoftAdapt(LossBalancer):
    r"""Give the most weight to the task whose loss falls least or rises most.

    Steps are grouped into periods. With the mean loss :math:`f_i(t)` over period t, all steps of period t use

    .. math:: w_i = \frac{e^{\beta s_i}}{\sum_j e^{\beta s_j}}, \quad s_i = f_i(t - 1) - f_i(t - 2).

    The weights sum to 1, and all are :math:`1/T` in the first two periods. A task without a loss in a whole period
    keeps its mean losses and its weight.

    Args:
        tasks: see `LossBalancer`.
        period: number of optimiser steps in a period.
        beta: :math:`\beta`; 0.1 in the paper. A negative one favours the tasks whose losses fall fastest.
        normalized: divide :math:`s_i` by :math:`\sum_j |s_j|`, so that only the proportions of the rates count.
        loss_weighted: multiply :math:`e^{\beta s_i}` by :math:`f_i(t - 1)`; for losses that are not negative.
        accumulate, check_finite: see `LossBalancer`.

    Raises:
        ValueError: ``period`` is not an integer, 1 or more, or ``beta`` is not finite.

    Source: Heydari, Thompson and Mehmood, "SoftAdapt: Techniques for Adaptive Loss Weighting of Neural Networks with
    Multi-Part Loss Functions", arXiv:1912.12355, 2019, section 3.1. The official code takes a finite difference, of
    up to fifth order, of single losses; its later version normalises by the signed sum of the rates.
    """

    name = "softadapt"
    summary = "Give more weight to tasks whose losses fall least, by a softmax of the rates of change."
    use_when = "When losses have the same scale, and a task that lags behind or gets worse should catch up."
    reads = "losses"
    reads_now = False
    tunable = {"beta": Range(1e-2, 1e2, log=True)}

    next_weights: Tensor
    """:math:`w_i`, ``(T,)``."""

    def __init__(
        self,
        tasks: int | Sequence[str],
        *,
        period: int = 100,
        beta: float = 0.1,
        normalized: bool = False,
        loss_weighted: bool = False,
        accumulate: int = 1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(tasks, accumulate=accumulate, check_finite=check_finite)
        if not math.isfinite(beta):
            raise ValueError(f"beta is {beta!r}; expected a finite number")
        self.beta, self.normalized, self.loss_weighted = beta, normalized, loss_weighted
        self.means = PeriodMeans(period, self.num_tasks)
        self._register_constants("next_weights", [1 / self.num_tasks] * self.num_tasks)

    def weigh(self, losses: Tensor) -> Tensor:
        """Return this period's weights, ``(T,)``."""
        return self.next_weights.clone()

    def update(self, losses: Tensor, given: Tensor | None) -> Tensor:
        valid = losses.isfinite().all()
        if self.loss_weighted:
            valid = valid & (losses >= 0).all()
        changed = self.means.add(losses, given, valid)
        tiny = torch.finfo(losses.dtype).tiny
        rates = torch.where(self.means.periods > 1, self.means.latest - self.means.earlier, 0.0)
        if self.normalized:
            rates = rates / rates.abs().sum().clamp(min=tiny)
        logits = self.beta * rates
        if self.loss_weighted:
            logits = logits + self.means.latest.clamp(min=tiny).log()
        self.next_weights.copy_(torch.where(changed, torch.softmax(logits, -1), self.next_weights))
        return valid
