"""Uncertainty weighting: weigh the tasks by a noise that is learned with them."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from .engine import LearnedState, Read, Result, State, option, register, state

Likelihood = Literal["gaussian", "softmax"]

SHARE: dict[str, float] = {"gaussian": 0.5, "softmax": 1.0}
"""Factor of a task's loss in the negative log-likelihood, by likelihood."""


@register
class UncertaintyWeighting(LearnedState):
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
        options: see `LossBalancer`.

    Raises:
        ValueError: a likelihood is neither ``"gaussian"`` nor ``"softmax"``, the number or the names of the
            likelihoods are not those of the tasks, ``lr`` is not positive, or ``optimizer`` is neither ``"adam"`` nor
            ``"sgd"``.

    Example::

        balancer = UncertaintyWeighting(["depth", "class"], {"depth": "gaussian", "class": "softmax"})
        balancer(losses).backward()
        balancer.log_variances.exp()  # the learned noise, (T,)

    Source: Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
    Semantics", CVPR 2018, eqs. 5, 7 and 10.
    """

    name = "uncertainty"
    summary = "Weigh each task by a noise variance that is learned with the network."
    reads = "losses"
    compares_tasks = False
    use_when = (
        "As a baseline, when losses are likelihoods with different noise; "
        "the weights grow without bound as losses fall to zero."
    )

    expects_nonnegative_losses = True
    out_of_domain = "its weight grows, without bound if they go on"
    likelihoods: list[Likelihood] = option("gaussian", one_of=tuple(SHARE), per_task=True)
    learns = "log_variances"
    log_variances: Tensor = state()
    """:math:`s_i`, ``(T,)``."""
    last_weights: Tensor = state(lambda balancer: _shares(balancer.likelihoods))

    def __init__(
        self,
        tasks: int | Sequence[str],
        likelihoods: Likelihood | Sequence[Likelihood] | Mapping[str, Likelihood] = "gaussian",
        *,
        compile: bool = False,
        **options: object,
    ) -> None:
        super().__init__(tasks, compile=compile, likelihoods=likelihoods, **options)

    def prepare(self) -> None:
        self.constant("shares", _shares(self.likelihoods))

    def weigh(self, state: State) -> Tensor:
        """Return :math:`c_i e^{-s_i}`, ``(T,)``."""
        return state["shares"] * torch.exp(-state["log_variances"])

    def update(self, read: Read, state: State) -> Result:
        gradient = 0.5 - self.weigh(state) * read.losses
        return Result(gradient=gradient)


def _shares(likelihoods: Sequence[str]) -> list[float]:
    """Return :math:`c_i`."""
    return [SHARE[likelihood] for likelihood in likelihoods]
