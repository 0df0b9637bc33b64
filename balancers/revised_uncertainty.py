"""Revised uncertainty weighting: learn a noise with a penalty that is never negative."""

import torch
from torch import Tensor

from .engine import LearnedState, Read, Result, State, register, state


@register
class RevisedUncertaintyWeighting(LearnedState):
    r"""Learn a noise :math:`c_i^2` per task, as `UncertaintyWeighting` does, but with another penalty on it.

    .. math:: \sum_i \frac{1}{2 c_i^2} L_i + \log (1 + c_i^2)

    The derivative of this objective trains :math:`s_i = \log c_i^2`, which starts at 0. The network is trained with
    :math:`w_i = 1 / (2 c_i^2)`. The penalty is never below 0. This keeps the objective from becoming negative, and
    makes the weight of a small loss grow as :math:`1 / \sqrt{L_i}`, not as :math:`1 / L_i`.

    Args:
        tasks: see `LossBalancer`.
        lr: learning rate of :math:`s_i`; the default is `UncertaintyWeighting`'s.
        optimizer: optimiser of :math:`s_i`, ``"adam"`` or ``"sgd"``.
        options: see `LossBalancer`.

    Raises:
        ValueError: ``lr`` is not positive, or ``optimizer`` is neither ``"adam"`` nor ``"sgd"``.

    Example::

        balancer = RevisedUncertaintyWeighting(["depth", "normals"], lr=0.01)
        balancer(losses).backward()
        balancer.log_variances.exp()  # the learned noise, (T,)

    Source: Liebel and Körner, "Auxiliary Tasks in Multi-task Learning", arXiv:1805.06334, 2018. The paper and the
    public implementations learn :math:`c_i` itself, starting from 1; learning its logarithm rules out division by
    zero.
    """

    name = "revised-uncertainty"
    summary = "Weigh each task by a learned noise, with a penalty on the noise that is never negative."
    reads = "losses"
    compares_tasks = False
    use_when = "Instead of uncertainty, when losses come close to zero: the weights grow more slowly."

    expects_nonnegative_losses = True
    out_of_domain = "its weight grows, without bound if they go on"
    learns = "log_variances"
    log_variances: Tensor = state()
    """:math:`s_i`, ``(T,)``."""
    last_weights: Tensor = state(0.5)

    def weigh(self, state: State) -> Tensor:
        """Return :math:`e^{-s_i} / 2`, ``(T,)``."""
        return torch.exp(-state["log_variances"]) / 2

    def update(self, read: Read, state: State) -> Result:
        gradient = torch.sigmoid(state["log_variances"]) - self.weigh(state) * read.losses
        return Result(gradient=gradient)
