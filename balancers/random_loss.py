"""Random loss weighting: draw new weights in every step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .engine.base import LossBalancer
from .engine.method_registry import register
from .engine.rng import Draws


@register
class RandomLossWeighting(LossBalancer):
    r"""Draw the weights as a softmax of standard normal numbers, whatever the losses.

    .. math:: w = \operatorname{softmax}(x), \quad x \sim \mathcal{N}(0, I)

    The weights sum to 1. New ones are drawn after each training step, so that evaluating the losses between steps
    draws nothing. A task without a loss in a step keeps its weight.

    Args:
        tasks: see `LossBalancer`.
        seed: seed of the random numbers.
        accumulate, check_finite: see `LossBalancer`.

    Raises:
        ValueError: ``seed`` is not an integer, 0 or more.

    Source: Lin, Ye, Zhang and Tsang, "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task
    Learning", TMLR 2022, algorithm 2, with its normal distribution. As in LibMTL and TorchJD the sum is 1, not T.
    """

    name = "random"
    summary = "Draw the weights at random in every step."
    use_when = "As a baseline: a method that does not beat it has learned nothing from the losses."
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
        """Return the weights drawn after the last step, ``(T,)``."""
        return self.next_weights.clone()

    def update(self, losses: Tensor, given: Tensor | None) -> Tensor:
        valid = losses.isfinite().all()
        drawn = self._draw(losses.device, losses.dtype)
        self.next_weights.copy_(torch.where(valid if given is None else valid & given, drawn, self.next_weights))
        return valid

    def _draw(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        x = torch.randn(self.num_tasks, dtype=dtype, device=device, generator=self._draws.on(device))
        return torch.softmax(x, -1)
