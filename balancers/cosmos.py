"""COSMOS: minimise a weighted sum of the losses, and the angle between them and the preferences."""

import torch
from torch import Tensor

from .engine import LossBalancer, Range, State, option, register, state
from .penalty_boundary import norm, unit


@register
class COSMOS(LossBalancer):
    r"""Minimise a weighted sum of the losses, with a reward for losses that point in the direction of the preferences.

    .. math:: r^\top L - \lambda \cos(r, L), \quad
        w = r - \frac{\lambda}{\lVert L \rVert} \big( \hat r - \cos(r, L)\, \hat L \big)

    where :math:`\hat r` and :math:`\hat L` have length 1. The cosine draws the losses towards the proportions of the
    preferences, so that a larger preference allows a larger loss. The sum pulls the other way: it gives a task with a
    larger preference more weight. As the losses fall, the cosine's part of the weights grows like
    :math:`1 / \lVert L \rVert`. Where all losses are zero, the weights are :math:`r`.

    **Weights may be negative.** A task that is too far ahead of the others then gets worse. With
    :math:`\lambda = 0` no weight is negative.

    The paper draws new preferences in each step and feeds them to the network too, so that one network learns all
    trade-offs. This class is the objective alone, for one vector of preferences.

    Args:
        tasks: see `LossBalancer`.
        preferences: :math:`r_i`, not negative, not all zero: one per task or a dict by task name. They are used as they
            are, whatever their sum; by default :math:`1/T`. Where all tasks of a step have the preference 0, the
            weights stay.
        penalty: :math:`\lambda`, 0 or more; 0.01 to 8 in the paper, and by default 2 in its code.
        options: see `LossBalancer`.

    Raises:
        ValueError: ``penalty`` or a preference is negative or not finite, all preferences are zero, or the number or
            the names of the preferences are not those of the tasks.

    Example::

        balancer = COSMOS(["fit", "fairness"], preferences={"fit": 0.8, "fairness": 0.2}, penalty=1.0)
        balancer(losses).backward()

    Source: Ruchte and Grabocka, "Scalable Pareto Front Approximation for Deep Multi-Objective Learning", ICDM 2021,
    eq. 5. The official code and TorchJD have the same objective; libmoon has :math:`\hat r` in the first term too.
    """

    name = "cosmos"
    summary = "Minimise a weighted sum of the losses and their angle to the preferences."
    reads = "losses"
    may_ascend = True
    use_when = "Instead of pbi, when losses should only tend to given proportions."
    preferences: list[float] = option(lambda balancer: 1 / balancer.num_tasks, at_least=0, per_task=True)
    penalty: float = option(2.0, at_least=0, tune=Range(0.01, 8.0, log=True))
    last_weights: Tensor = state(lambda balancer: balancer.preferences)

    def prepare(self) -> None:
        if not any(self.preferences):
            raise ValueError(f"preferences is {self.preferences}; expected at least one above 0")

    def weigh(self, losses: Tensor, state: State) -> Tensor:
        r"""Return :math:`r` less :math:`\lambda` times the derivative of :math:`\cos(r, L)`, ``(..., T)``."""
        preferences, size = state["preferences"], norm(losses)
        toward, now = unit(preferences), unit(losses)
        cosine = (toward * now).sum(-1, keepdim=True)
        slopes = torch.where(size > 0, (toward - cosine * now) / size, 0.0)
        return preferences - self.penalty * slopes
