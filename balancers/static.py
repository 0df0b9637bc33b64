"""Static weighting: weights chosen beforehand."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import LossBalancer
from .registry import register


@register
class StaticWeighting(LossBalancer):
    """Weights that stay as they were given.

    Args:
        weights: one a task, not negative, not all zero; used as they are, whatever their sum.
        tasks: the tasks' names.
        options: ``accumulate`` and ``check_finite``, see `LossBalancer`.

    Raises:
        ValueError: a weight is negative or not finite, all are zero, or there are not as many as tasks.
    """

    name = "static"
    summary = "Weights chosen beforehand, by hand or by a search."
    reads = "nothing"

    def __init__(
        self, weights: Sequence[float] | Tensor, *, tasks: int | Sequence[str] | None = None, **options: Any
    ) -> None:
        super().__init__(len(weights) if tasks is None else tasks, **options)
        values = weights.detach().clone() if isinstance(weights, Tensor) else torch.tensor(weights)
        if values.shape != (self.num_tasks,):
            raise ValueError(f"weights has shape {tuple(values.shape)}, but {self._reader.made_for()}")
        if not all(math.isfinite(w) and w >= 0 for w in values.tolist()) or not values.any():
            raise ValueError(f"weights is {values.tolist()}; expected finite numbers, 0 or more, not all of them 0")
        self.weights = values

    def weigh(self, losses: Tensor) -> Tensor:
        """The weights, ``(T,)``."""
        return self.weights
