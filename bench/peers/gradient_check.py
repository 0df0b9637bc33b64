"""Check that a peer trains the network on its weighted losses, and that its weights are GradNorm's."""

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.run.task_order import in_task_order

from .peer import Peer

CLEAN = 1e-3
"""Largest relative error of a gradient that rounding can explain."""


class Deviation(NamedTuple):
    """The errors of a peer over some steps.

    Attributes:
        gradient: distance of the network's gradient from the gradient of the weighted losses, relative to the latter;
            the largest over steps and parameters.
        weights: distance of the weights from ours after the last step, relative to the distance of ours from 1; each
            distance is the largest over tasks.
    """

    gradient: float
    weights: float


def compare(peer: Peer, ours: Peer, batches: Iterable[Any]) -> Deviation:
    """On every batch, make a step of the peer and one of ours from the same network, and return the peer's errors."""
    gradient = 0.0
    for batch in batches:
        ours.model.load_state_dict(peer.model.state_dict())
        gradient = max(gradient, gradient_deviation(peer, batch))
        ours.step(batch)
    apart = (peer.weights - ours.weights).abs().max() / (ours.weights - 1).abs().max()
    return Deviation(gradient, float(apart))


def gradient_deviation(peer: Peer, batch: Any) -> float:
    """Make a step, and return the error of its gradient, compared with that of ``sum_i w_i L_i`` (see `Deviation`).

    ``w_i`` are the weights that the peer had before the step.
    """
    expected = _gradients(peer, batch)
    peer.step(batch)
    errors = [_relative(p.grad, wanted) for p, wanted in zip(peer.model.parameters(), expected, strict=True)]
    return max(errors)


def _gradients(peer: Peer, batch: Any) -> tuple[Tensor, ...]:
    model = copy.deepcopy(peer.model)  # no balancer reads the fork of a copy
    losses = in_task_order(peer.problem.losses(model, batch), peer.problem.tasks)
    total = sum(w * loss for w, loss in zip(peer.weights, losses, strict=True))
    assert isinstance(total, Tensor)
    return torch.autograd.grad(total, list(model.parameters()))


def _relative(gradient: Tensor | None, expected: Tensor) -> float:
    difference = expected if gradient is None else gradient - expected
    return float(difference.norm() / expected.norm())
