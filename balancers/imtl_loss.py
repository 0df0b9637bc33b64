"""IMTL-L: bring the losses to equal size by learned scales."""

import torch
from torch import Tensor

from .engine import LearnedState, Read, Result, State, register, state


@register
class IMTLLoss(LearnedState):
    r"""Learn scales that bring all losses to 1: the loss half of impartial multi-task learning.

    The scales :math:`s_i` minimise

    .. math:: \sum_i e^{s_i} L_i - s_i

    and start at 0. The network is trained with :math:`w_i = e^{s_i}`. With scales that kept up with their losses
    exactly, this would be `ScaleInvariant`. Losses must be zero or more. A loss of zero raises its scale by what the
    optimiser's step allows, so the weight of a loss that stays zero grows without bound.

    Args:
        tasks: see `LossBalancer`.
        lr: learning rate of the scales.
        optimizer: optimiser of the scales, ``"adam"`` or ``"sgd"``.
        options: see `LossBalancer`.

    Raises:
        ValueError: ``lr`` is not positive, or ``optimizer`` is neither ``"adam"`` nor ``"sgd"``.

    Example::

        balancer = IMTLLoss(["depth", "normals"], lr=0.01, optimizer="sgd")
        balancer(losses).backward()

    Source: Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021, section 3.2. `IMTL` has both halves.
    """

    name = "imtl-l"
    summary = "Bring the losses to one size by learned scales."
    use_when = "When losses have different scales, and the loss of a single batch is too noisy to divide by."
    reads = "losses"
    compares_tasks = False
    needs_nonnegative_losses = True
    learns = "log_scales"
    log_scales: Tensor = state()
    """:math:`s_i`, ``(T,)``."""

    def weigh(self, state: State) -> Tensor:
        """Return :math:`e^{s_i}`, ``(T,)``."""
        return grown(state["log_scales"])

    def update(self, read: Read, state: State) -> Result:
        return Result(gradient=grown(state["log_scales"]) * read.losses - 1)


def grown(log_scales: Tensor) -> Tensor:
    """Return :math:`e^{s_i}`, at most the largest finite number: times a loss of zero, infinity is not a number."""
    return log_scales.exp().clamp(max=torch.finfo(log_scales.dtype).max)
