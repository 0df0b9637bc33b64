"""Sum the measurements of backward passes over the window between two updates, and over all ranks."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..measuring.norms import joint_norms
from ..method.readings import NOTHING, Read
from ..ranks import Ranks
from ..torch_internals import NO_PASS

if TYPE_CHECKING:
    from ..classes.base import LossBalancer
    from .step import Step


class Window:
    """Sums over the passes since the last update."""

    _losses: Tensor
    _weights: Tensor

    def __init__(self) -> None:
        self.under_way = NO_PASS
        """The number of the backward pass under way through a loss that the balancer returned."""
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.count = 0
        self.passes = 0
        """The number of passes that ended, also of those that are not added."""
        self.given: tuple[bool, ...] | None = None
        """For each task whether a pass gave it; None where all passes gave all."""
        self._numbers: Tensor | None = None
        """``(T,)``: the number of passes that gave each task; None where all passes gave all."""
        self._total: Tensor | None = None
        """The number of passes on all ranks, a scalar; None where there is one rank."""
        self.is_measured = True
        """Whether the gradients of all passes were measured."""
        self._gradients: list[Tensor] = []
        self._squared = self._adds_up = False

    def add(self, step: "Step", balancer: "LossBalancer") -> None:
        """Add a pass that has ended."""
        losses = step.losses.to(step.weights.dtype)
        if step.given is not None or self._numbers is not None:
            number = balancer.mask(step.given).to(losses.dtype)
            before = torch.full_like(number, self.count) if self._numbers is None else self._numbers
            self._numbers = before + number
            now = step.given or (True,) * len(losses)
            past = self.given or (self.count > 0,) * len(losses)
            self.given = tuple(a or b for a, b in zip(now, past, strict=True))
        self._losses = losses if self.count == 0 else self._losses + losses
        self._weights = step.weights
        if self.count == 0:
            self._gradients, self._squared, self._adds_up = step.gradients, step.squared, step.adds_up
        elif self.is_measured and step.gradients:
            self._gradients = [a + b for a, b in zip(self._gradients, step.gradients, strict=True)]
        self.is_measured = self.is_measured and len(step.gradients) > 0
        self.count += 1

    def add_other_ranks(self, ranks: Ranks) -> None:
        """Add what the other ranks have summed, in one message."""
        count = self._losses.new_full((), self.count)
        numbers = count.expand_as(self._losses) if self._numbers is None else self._numbers
        summed = ranks.sum([count, self._losses, numbers, *self._gradients])
        self._total, self._losses, self._numbers, *self._gradients = summed

    def read(self) -> Read:
        """Return the means over the window."""
        losses = self._losses
        if self._numbers is not None:
            losses = losses / self._numbers.clamp(min=1.0)
        elif self.count > 1:
            losses = losses / self.count
        norms = NOTHING
        if self._gradients:
            norms = self._gradients[0]
            if self._adds_up:
                norms = norms.sqrt() if self._squared else joint_norms(self._gradients, losses.dtype)
                norms = norms / (self.count if self._total is None else self._total)
        return Read(losses, self._weights, norms=norms)
