"""SoftAdapt: weigh the tasks by a softmax of the rates at which their losses change."""

import torch
from torch import Tensor

from .dynamic_average import shared
from .engine import PeriodMeans, Range, Read, Result, State, option, register, state


@register
class SoftAdapt(PeriodMeans):
    r"""Give the most weight to the task whose loss falls least or rises most.

    Steps are grouped into periods. With the mean loss :math:`f_i(t)` over period t, all steps of period t use

    .. math:: w_i = \frac{e^{\beta s_i}}{\sum_j e^{\beta s_j}}, \quad s_i = f_i(t - 1) - f_i(t - 2).

    The weights sum to 1, and all are :math:`1/T` in the first two periods. A task without a loss in a whole period
    keeps its mean losses and its weight, and so does one that does not have two means yet. The other tasks share the
    rest, and sums over j are over these.

    Args:
        tasks: see `LossBalancer`.
        period: number of optimiser steps in a period.
        beta: :math:`\beta`; 0.1 in the paper. A negative one favours the tasks whose losses fall fastest.
        normalized: divide :math:`s_i` by :math:`\sum_j |s_j|`, so that only the proportions of the rates count.
        loss_weighted: multiply :math:`e^{\beta s_i}` by :math:`f_i(t - 1)`; for losses that are not negative.
        options: see `LossBalancer`.

    Raises:
        ValueError: ``period`` is not an integer, 1 or more, or ``beta`` is not finite.

    Example::

        balancer = SoftAdapt(["depth", "normals"], period=len(loader), beta=1.0, normalized=True)
        balancer(losses).backward()

    Source: Heydari, Thompson and Mehmood, "SoftAdapt: Techniques for Adaptive Loss Weighting of Neural Networks with
    Multi-Part Loss Functions", arXiv:1912.12355, 2019, section 3.1. The official code takes a finite difference, of
    up to fifth order, of single losses; its later version normalises by the signed sum of the rates.
    """

    name = "softadapt"
    summary = "Give more weight to tasks whose losses fall least, by a softmax of the rates of change."
    use_when = "When losses have the same scale, and a task that lags behind or gets worse should catch up."
    reads = "losses"
    beta: float = option(0.1, tune=Range(1e-2, 1e2, log=True))
    normalized: bool = option(False)
    loss_weighted: bool = option(False, fixed=True)
    next_weights: Tensor = state(lambda balancer: 1 / balancer.num_tasks)
    """:math:`w_i`, ``(T,)``."""
    last_weights: Tensor = state(lambda balancer: 1 / balancer.num_tasks)

    def prepare(self) -> None:
        self.needs_nonnegative_losses = self.loss_weighted

    def weigh(self, state: State) -> Tensor:
        """Return this period's weights, ``(T,)``."""
        return state["next_weights"]

    def update(self, read: Read, state: State) -> Result:
        new, changed = self.means(read, state)
        tiny = torch.finfo(read.losses.dtype).tiny
        rates = torch.where(changed, new["latest"] - new["earlier"], 0.0)
        if self.normalized:
            rates = rates / rates.abs().sum().clamp(min=tiny)
        logits = self.beta * rates
        if self.loss_weighted:
            logits = logits + new["latest"].clamp(min=tiny).log()
        return Result(state=new | {"next_weights": shared(logits, changed, state["next_weights"], 1)})
