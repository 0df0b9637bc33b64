"""Keep mean losses over periods of steps, for methods that compare one epoch with the next."""

import torch
from torch import Tensor, nn


class PeriodMeans(nn.Module):
    """Each task's mean loss over the last two periods in which it had a loss.

    Args:
        period: the number of steps in a period.
        size: the number of tasks, T.

    Raises:
        ValueError: ``period`` is not an integer of 1 or more.
    """

    current: Tensor
    """``(T,)``: mean over this period so far."""
    counts: Tensor
    """``(T,)``: number of losses in ``current``."""
    latest: Tensor
    """``(T,)``: mean over the last complete period in which the task had a loss."""
    earlier: Tensor
    """``(T,)``: mean over the one before ``latest``."""
    periods: Tensor
    """``(T,)``: number of complete periods in which the task had a loss."""
    steps: Tensor
    """Scalar: number of steps in this period so far."""

    def __init__(self, period: int, size: int) -> None:
        super().__init__()
        if not isinstance(period, int) or period < 1:
            raise ValueError(f"period is {period!r}; expected a number of steps, 1 or more")
        self.period = period
        for name in ("current", "counts", "latest", "earlier", "periods"):
            self.register_buffer(name, torch.zeros(size))
        self.register_buffer("steps", torch.zeros(()))

    def add(self, losses: Tensor, given: Tensor | None, valid: Tensor) -> Tensor:
        """Add the losses of a step, in place.

        Args:
            losses: ``(T,)``.
            given: ``(T,)``, bool: true for tasks that had a loss; None if all had.
            valid: a bool scalar; if it is false, nothing changes.

        Returns:
            ``(T,)``, bool: true for tasks that have just completed a period, but not their first.
        """
        known = valid.expand_as(losses) if given is None else valid & given
        counts = self.counts + known
        current = torch.where(known, torch.lerp(self.current, losses, 1 / counts.clamp(min=1)), self.current)
        steps = self.steps + valid
        ends = steps == self.period
        closed = ends & (counts > 0)
        self.earlier.copy_(torch.where(closed, self.latest, self.earlier))
        self.latest.copy_(torch.where(closed, current, self.latest))
        self.periods.add_(closed)
        for state, new in ((self.current, current), (self.counts, counts), (self.steps, steps)):
            state.copy_(torch.where(ends, 0.0, new))
        return closed & (self.periods > 1)
