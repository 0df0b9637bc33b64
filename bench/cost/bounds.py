"""Compute bounds for what GradNorm adds to an equal-weighting step, from the shapes of the features and the layer."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .operation_count import count
from .subject import MakeStep, features, make


@dataclass(frozen=True)
class Bounds:
    """A lower bound for GradNorm's arithmetic, and upper bounds for its peak memory.

    Attributes:
        flops: lower bound at the last shared layer: floating-point operations of T gradients of the layer, given the
            gradients of the features.
        layer_bytes: upper bound at the last shared layer: T+1 copies of the features and two of the layer's gradient.
        feature_bytes: upper bound at the features: T+1 copies of them.
    """

    flops: int
    layer_bytes: int
    feature_bytes: int


def bounds(make_step: MakeStep, num_tasks: int) -> Bounds:
    """Return the bounds for a subject that has a fork and a last shared layer."""
    subject = make(make_step)
    z, _ = features(subject)
    ones = [torch.ones_like(part) for part in z]
    once = count(lambda: torch.autograd.grad(z, subject.layer, ones, retain_graph=True), subject.device)
    feature_bytes = (num_tasks + 1) * _bytes(z)
    return Bounds(num_tasks * once.flops, feature_bytes + 2 * _bytes(subject.layer), feature_bytes)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
