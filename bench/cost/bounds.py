"""Compute bounds for what GradNorm adds to an equal-weighting step, from the shapes of the features and the layer."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from balancers.engine.graph_behind import GraphBehind
from balancers.engine.measuring.between import Between
from balancers.engine.measuring.ghost_norms import layers_between

from .operation_count import count
from .subject import MakeStep, features, make


@dataclass(frozen=True)
class Bounds:
    """A lower bound for GradNorm's arithmetic, and upper bounds for its peak memory.

    Attributes:
        flops: lower bound at the last shared layer: floating-point operations of T gradients of the layer, given the
            gradients of the features, or of their norms without these gradients where that is fewer.
        layer_bytes: upper bound at the last shared layer: T+1 copies of the features and two of the layer's gradient.
        feature_bytes: upper bound at the features: T+1 copies of them.
    """

    flops: float
    layer_bytes: int
    feature_bytes: int


def bounds(make_step: MakeStep, num_tasks: int) -> Bounds:
    """Return the bounds for a subject that has a fork and a last shared layer."""
    subject = make(make_step)
    z, _ = features(subject)
    ones = [torch.ones_like(part) for part in z]
    once = count(lambda: torch.autograd.grad(z, subject.layer, ones, retain_graph=True), subject.device)
    feature_bytes = (num_tasks + 1) * _bytes(z)
    flops = min(num_tasks * once.flops, _by_rows(z, subject.layer, num_tasks))
    return Bounds(flops, feature_bytes + 2 * _bytes(subject.layer), feature_bytes)


def _by_rows(z: Sequence[Tensor], layer: Sequence[nn.Parameter], num_tasks: int) -> float:
    """Return the operations of the norms without gradients; infinite where the layer is not taken by that way."""
    found, rest = layers_between(Between(GraphBehind(z), layer), lambda each: each.is_less(num_tasks, "norms"))
    if len(found) != 1 or rest:
        return math.inf
    [only] = found
    each = only.way.multiplications_of_each(only.shape.rows, only.shape.outputs)
    return 2 * only.shape.groups * (only.multiplications + num_tasks * each)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
