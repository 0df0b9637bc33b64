"""Whether a contender does what it should: trains the network on its weighted losses, and weighs as GradNorm does."""

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .peer import Peer

CLEAN = 1e-3
"""A gradient further off than this, relative to what it should be, is not owed to rounding."""


class Deviation(NamedTuple):
    """How far a contender was off, over some steps.

    Attributes:
        gradient: how far the network's gradient was from that of the weighted losses, relative to it; the largest over
            steps and parameters.
        weights: how far the weights came apart from ours, relative to how far ours had moved from 1; after the last
            step, the largest over tasks of each.
    """

    gradient: float
    weights: float


def compare(contender: Peer, ours: Peer, batches: Iterable[Any]) -> Deviation:
    """Makes a step of each on every batch. At every step, ours weighs the losses of the contender's network."""
    gradient = 0.0
    for batch in batches:
        ours.model.load_state_dict(contender.model.state_dict())
        gradient = max(gradient, gradient_deviation(contender, batch))
        ours.step(batch)
    apart = (contender.weights - ours.weights).abs().max() / (ours.weights - 1).abs().max()
    return Deviation(gradient, float(apart))


def gradient_deviation(contender: Peer, batch: Any) -> float:
    """Makes a step: how far the gradient that it trained on was from that of ``sum_i w_i L_i``, as in `Deviation`.

    ``w_i`` are the weights that the contender had before the step.
    """
    expected = _gradients(contender, batch)
    contender.step(batch)
    off = [_relative(p.grad, should) for p, should in zip(contender.model.parameters(), expected, strict=True)]
    return max(off)


def _gradients(contender: Peer, batch: Any) -> tuple[Tensor, ...]:
    model = copy.deepcopy(contender.model)  # a copy's fork is read by no balancer
    losses = contender.problem.losses(model, batch)
    total = sum(w * loss for w, loss in zip(contender.weights, losses, strict=True))
    assert isinstance(total, Tensor)
    return torch.autograd.grad(total, list(model.parameters()))


def _relative(gradient: Tensor | None, expected: Tensor) -> float:
    difference = expected if gradient is None else gradient - expected
    return float(difference.norm() / expected.norm())
