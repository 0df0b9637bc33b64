"""Uncertainty weighting: weigh the tasks by a noise that is learned with them."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from .engine.base import LossBalancer, Range
from .engine.loss_input import entries
from .engine.method_registry import register
from .engine.state_optimizer import OptimizerName, StateOptimizer

Likelihood = Literal["gaussian", "softmax"]

SHARE: dict[str, float] = {"gaussian": 0.5, "softmax": 1.0}
"""Factor of a task's loss in the negative log-likelihood, by likelihood."""


@register
class UncertaintyWeighting(LossBalancer):
    r"""Weigh each task by a homoscedastic variance :math:`\sigma_i^2` that is learned with the network.

    With :math:`s_i = \log\sigma_i^2`, the negative log-likelihood of all tasks is

    .. math:: \sum_i c_i e^{-s_i} L_i + \tfrac12 s_i,

    where :math:`c_i = 1/2` for a Gaussian likelihood, whose :math:`L_i` is a squared error, and 1 for a softmax,
    whose :math:`L_i` is a cross-entropy. Its derivative in :math:`s_i` trains the log-variances, which start at 0.
    The network is trained with :math:`w_i = c_i e^{-s_i}`.

    Args:
        tasks: see `LossBalancer`.
        likelihoods: ``"gaussian"`` or ``"softmax"``: one for all tasks, one per task, or a dict by task name.
        lr: learning rate of the log-variances; the default is the GradNorm paper's.
        optimizer: optimiser of the log-variances, ``"adam"`` or ``"sgd"``.
        accumulate, check_finite: see `LossBalancer`.

    Raises:
        ValueError: a likelihood is neither ``"gaussian"`` nor ``"softmax"``, the number or the names of the
            likelihoods are not those of the tasks, ``lr`` is not positive, or ``optimizer`` is neither ``"adam"`` nor
            ``"sgd"``.

    Source: Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
    Semantics", CVPR 2018, eqs. 5, 7 and 10.
    """

    name = "uncertainty"
    summary = "Weigh each task by a noise variance that is learned with the network."
    reads = "losses"
    reads_now = False
    use_when = (
        "As a baseline, when losses are likelihoods with different noise; "
        "the weights grow without bound as losses fall to zero."
    )
    tunable = {"lr": Range(1e-4, 1e-1, log=True)}

    log_variances: Tensor
    """:math:`s_i`, ``(T,)``."""
    shares: Tensor
    """:math:`c_i`, ``(T,)``."""

    def __init__(
        self,
        tasks: int | Sequence[str],
        likelihoods: Likelihood | Sequence[Likelihood] | Mapping[str, Likelihood] = "gaussian",
        *,
        lr: float = 0.025,
        optimizer: OptimizerName = "adam",
        accumulate: int = 1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(tasks, accumulate=accumulate, check_finite=check_finite)
        shares = torch.tensor(self._shares(likelihoods))
        self.register_buffer("shares", shares, persistent=False)
        self.register_buffer("log_variances", torch.zeros(self.num_tasks))
        self.optimizer = StateOptimizer(optimizer, lr, self.num_tasks)
        self.weights = shares.clone()

    def weigh(self, losses: Tensor) -> Tensor:
        """Return :math:`c_i e^{-s_i}`, ``(T,)``."""
        return self.shares * torch.exp(-self.log_variances)

    def update(self, losses: Tensor, given: Tensor | None) -> Tensor:
        gradient = 0.5 - self.shares * torch.exp(-self.log_variances) * losses
        valid = gradient.sum().isfinite()
        self.optimizer.update(self.log_variances, gradient, valid, given)
        return valid

    def _shares(self, likelihoods: Likelihood | Sequence[Likelihood] | Mapping[str, Likelihood]) -> list[float]:
        if isinstance(likelihoods, Mapping):
            if self.tasks is None or set(likelihoods) != set(self.tasks):
                raise ValueError(f"likelihoods names ({', '.join(likelihoods)}), but {self._reader.made_for()}")
            chosen = [likelihoods[task] for task in self.tasks]
        else:
            chosen = [likelihoods] * self.num_tasks if isinstance(likelihoods, str) else list(likelihoods)
        if len(chosen) != self.num_tasks:
            raise ValueError(f"likelihoods has {entries(chosen)}, but {self._reader.made_for()}")
        for likelihood in chosen:
            if likelihood not in SHARE:
                raise ValueError(f"likelihoods has {likelihood!r}; expected {' or '.join(map(repr, SHARE))}")
        return [SHARE[likelihood] for likelihood in chosen]
