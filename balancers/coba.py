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

    where the sum over s goes over the last n slopes, up to N. The divergence factor D goes from 1 to 0 when the largest
    slope grows beyond its earlier values:

    .. math:: D = \min \Big( 1, \; \frac{e^{-\tau a(t) / m}}{\operatorname{mean}_s e^{-\tau a(s) / m}} \Big), \quad
        a(s) = \max_i \alpha_i(s), \quad m = \operatorname{mean}_s |a(s)|

    These means are over all slopes so far. Once there are more than N, they are over every second one, then over every
    fourth, and so on, so that at most N are kept, and over the last one. Slopes are fitted after a warm-up, in which
    all weights are :math:`1/T`; so they are where all slopes are zero. The weights sum to 1. Tasks that have no loss in
    a step keep theirs, and the others share the rest.

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

    Source: Gong et al., "CoBa: Convergence Balancer for Multitask Finetuning of Large Language Models", EMNLP 2024. The
    paper keeps all slopes. As in the authors' code (MFTCoder), m is of the slopes' sizes. That code lets D exceed 1,
    takes the slope of the largest ratio for the largest slope, and puts the weights through one more softmax and above
    a floor.
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
    """Number of losses seen, ``(T,)``."""
    strides: Tensor = state(1.0)
    """Number of steps between two slopes of the history, ``(T,)``."""

    def prepare(self) -> None:
        for name in ("ratios", "slopes", "history"):
            self.declare(name, shape=(self.num_tasks, self.window))

    def update(self, read: Read, state: State) -> Result:
        begins = state["counts"] == 0
        counts = state["counts"] + 1
        first = torch.where(begins, read.second_losses, state["first"])
        ratio = torch.where((first > 0) & (read.second_losses > 0), read.second_losses / first, torch.nan)
        ratios = _appended(state["ratios"], ratio)
        number = (counts - self.warm_up).clamp(min=0)
        slope = torch.where(number > 0, fitted_slope(ratios, counts.clamp(max=self.window)), 0.0)
        slopes = _appended(state["slopes"], slope)
        earlier = ((number - 1).clamp(min=0) / state["strides"]).ceil()  # how many slopes the history has
        factor = divergence(state["history"], earlier, slope, self.tau)
        history, strides = recorded(state["history"], state["strides"], slope, number)
        both = balanced(slopes, number.clamp(max=self.window), factor)
        shares = state["shares"].sum() * torch.where(number.amin() > 0, both, 1 / len(slope))
        new = {"ratios": ratios, "slopes": slopes, "history": history, "strides": strides}
        return Result(
            state={"shares": shares, "first": first, "counts": counts, **new},
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


def divergence(history: Tensor, number: Tensor, now: Tensor, tau: float) -> Tensor:
    """Return D, a scalar, for the slopes ``now``, ``(T,)``, and the first ``number``, ``(T,)``, in rows ``(T, N)``."""
    n = number.amin()
    place = torch.arange(history.shape[1] + 1, device=history.device)
    counts = (place < n) | (place == history.shape[1])
    largest = torch.cat([history.amax(0), now.amax().unsqueeze(0)])
    mean = torch.where(counts, largest.abs(), 0.0).sum() / (n + 1)
    shares = torch.softmax(torch.where(counts, -tau * _ratio(largest, mean), -torch.inf), 0)
    return ((n + 1) * shares[-1]).clamp(max=1)


def recorded(history: Tensor, strides: Tensor, last: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """Return a history that has the ``last`` slope, ``(T,)``, if it is that slope's turn, and its strides.

    A row has the first slope of a task and every stride-th one after it. Where it is full, every second one of them is
    dropped, and the stride doubles.

    Args:
        history: ``(T, N)``.
        strides: ``(T,)``, powers of two.
        last: ``(T,)``.
        number: ``(T,)``: the number of slopes so far, the last one included.
    """
    N = history.shape[1]
    full = number - 1 >= N * strides
    halved = torch.cat([history[:, ::2], history.new_zeros(len(history), N // 2)], 1)
    history, strides = torch.where(full.unsqueeze(1), halved, history), torch.where(full, 2 * strides, strides)
    turn = ((number - 1) / strides).unsqueeze(1)  # a whole number at the slope's turn, and -1 before the first
    return torch.where(torch.arange(N, device=history.device) == turn, last.unsqueeze(1), history), strides


def balanced(slopes: Tensor, number: Tensor, factor: Tensor) -> Tensor:
    """Return weights that sum to 1, ``(T,)``, for the last ``number``, ``(T,)``, of the slopes in rows ``(T, N)``."""
    T, N = slopes.shape
    place = torch.arange(N, device=slopes.device)
    now = slopes[:, -1]
    relative = torch.softmax(T * _ratio(now, now.abs().sum()), 0)
    own = torch.where(place >= N - number.unsqueeze(1), slopes.abs(), 0.0).sum(1)
    absolute = torch.softmax(-number * _ratio(now, own), 0)
    return factor * relative + (1 - factor) * absolute


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the ratio, zero where the denominator is not positive."""
    return torch.where(denominator > 0, numerator / denominator, 0.0)
