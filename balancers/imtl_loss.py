"""IMTL-L: bring the losses to equal size by learned scales."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .engine.base import LossBalancer, Range, _positive
from .engine.method_registry import register
from .engine.state_optimizer import OptimizerName, StateOptimizer


@register
class IMTLLoss(LossBalancer):
    r"""Learn scales that bring all losses to 1: the loss half of impartial multi-task learning.

    The scales :math:`s_i` minimise

    .. math:: \sum_i e^{s_i} L_i - s_i

    and start at 0. The network is trained with :math:`w_i = e^{s_i}`. With scales that kept up with their losses
    exactly, this would be `ScaleInvariant`.

    Args:
        tasks: see `LossBalancer`.
        lr: learning rate of the scales.
        optimizer: optimiser of the scales, ``"adam"`` or ``"sgd"``.
        accumulate, check_finite: see `LossBalancer`.

    Raises:
        ValueError: ``lr`` is not positive, or ``optimizer`` is neither ``"adam"`` nor ``"sgd"``.

    Source: Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021, section 3.2. `IMTL` has both halves.
    """

    name = "imtl-l"
    summary = "Bring the losses to one size by learned scales."
    use_when = "When losses have different scales, and the loss of a single batch is too noisy to divide by."
    reads = "losses"
    reads_now = False
    needs_positive_losses = True
    tunable = {"lr": Range(1e-4, 1e-1, log=True)}

    log_scales: Tensor
    """:math:`s_i`, ``(T,)``."""

    def __init__(
        self,
        tasks: int | Sequence[str],
        *,
        lr: float = 0.025,
        optimizer: OptimizerName = "adam",
        accumulate: int = 1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(tasks, accumulate=accumulate, check_finite=check_finite)
        self.register_buffer("log_scales", torch.zeros(self.num_tasks))
        self.optimizer = StateOptimizer(optimizer, lr, self.num_tasks)

    def weigh(self, losses: Tensor) -> Tensor:
        """Return :math:`e^{s_i}`, ``(T,)``."""
        return self.log_scales.exp()

    def update(self, losses: Tensor, given: Tensor | None) -> Tensor:
        gradient = self.log_scales.exp() * losses - 1
        valid = _positive(losses if given is None else torch.where(given, losses, 1.0)) & gradient.isfinite().all()
        self.optimizer.update(self.log_scales, gradient, valid, given)
        return valid
