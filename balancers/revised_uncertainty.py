"""Revised uncertainty weighting: a learned noise whose penalty is never negative."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .engine.base import LossBalancer, Range
from .engine.method_registry import register
from .engine.state_optimizer import OptimizerName, StateOptimizer


@register
class RevisedUncertaintyWeighting(LossBalancer):
    r"""Weights from a learned noise :math:`c_i^2` per task, as `UncertaintyWeighting`, with another penalty on it:

    .. math:: \sum_i \frac{1}{2 c_i^2} L_i + \log (1 + c_i^2)

    What is learned is :math:`s_i = \log c_i^2`, by the derivative of this; it starts at 0. The network is trained with
    :math:`w_i = 1 / (2 c_i^2)`. The penalty's lower bound, 0, keeps the whole from becoming negative, and lets the
    weight of a small loss grow as :math:`1 / \sqrt{L_i}`, not :math:`1 / L_i`.

    Args:
        tasks: see `LossBalancer`.
        lr: the :math:`s_i`'s own learning rate; the default is `UncertaintyWeighting`'s.
        optimizer: the :math:`s_i`'s own, ``"adam"`` or ``"sgd"``.
        accumulate, check_finite: see `LossBalancer`.

    Raises:
        ValueError: ``lr`` is not positive, or ``optimizer`` is neither.

    Source: Liebel and Körner, "Auxiliary Tasks in Multi-task Learning", arXiv:1805.06334, 2018. It and the public
    implementations learn :math:`c_i` itself, from 1; its logarithm can't bring about a division by zero.
    """

    name = "revised-uncertainty"
    summary = "Weighs each task by a learned noise, with a penalty on the noise that is never negative."
    reads = "losses"
    reads_now = False
    use_when = "As uncertainty, where losses come close to zero: the weights grow more slowly."
    tunable = {"lr": Range(1e-4, 1e-1, log=True)}

    log_variances: Tensor
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
        self.register_buffer("log_variances", torch.zeros(self.num_tasks))
        self.optimizer = StateOptimizer(optimizer, lr, self.num_tasks)
        self.weights.fill_(0.5)

    def weigh(self, losses: Tensor) -> Tensor:
        """:math:`e^{-s_i} / 2`, ``(T,)``."""
        return torch.exp(-self.log_variances) / 2

    def update(self, losses: Tensor, given: Tensor | None) -> Tensor:
        gradient = torch.sigmoid(self.log_variances) - torch.exp(-self.log_variances) / 2 * losses
        valid = gradient.isfinite().all()
        self.optimizer.update(self.log_variances, gradient, valid, given)
        return valid
