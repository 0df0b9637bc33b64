"""IMTL: bring the losses to equal size by learned scales, then take a direction with equal projections."""

from typing import Any

import torch
from torch import Tensor

from .engine.base import Range
from .engine.method_registry import register
from .engine.state_optimizer import OptimizerName, StateOptimizer
from .imtl_gradient import IMTLGradient


@register
class IMTL(IMTLGradient):
    r"""Scale the losses (IMTL-L), then combine their gradients (IMTL-G): impartial multi-task learning, both halves.

    The scales :math:`s_i` minimise

    .. math:: \sum_i e^{s_i} L_i - s_i

    and start at 0, so that :math:`e^{s_i} L_i` tends to 1. The heads are trained on :math:`e^{s_i} L_i`, and the
    trunk on `IMTLGradient`'s combination of the gradients of :math:`e^{s_i} L_i`.

    Args:
        lr: learning rate of the scales.
        optimizer: optimiser of the scales, ``"adam"`` or ``"sgd"``.
        fork, wrt, tasks, update_every, accumulate, check_finite: see `CombiningBalancer`. The paper measures the
            gradients of the features, ``wrt=None``.

    Raises:
        ValueError: ``lr`` is not positive, or ``optimizer`` is neither ``"adam"`` nor ``"sgd"``.

    Source: Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021, eqs. 2 to 6, algorithm 1.
    """

    name = "imtl"
    summary = "Bring the losses to one size by learned scales, then take the direction with equal projections."
    use_when = "Instead of imtl-g, when the heads should be balanced too."
    heads = "weighted"
    needs_positive_losses = True
    tunable = {"lr": Range(1e-4, 1e-1, log=True)}

    log_scales: Tensor
    """:math:`s_i`, ``(T,)``."""

    def __init__(self, *args: Any, lr: float = 0.025, optimizer: OptimizerName = "adam", **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("log_scales", torch.zeros(self.num_tasks))
        self.optimizer = StateOptimizer(optimizer, lr, self.num_tasks)

    def weigh(self, losses: Tensor) -> Tensor:
        """Return :math:`e^{s_i}`, ``(T,)``."""
        return self.log_scales.exp()

    def update(self, losses: Tensor, given: Tensor | None) -> Tensor:
        gradient = self.log_scales.exp() * losses - 1
        valid = gradient.isfinite().all()
        self.optimizer.update(self.log_scales, gradient, valid, given)
        return valid
