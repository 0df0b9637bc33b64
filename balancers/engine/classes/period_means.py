"""Keep mean losses over periods of steps, for methods that compare one epoch with the next."""

import torch
from torch import Tensor

from ..method.declared import option, state
from ..method.readings import Read, State
from .base import LossBalancer


class PeriodMeans(LossBalancer):
    """A balancer that keeps each task's mean loss over the last two periods in which the task had a loss."""

    sees_all_tasks = True
    period: int = option(100, at_least=1, whole=True)
    """The number of steps in a period."""
    current: Tensor = state()
    """``(T,)``: mean over this period so far."""
    counts: Tensor = state()
    """``(T,)``: number of losses in ``current``."""
    latest: Tensor = state()
    """``(T,)``: mean over the last complete period in which the task had a loss."""
    earlier: Tensor = state()
    """``(T,)``: mean over the one before ``latest``."""
    periods: Tensor = state()
    """``(T,)``: number of complete periods in which the task had a loss."""
    steps: Tensor = state(shape="")
    """Scalar: number of steps in this period so far."""

    def means(self, read: Read, state: State) -> tuple[dict[str, Tensor], Tensor]:
        """Return the state after one more step, and a bool tensor ``(T,)``.

        It is true for tasks that have just completed a period, but not their first.
        """
        given = torch.ones_like(read.losses, dtype=torch.bool) if read.present is None else read.present
        counts, before = state["counts"] + given, state["current"]
        current = torch.where(given, torch.lerp(before, read.losses, 1 / counts.clamp(min=1)), before)
        steps = state["steps"] + 1
        ends = steps >= self.period
        closed = ends & (counts > 0)
        new = {
            "earlier": torch.where(closed, state["latest"], state["earlier"]),
            "latest": torch.where(closed, current, state["latest"]),
            "periods": state["periods"] + closed,
        }
        for name, value in (("current", current), ("counts", counts), ("steps", steps)):
            new[name] = torch.where(ends, 0.0, value)
        return new, closed & (new["periods"] > 1)
