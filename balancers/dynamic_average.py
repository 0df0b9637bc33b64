"""Dynamic weight average: give more weight to tasks whose losses fall slowly from epoch to epoch."""

import torch
from torch import Tensor

from .engine import PeriodMeans, Range, Read, Result, State, option, register, state


@register
class DynamicWeightAverage(PeriodMeans):
    r"""Weigh each task by the ratio of its last mean loss to the one before.

    Steps are grouped into periods. With the mean loss :math:`\bar L_i(t)` over period t, all steps of period t use

    .. math:: w_i = T\, \frac{e^{r_i / \tau}}{\sum_j e^{r_j / \tau}}, \quad
        r_i = \frac{\bar L_i(t - 1)}{\bar L_i(t - 2)}.

    The weights sum to T, and all are 1 in the first two periods. The scale of a loss cancels out. A task whose earlier
    mean is zero or negative counts as constant, :math:`r_i = 1`. A task without a loss in a whole period keeps its
    means and its weight, and so does one that does not have two means yet. The other tasks share the rest.

    Args:
        tasks: see `LossBalancer`.
        period: number of optimiser steps in a period; an epoch in the paper.
        temperature: :math:`\tau`, positive; 2 in the paper. The larger it is, the more equal are the weights.
        options: see `LossBalancer`.

    Raises:
        ValueError: ``period`` is not an integer, 1 or more, or ``temperature`` is not positive and finite.

    Example::

        balancer = DynamicWeightAverage(["depth", "normals"], period=len(loader))  # a period is an epoch
        balancer(losses).backward()

    Source: Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, eq. 7. As in its code,
    LibMTL and TorchJD, the weights stay fixed for a period. Nash-MTL's code compares two windows of 25 steps, which
    move on in each step.
    """

    name = "dwa"
    summary = "Give more weight to tasks whose mean loss falls slowly from one epoch to the next."
    use_when = "When training takes many epochs and losses fall steadily; the weights stay close to equal."
    reads = "losses"
    expects_nonnegative_losses = True
    out_of_domain = "the task may count as constant"
    temperature: float = option(2.0, above=0, tune=Range(0.2, 20.0, log=True))
    next_weights: Tensor = state(1.0)
    """:math:`w_i`, ``(T,)``."""

    def weigh(self, state: State) -> Tensor:
        """Return this period's weights, ``(T,)``."""
        return state["next_weights"]

    def update(self, read: Read, state: State) -> Result:
        new, changed = self.means(read, state)
        ratios = torch.where(new["earlier"] > 0, new["latest"] / new["earlier"], 1.0)
        weights = shared(ratios / self.temperature, changed, state["next_weights"], self.num_tasks)
        return Result(state=new | {"next_weights": weights})


def shared(logits: Tensor, changed: Tensor, before: Tensor, total: int) -> Tensor:
    """Return weights ``(T,)`` that sum to ``total``: a softmax over some tasks, which share what the others leave.

    Args:
        logits: ``(T,)``.
        changed: ``(T,)``, bool: the tasks that get new weights.
        before: ``(T,)``: the weights so far, which the others keep.
        total: the sum of all weights.
    """
    rest = torch.where(changed, 0.0, before).sum()
    shares = torch.softmax(torch.where(changed, logits, -torch.inf), -1)
    return torch.where(changed, (total - rest) * shares, before)
