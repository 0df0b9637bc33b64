"""What backward passes measure: each on its own, and summed over the window between two updates and over all ranks."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from .measure import Measurement


@dataclass(eq=False)
class Pass:
    """One backward pass through the scalar that a balancer returned."""

    losses: Tensor
    """``(T,)``, detached; zero where a task was left out."""
    weights: Tensor
    """``(T,)``: what the losses were weighed with."""
    given: Tensor | None = None
    """``(T,)``: 1 where a task was given, 0 where it was left out; None where all were given."""
    factors: Tensor | None = None
    """``(T,)``: what each task's loss is multiplied by, its weight and the scale that the scalar's gradient came with;
    None until the backward pass begins."""
    measured: bool = False
    """Whether the tasks' gradients are to be measured."""
    adds_up: bool = False
    """Whether what is measured of them is to be summed over several features, passes or ranks."""
    measurement: Measurement | None = None
    valid: Tensor | None = None
    """A bool scalar: whether the gradients could be combined; None where that is not what becomes of them."""
    gradients: list[Tensor] | None = None
    """What was measured, each ``(T, ...)``."""


@dataclass(eq=False)
class Window:
    """Sums over the passes since the last update."""

    count: int = 0
    losses: Tensor | None = None
    given: Tensor | None = None
    gradients: list[Tensor] | None = None
    adds_up: bool = False

    def clear(self) -> None:
        """Begins anew."""
        self.count, self.losses, self.given, self.gradients, self.adds_up = 0, None, None, None, False

    def add(self, one: Pass) -> None:
        """Add a pass that has ended."""
        if one.given is not None or self.given is not None:
            before = self.count * torch.ones_like(one.losses) if self.given is None else self.given
            self.given = before + (1.0 if one.given is None else one.given)
        self.losses = one.losses if self.losses is None else self.losses + one.losses
        if one.gradients is not None:
            sums, self.gradients, self.adds_up = self.gradients, one.gradients, one.adds_up
            if sums is not None:
                self.gradients = [a + b for a, b in zip(sums, one.gradients, strict=True)]
        self.count += 1

    def add_other_ranks(self) -> None:
        """Add what the other ranks of ``torch.distributed``'s default group have summed: one collective call."""
        assert self.losses is not None
        given = torch.full_like(self.losses, self.count) if self.given is None else self.given
        parts = [self.losses, given, *(self.gradients or [])]
        flat = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(flat)
        sums = flat.split([part.numel() for part in parts])
        self.losses, self.given = sums[0], sums[1]
        if self.gradients is not None:
            self.gradients = [new.view_as(old) for new, old in zip(sums[2:], self.gradients, strict=True)]
        self.count *= dist.get_world_size()

    def mask(self) -> Tensor | None:
        """``(T,)``: true for tasks that a pass gave; None where all passes gave all."""
        return None if self.given is None else self.given > 0

    def mean_losses(self) -> Tensor:
        """``(T,)``: each task's mean over the passes that gave it; zero for a task that none did."""
        assert self.losses is not None
        if self.given is not None:
            return self.losses / self.given.clamp(min=1.0)
        return self.losses if self.count == 1 else self.losses / self.count
