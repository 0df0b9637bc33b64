"""CoBa: weigh tasks by the trends of their losses on a second batch."""

import torch
from torch import Tensor

from .engine import LossBalancer, Range, Read, Result, State, option, register, state


@register
class CoBa(LossBalancer):
    r"""Favour slow tasks while all converge, and hold back the tasks that diverge (convergence balancer).

    :math:`\alpha_i` is the slope of a line fitted to the last N values of :math:`L'_i(t) / L'_i(0)`, where
    :math:`L'_i` is the task's loss on a second batch, meant to be a validation batch. The relative score gives weight
    to the tasks with the largest slopes, and the absolute score to those that fall faster than they used to:

    .. math:: R_i = \operatorname{softmax}_i \Big( \frac{T \alpha_i}{\sum_j |\alpha_j|} \Big), \quad
        A_i = \operatorname{softmax}_i \Big( \frac{-n \alpha_i}{\sum_s |\alpha_i(s)|} \Big), \quad
        w_i = D R_i + (1 - D) A_i

    The divergence factor D goes from 1 to 0 when the largest slope grows beyond its earlier values:

    .. math:: D = \min \Big( 1, \; n \frac{e^{-\tau n\, a(t) / S}}{\sum_s e^{-\tau n\, a(s) / S}} \Big), \quad
        a(s) = \max_i \alpha_i(s), \quad S = \sum_s |a(s)|

    Sums over s go over the last n slopes, up to N. Slopes are fitted after a warm-up, in which all weights are
    :math:`1/T`; so they are where all slopes are zero. The weights sum to 1. Tasks that have no loss in a step keep
    theirs, and the others share the rest.

    Args:
        tasks: see `LossBalancer`.
        window: N, 2 or more: number of values that a slope is fitted to, and of slopes that it is compared with. The
            paper advises two to five times the warm-up.
        warm_up: number of first steps with equal weights. The paper advises the number of validation batches.
        tau: :math:`\tau`, positive: how sharply D falls.
        options: see `LossBalancer`. Give the second batch's losses with `second_batch`. They must be positive, or the
            step leaves the weights as they were.

    Raises:
        ValueError: ``window`` is not a whole number of 2 or more, ``warm_up`` not one of 1 or more, or ``tau`` is not
            positive.
        RuntimeError: `second_batch` was not called.

    Example::

        balancer = CoBa(["code", "maths"], warm_up=50, window=200)
        balancer.second_batch(lambda: losses_of(net, next(validation)))
        balancer(losses).backward()

    Source: Gong et al., "CoBa: Convergence Balancer for Multitask Finetuning of Large Language Models", EMNLP 2024. In
    the paper, D compares the slope with those of all steps since the warm-up, whose number is not bounded; here with
    the last N, as the absolute score does. The authors' code (MFTCoder) lets D exceed 1, takes the slope of the largest
    ratio for the largest slope, and puts the weights through one more softmax and above a floor.
    """

    name = "coba"
    summary = "Favour tasks whose validation losses fall slowly, and hold back those whose losses rise again."
    use_when = "When tasks overfit at different times, as in fine-tuning, and validation batches are cheap."
    reads = "second batch"
    when = "forward"
    needs_second_batch = True
    window: int = option(200, at_least=2, whole=True, fixed=True)
    warm_up: int = option(100, at_least=1, whole=True)
    tau: float = option(5.0, above=0, tune=Range(1.0, 10.0, log=True))
    last_weights: Tensor = state(lambda balancer: 1 / balancer.num_tasks)
    shares: Tensor = state(lambda balancer: 1 / balancer.num_tasks)
    """:math:`w_i`, ``(T,)``."""
    first: Tensor = state()
    """:math:`L'_i(0)`, ``(T,)``."""
    counts: Tensor = state()
    """Number of losses seen, up to W + N, ``(T,)``."""

    def prepare(self) -> None:
        self.declare("ratios", shape=(self.num_tasks, self.window))
        self.declare("slopes", shape=(self.num_tasks, self.window))

    def update(self, read: Read, state: State) -> Result:
        begins = state["counts"] == 0
        counts = (state["counts"] + 1).clamp(max=self.warm_up + self.window)
        first = torch.where(begins, read.second_losses, state["first"])
        ratio = torch.where((first > 0) & (read.second_losses > 0), read.second_losses / first, torch.nan)
        ratios = _appended(state["ratios"], ratio)
        number = (counts - self.warm_up).clamp(min=0)
        slope = torch.where(number > 0, fitted_slope(ratios, counts.clamp(max=self.window)), 0.0)
        slopes = _appended(state["slopes"], slope)
        shares = torch.where(number.amin() > 0, balanced(slopes, number, self.tau), 1 / len(slope))
        shares = state["shares"].sum() * shares
        return Result(
            state={"shares": shares, "first": first, "counts": counts, "ratios": ratios, "slopes": slopes},
            statistics={"slopes": slope},
        )

    def weigh(self, state: State) -> Tensor:
        """Return :math:`w_i`, ``(T,)``."""
        return state["shares"]


def _appended(rows: Tensor, last: Tensor) -> Tensor:
    """Return rows ``(T, N)`` without their first entries, and with ``last``, ``(T,)``, at their ends."""
    return torch.cat([rows[:, 1:], last.unsqueeze(1)], 1)


def fitted_slope(values: Tensor, number: Tensor) -> Tensor:
    """Return the least-squares slope, ``(T,)``, of the last ``number``, ``(T,)``, of the values in each row ``(T, N)``.

    It is zero where there are fewer than two values.
    """
    N = values.shape[1]
    place = torch.arange(N, dtype=values.dtype, device=values.device)
    centred = place - (N - (number.unsqueeze(1) + 1) / 2)
    centred = torch.where(place >= N - number.unsqueeze(1), centred, 0.0)
    rise = (centred * (values - values[:, -1:])).sum(1)
    return _ratio(rise, centred.square().sum(1))


def balanced(slopes: Tensor, number: Tensor, tau: float) -> Tensor:
    """Return weights that sum to 1, ``(T,)``, for the last ``number``, ``(T,)``, of the slopes in rows ``(T, N)``."""
    T, N = slopes.shape
    place = torch.arange(N, device=slopes.device)
    now = slopes[:, -1]
    relative = torch.softmax(T * _ratio(now, now.abs().sum()), 0)
    own = torch.where(place >= N - number.unsqueeze(1), slopes.abs(), 0.0).sum(1)
    absolute = torch.softmax(-number * _ratio(now, own), 0)

    n = number.amin()
    recent = place >= N - n
    largest = torch.where(recent, slopes.amax(0), 0.0)
    exponents = -tau * n * _ratio(largest, largest.abs().sum())
    diverging = torch.softmax(torch.where(recent, exponents, -torch.inf), 0)
    factor = (n * diverging[-1]).clamp(max=1)
    return factor * relative + (1 - factor) * absolute


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the ratio, zero where the denominator is not positive."""
    return torch.where(denominator > 0, numerator / denominator, 0.0)
