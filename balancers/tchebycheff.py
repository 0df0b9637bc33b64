"""Tchebycheff scalarization: descend on the worst loss alone."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .engine.base import LossBalancer
from .engine.loss_input import per_task
from .engine.method_registry import register


@register
class Tchebycheff(LossBalancer):
    r"""Weights whose sum of losses has the gradient of the largest weighted distance from an ideal point.

    .. math:: \max_i \lambda_i (L_i - z_i)

    Where several are largest, they share the weight. Unlike a weighted sum it can reach any trade-off, whatever the
    shape of the Pareto front, but it trains one task at a time. What is the worst depends on the losses' scales;
    dividing preferences by typical losses, such as those of the first epoch, takes them out.

    Args:
        tasks: see `LossBalancer`.
        preferences: :math:`\lambda_i`, not negative, not all zero: one a task or a dict by name, used as they are,
            whatever their sum; by default :math:`1/T`.
        ideal: :math:`z_i`, the losses at their best: one for all, one a task, or a dict by name.
        accumulate, check_finite: see `LossBalancer`.

    Raises:
        ValueError: a preference is negative, all are zero, or there are not as many as tasks; or the same for
            ``ideal``, whose numbers must be finite.

    Source: Lin, Zhang, Yang, Liu, Wang and Zhang, "Smooth Tchebycheff Scalarization for Multi-Objective Optimization",
    ICML 2024; after Bowman, 1976.
    """

    name = "tchebycheff"
    summary = "Trains the task whose loss is the worst, by preference, and that alone."
    reads = "losses"
    use_when = "The worst task is what counts, and losses are of one scale or have known ideals and preferences."

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
        r""":math:`\lambda_i` times the share in the largest, ``(..., T)``; the last weights if a loss is not finite."""
        weights = self.preferences * self.shares(self.preferences * (losses - self.ideal))
        return torch.where(losses.isfinite().all(-1, keepdim=True), weights, self.weights)

    def shares(self, distances: Tensor) -> Tensor:
        """The derivative of the objective in each weighted distance, ``(..., T)``; its sum is 1."""
        largest = (distances == distances.amax(-1, keepdim=True)).to(distances.dtype)
        return largest / largest.sum(-1, keepdim=True)
