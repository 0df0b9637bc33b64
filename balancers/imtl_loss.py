"""IMTL-L: losses of equal size by a learned scale."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .engine.base import LossBalancer, Range, _positive
from .engine.method_registry import register
from .engine.state_optimizer import OptimizerName, StateOptimizer


@register
class IMTLLoss(LossBalancer):
    r"""The loss half of impartial multi-task learning: learned scales that bring all losses to 1.

    .. math:: \sum_i e^{s_i} L_i - s_i

    is minimised in :math:`s_i`, which start at 0, and the network is trained with :math:`w_i = e^{s_i}`. Scales that
    keep up with their losses make it `ScaleInvariant`.

    Args:
        tasks: see `LossBalancer`.
        lr: the scales' own learning rate.
        optimizer: the scales' own, ``"adam"`` or ``"sgd"``.
        accumulate, check_finite: see `LossBalancer`.

    Raises:
        ValueError: ``lr`` is not positive, or ``optimizer`` is neither.

    Source: Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021, section 3.2. `IMTL` has both halves.
    """

    name = "imtl-l"
    summary = "Brings the losses to one size by learned scales."
    use_when = "Losses are on different scales, and a single batch's loss is too noisy to divide by."
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
        """:math:`e^{s_i}`, ``(T,)``."""
        return self.log_scales.exp()

    def update(self, losses: Tensor, given: Tensor | None) -> Tensor:
        gradient = self.log_scales.exp() * losses - 1
        valid = _positive(losses if given is None else torch.where(given, losses, 1.0)) & gradient.isfinite().all()
        self.optimizer.update(self.log_scales, gradient, valid, given)
        return valid
