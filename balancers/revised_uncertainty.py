"""Revised uncertainty weighting: learn a noise with a penalty that is never negative."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .engine.base import LossBalancer, Range
from .engine.method_registry import register
from .engine.state_optimizer import OptimizerName, StateOptimizer


@register
class RevisedUncertaintyWeighting(LossBalancer):
    r"""Learn a noise :math:`c_i^2` per task, as `UncertaintyWeighting` does, but with another penalty on it.

    .. math:: \sum_i \frac{1}{2 c_i^2} L_i + \log (1 + c_i^2)

    The derivative of this objective trains :math:`s_i = \log c_i^2`, which starts at 0. The network is trained with
    :math:`w_i = 1 / (2 c_i^2)`. The penalty is never below 0. This keeps the objective from becoming negative, and
    makes the weight of a small loss grow as :math:`1 / \sqrt{L_i}`, not as :math:`1 / L_i`.

    Args:
        tasks: see `LossBalancer`.
        lr: learning rate of :math:`s_i`; the default is `UncertaintyWeighting`'s.
        optimizer: optimiser of :math:`s_i`, ``"adam"`` or ``"sgd"``.
        accumulate, check_finite: see `LossBalancer`.

    Raises:
        ValueError: ``lr`` is not positive, or ``optimizer`` is neither ``"adam"`` nor ``"sgd"``.

    Source: Liebel and Körner, "Auxiliary Tasks in Multi-task Learning", arXiv:1805.06334, 2018. The paper and the
    public implementations learn :math:`c_i` itself, starting from 1; learning its logarithm rules out division by
    zero.
    """

    name = "revised-uncertainty"
    summary = "Weigh each task by a learned noise, with a penalty on the noise that is never negative."
    reads = "losses"
    reads_now = False
    use_when = "Instead of uncertainty, when losses come close to zero: the weights grow more slowly."
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
        """Return :math:`e^{-s_i} / 2`, ``(T,)``."""
        return torch.exp(-self.log_variances) / 2

    def update(self, losses: Tensor, given: Tensor | None) -> Tensor:
        gradient = torch.sigmoid(self.log_variances) - torch.exp(-self.log_variances) / 2 * losses
        valid = gradient.isfinite().all()
        self.optimizer.update(self.log_variances, gradient, valid, given)
        return valid
