"""Tchebycheff scalarisation: minimise the worst loss alone."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .engine.base import LossBalancer
from .engine.loss_input import per_task
from .engine.method_registry import register


@register
class Tchebycheff(LossBalancer):
    r"""Minimise the largest of the losses' weighted distances from an ideal point.

    .. math:: \max_i \lambda_i (L_i - z_i)

    If several tasks share the largest distance, they share the weight. Unlike a weighted sum, this objective can
    reach any trade-off, whatever the shape of the Pareto front, but it trains one task at a time. Which task is the
    worst depends on the scales of the losses. To remove these scales, divide the preferences by typical losses, such
    as those of the first epoch.

    Args:
        tasks: see `LossBalancer`.
        preferences: :math:`\lambda_i`, not negative, not all zero: one per task or a dict by task name. They are used
            as they are, whatever their sum; by default :math:`1/T`.
        ideal: :math:`z_i`, the best possible losses: one number for all tasks, one per task, or a dict by task name.
        accumulate, check_finite: see `LossBalancer`.

    Raises:
        ValueError: a preference is negative or not finite, all preferences are zero, a number in ``ideal`` is not
            finite, or the number or the names of either are not those of the tasks.

    Source: Lin, Zhang, Yang, Liu, Wang and Zhang, "Smooth Tchebycheff Scalarization for Multi-Objective
    Optimization", ICML 2024; after Bowman, 1976.
    """

    name = "tchebycheff"
    summary = "Train only the task whose loss, weighted by preferences, is the largest."
    reads = "losses"
    use_when = "When the worst task is what counts, and losses have the same scale or known ideals and preferences."

    preferences: Tensor
    r""":math:`\lambda_i`, ``(T,)``."""
    ideal: Tensor
    """:math:`z_i`, ``(T,)``."""

    def __init__(
        self,
        tasks: int | Sequence[str],
        *,
        preferences: Sequence[float] | Mapping[str, float] | None = None,
        ideal: float | Sequence[float] | Mapping[str, float] = 0.0,
        accumulate: int = 1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(tasks, accumulate=accumulate, check_finite=check_finite)
        best = per_task("ideal", ideal, self._reader)
        wanted = per_task("preferences", 1 / self.num_tasks if preferences is None else preferences, self._reader)
        if not all(math.isfinite(value) for value in best):
            raise ValueError(f"ideal is {best}; expected finite numbers")
        if not (all(math.isfinite(value) and value >= 0 for value in wanted) and any(wanted)):
            raise ValueError(f"preferences is {wanted}; expected finite numbers, 0 or more, not all of them 0")
        self._register_constants("preferences", wanted, persistent=False)
        self._register_constants("ideal", best, persistent=False)

    def weigh(self, losses: Tensor) -> Tensor:
        r"""Return :math:`\lambda_i` times `shares`, ``(..., T)``, or the last weights if a loss is not finite."""
        weights = self.preferences * self.shares(self.preferences * (losses - self.ideal))
        return torch.where(losses.isfinite().all(-1, keepdim=True), weights, self.weights)

    def shares(self, distances: Tensor) -> Tensor:
        """Return the objective's derivative in each weighted distance, ``(..., T)``, whose sum is 1."""
        largest = (distances == distances.amax(-1, keepdim=True)).to(distances.dtype)
        return largest / largest.sum(-1, keepdim=True)
