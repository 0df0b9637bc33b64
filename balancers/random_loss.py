"""Random loss weighting: weights drawn anew in every step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .engine.base import LossBalancer
from .engine.method_registry import register
from .engine.rng import Draws


@register
class RandomLossWeighting(LossBalancer):
    r"""Weights that are a softmax of standard normal draws, whatever the losses.

    .. math:: w = \operatorname{softmax}(x), \quad x \sim \mathcal{N}(0, I)

    Their sum is 1. New ones are drawn after each step, so that looking at the losses between steps draws nothing. A
    task that was left out keeps its weight.

    Args:
        tasks: see `LossBalancer`.
        seed: of the draws.
        accumulate, check_finite: see `LossBalancer`.

    Raises:
        ValueError: ``seed`` is not an integer, 0 or more.

    Source: Lin, Ye, Zhang and Tsang, "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task
    Learning", TMLR 2022, algorithm 2, with its normal distribution. As in LibMTL and TorchJD the sum is 1, not T.
    """

    name = "random"
    summary = "Draws the weights at random in every step."
    use_when = "As a baseline: what does not beat it has learned nothing from the losses."
    reads = "nothing"
    random = True

    next_weights: Tensor
    """:math:`w_i`, ``(T,)``."""
    _draws: Draws

    def __init__(
        self, tasks: int | Sequence[str], *, seed: int = 0, accumulate: int = 1, check_finite: bool = False
    ) -> None:
        super().__init__(tasks, accumulate=accumulate, check_finite=check_finite)
        self._draws = Draws(seed)
        self._register_constants("next_weights", self._draw(torch.device("cpu"), torch.float64).tolist())

    def weigh(self, losses: Tensor) -> Tensor:
        """:math:`w_i`, ``(T,)``."""
        return self.next_weights.clone()

    def update(self, losses: Tensor, given: Tensor | None) -> Tensor:
        valid = losses.isfinite().all()
        drawn = self._draw(losses.device, losses.dtype)
        self.next_weights.copy_(torch.where(valid if given is None else valid & given, drawn, self.next_weights))
        return valid

    def _draw(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        x = torch.randn(self.num_tasks, dtype=dtype, device=device, generator=self._draws.on(device))
        return torch.softmax(x, -1)
