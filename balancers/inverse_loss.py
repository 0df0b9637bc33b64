"""Inverse initial losses: static weights, one over the mean of each loss in the first steps."""

import torch
from torch import Tensor

from .engine import LossBalancer, Read, Result, State, option, register, state


@register
class InverseInitialLoss(LossBalancer):
    r"""Weigh each loss by one over its mean in the first steps, and never change the weights after that.

    With the mean :math:`\bar L_i` of task i's loss in its first K steps, all weighted losses are equally large on
    average in these steps:

    .. math:: w_i = T\, \frac{1 / \bar L_i}{\sum_j 1 / \bar L_j}

    Each of the first steps uses the means up to and including its own losses, so that with K = 1 each loss is divided
    by its first value. The weights sum to T. The scale of a loss cancels out.

    A task whose mean is zero or negative keeps its weight, which is 1 at first, and the other tasks share the rest. A
    mean that is barely positive, of losses with changing signs, gives its task nearly all the weight. A task without a
    loss in a step keeps its weight and its mean; the tasks that have one share the sum of their weights. So a step of a
    single task changes no weight: if each batch has one task, give ``accumulate=T``, and each window is a step. While
    some task of a step is in its first K steps, the weights of all tasks in this step may change.

    Args:
        tasks: see `LossBalancer`.
        first_steps: K, 1 or more: the number of optimiser steps with a loss of the task in which its mean is taken.
        options: see `LossBalancer`.

    Raises:
        ValueError: ``first_steps`` is not a whole number, 1 or more.

    Example::

        balancer = InverseInitialLoss(["depth", "normals"], first_steps=50)  # static weights from step 50 on
        balancer(losses).backward()

    Source: this definition is our own; we found no source that gives one. It is common to divide losses by what they
    were at first. The example ``wave_1d`` of DeepXDE weighs each loss by 5 over its value before training. Chen and
    Koltun, "Photographic Image Synthesis with Cascaded Refinement Networks", ICCV 2017, rescale the terms of a loss
    once, after 100 epochs, so that they contribute equally. GradNorm's :math:`L_i(t) / L_i(0)` compares how fast
    tasks learn, and is no weighted loss. `InverseGradientNorm` with ``first_steps`` does the same by gradient norms,
    and `ScaleInvariant` divides by each step's own losses.
    """

    name = "inverse-loss"
    summary = "Weigh each loss by one over its mean in the first steps; then the weights are static."
    use_when = "As a baseline for losses of different scales: static weights without a search; nothing to tune."
    reads = "losses"
    first_steps: int = option(20, at_least=1, whole=True)
    multipliers: Tensor = state(1.0)
    """:math:`w_i`, ``(T,)``."""
    average_losses: Tensor = state()
    r""":math:`\bar L_i`, ``(T,)``; zero until a loss is known."""
    counts: Tensor = state()
    """The number of steps that each mean is taken over, ``(T,)``; at most K."""

    def weigh(self, losses: Tensor, state: State) -> Tensor:
        """Return weights of shape ``(..., T)`` for ``losses`` of shape ``(..., T)``."""
        return self._weights(self._averages(losses, state), state)

    def update(self, read: Read, state: State) -> Result:
        averages = self._averages(read.losses, state)
        counts = (state["counts"] + 1).clamp(max=self.first_steps)
        new = {"multipliers": self._weights(averages, state), "average_losses": averages, "counts": counts}
        return Result(state=new)

    def _averages(self, losses: Tensor, state: State) -> Tensor:
        r"""Return :math:`\bar L_i` after a step with these losses, ``(..., T)``."""
        before, counts = state["average_losses"], state["counts"]
        return torch.where(counts < self.first_steps, torch.lerp(before, losses, 1 / (counts + 1)), before)

    def _weights(self, averages: Tensor, state: State) -> Tensor:
        """Share the weights of all tasks whose mean is positive among them; return all weights, ``(..., T)``."""
        before, positive = state["multipliers"], averages > 0
        # Relative to the least mean, the inverse of no mean overflows.
        least = torch.where(positive, averages, torch.inf).amin(-1, keepdim=True)
        inverses = torch.where(positive, least / averages, 0.0)
        shared = torch.where(positive, before, 0.0).sum(-1, keepdim=True)
        weights = shared * inverses / inverses.sum(-1, keepdim=True)
        learns = (state["counts"] < self.first_steps).any()
        return torch.where(positive & learns, weights, before)

    def settled(self, state: State) -> Tensor | None:
        return (self.counts >= self.first_steps).all()
