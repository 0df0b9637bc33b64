"""GO4Align: weigh tasks by risk and scale, and give all tasks of a group the same weight."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .engine import LossBalancer, Range, Read, Result, State, option, register, state


@register
class GO4Align(LossBalancer):
    r"""Group the tasks by their weights, and use each group's mean weight for all of its tasks.

    Each step moves the shares :math:`p_i`, which start at :math:`1/T`, away from tasks with large losses. A task's own
    weight :math:`q_i` also makes up for the scale of its loss:

    .. math:: p_i \leftarrow \frac{p_i e^{-\eta L_i}}{\sum_j p_j e^{-\eta L_j}}, \quad
        q_i = p_i \frac{\sum_j L_j}{L_i}, \quad w_i = \frac{1}{|C(i)|} \sum_{j \in C(i)} q_j

    The shares are this step's own. The groups :math:`C` are those of k-means: of all ways to split the tasks into K
    groups, they have the least sum of squared distances between :math:`q_i` and the mean of its group. One group gives
    every task the mean of :math:`q`, and T groups give each task its own :math:`q_i`. The share of a task whose loss
    stays above the others' tends to zero.

    A task without a loss in a step keeps its share. The other tasks keep the sum of theirs, and :math:`q` is computed
    from their shares of that sum.

    Args:
        tasks: see `LossBalancer`.
        num_groups: K, 1 or more. If there are fewer tasks in a step, each is a group of its own.
        step_size: :math:`\eta`, positive; 1e-4 in the official code.
        options: see `LossBalancer`.

    Raises:
        ValueError: ``num_groups`` is not a whole number, 1 or more, or ``step_size`` is not positive and finite.

    Example::

        balancer = GO4Align(["bus", "car", "cat", "dog"], num_groups=2)
        balancer(losses).backward()  # two different weights at most

    Source: Shen, Wang, Xiao, van Noord and Worring, "GO4Align: Group Optimization for Multi-Task Alignment", NeurIPS
    2024, as in the official code; eq. 5 of the paper has the mean of the losses in place of their sum. The code has no
    default for the number of groups. Its k-means starts at random, so its groups may differ from call to call; here the
    best groups are found exactly.
    """

    name = "go4align"
    summary = "Weigh tasks by risk and scale, and give all tasks of a group the same weight."
    reads = "losses"
    needs_positive_losses = True
    use_when = "For many tasks of different scales, some of which are alike; the weights follow each batch's losses."
    num_groups: int = option(2, at_least=1, whole=True)
    step_size: float = option(1e-4, above=0, tune=Range(1e-5, 1e-2, log=True))
    log_shares: Tensor = state(lambda balancer: -math.log(balancer.num_tasks))
    r""":math:`\log p_i`, ``(T,)``: a share itself would become zero in the end, and stay there."""

    def weigh(self, losses: Tensor, state: State) -> Tensor:
        """Return each task's mean :math:`q` over its group, ``(..., T)``, for positive losses."""
        own = self._log_shares(losses, state).exp() * losses.sum(-1, keepdim=True) / losses
        return group_means(own, self.num_groups)

    def update(self, read: Read, state: State) -> Result:
        total = torch.logsumexp(state["log_shares"], -1)
        return Result(state={"log_shares": total + self._log_shares(read.losses, state)})

    def _log_shares(self, losses: Tensor, state: State) -> Tensor:
        r"""Return the new :math:`\log p_i`, ``(..., T)``, of shares whose sum is 1."""
        return torch.log_softmax(state["log_shares"] - self.step_size * losses, -1)


def group_means(values: Tensor, num_groups: int) -> Tensor:
    """Return for each of the positive ``values``, ``(..., T)``, the mean of its group.

    Of all ways to split the values into ``num_groups`` groups, or into T if that is less, the one taken has the least
    sum of squared distances from the groups' means. Groups of sorted values are intervals, so that dynamic programming
    finds it, with T x T numbers for each group.

    Source: Wang and Song, "Ckmeans.1d.dp: Optimal k-means Clustering in One Dimension by Dynamic Programming", The R
    Journal 2011.
    """
    T = values.shape[-1]
    ordered, order = values.sort(-1)
    place = torch.arange(T, device=values.device)

    # The spread of the values i to j is the sum of their pairs' squared differences, divided by their number.
    scaled = ordered / ordered[..., -1:]
    pairs = (scaled.unsqueeze(-1) - scaled.unsqueeze(-2)).square().triu()
    sums = pairs.cumsum(-1).flip(-2).cumsum(-2).flip(-2)
    sizes = place - place.unsqueeze(-1) + 1
    spread = torch.where(sizes > 0, sums / sizes, torch.inf)

    # The least spread of the first j values in one more group, and where the last of these groups starts.
    least, starts = spread[..., 0, :], list[Tensor]()
    for _ in range(1, min(num_groups, T)):
        before = F.pad(least[..., :-1], (1, 0), value=math.inf)
        least, start = (before.unsqueeze(-1) + spread).min(-2)
        starts.append(start)

    group = torch.zeros_like(order)
    last = torch.full_like(order[..., :1], T - 1)
    for start in reversed(starts):
        first = start.gather(-1, last)
        group = group + (place >= first)
        last = (first - 1).clamp(min=0)  # it is below 0 only if values are not finite
    together = group.unsqueeze(-1) == group.unsqueeze(-2)
    means = torch.where(together, ordered.unsqueeze(-2), 0.0).sum(-1) / together.sum(-1)
    return means.scatter(-1, order, means)
