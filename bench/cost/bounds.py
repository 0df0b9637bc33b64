"""The least that GradNorm needs on top of an equal-weighting step, from the shapes of the features and the layer."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .operation_count import count
from .subject import MakeStep, features, make


@dataclass(frozen=True)
class Bounds:
    """For gradients with respect to the last shared layer, and the features.

    Attributes:
        flops: of T gradients of the layer, from those of the features.
        layer_bytes: T+1 copies of the features and two of the layer's gradient.
        feature_bytes: T+1 copies of the features.
    """

    flops: int
    layer_bytes: int
    feature_bytes: int


def bounds(make_step: MakeStep, num_tasks: int) -> Bounds:
    """The bounds for a subject that has a fork and a last shared layer."""
    subject = make(make_step)
    z, _ = features(subject)
    ones = [torch.ones_like(part) for part in z]
    once = count(lambda: torch.autograd.grad(z, subject.layer, ones, retain_graph=True), subject.device)
    feature_bytes = (num_tasks + 1) * _bytes(z)
    return Bounds(num_tasks * once.flops, feature_bytes + 2 * _bytes(subject.layer), feature_bytes)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
