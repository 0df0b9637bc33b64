"""IMTL: losses of equal size by a learned scale, then a direction with equal projections."""

from typing import Any

import torch
from torch import Tensor

from .engine.base import Range
from .engine.method_registry import register
from .engine.state_optimizer import OptimizerName, StateOptimizer
from .imtl_gradient import IMTLGradient


@register
class IMTL(IMTLGradient):
    r"""Impartial multi-task learning, both halves: IMTL-L scales the losses, IMTL-G combines what they then give.

    .. math:: \sum_i e^{s_i} L_i - s_i

    is minimised in :math:`s_i`, which start at 0, so that :math:`e^{s_i} L_i` tends to 1. The heads are trained on
    :math:`e^{s_i} L_i`, the trunk on `IMTLGradient`'s combination of their gradients.

    Args:
        lr: the scales' own learning rate.
        optimizer: the scales' own, ``"adam"`` or ``"sgd"``.
        fork, wrt, tasks, update_every, accumulate, check_finite: see `CombiningBalancer`. The paper's are the gradients
            of the features, ``wrt=None``.

    Raises:
        ValueError: ``lr`` is not positive.

    Source: Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021, eqs. 2 to 6, algorithm 1.
    """

    name = "imtl"
    summary = "Brings the losses to one size by learned scales, then takes the direction of equal projections."
    use_when = "As IMTL-G, where heads are to be balanced too."
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
        """:math:`e^{s_i}`, ``(T,)``."""
        return self.log_scales.exp()

    def update(self, losses: Tensor, given: Tensor | None) -> Tensor:
        gradient = self.log_scales.exp() * losses - 1
        valid = gradient.isfinite().all()
        self.optimizer.update(self.log_scales, gradient, valid, given)
        return valid
