"""A weighting before a method that combines gradients: the method then combines ``w_i g_i`` in place of ``g_i``.

A weighting that learns from losses or norms multiplies the losses before the backward pass, so that heads get
``w_i L_i``. One that is itself found from the gradients' inner products scales the gradients within the pass, and heads
get the losses as they are.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..method.readings import Read, Result
from .base import LossBalancer

if TYPE_CHECKING:
    from .gradients import GradientBalancer


class Scaled(NamedTuple):
    """The result of a weighting that reads the inner products of a pass."""

    read: Read
    result: Result
    weights: Tensor
    """``(T',)``: what the gradients are multiplied by."""
    valid: Tensor
    """A bool scalar."""


def adopt(combining: "GradientBalancer", weighting: object) -> None:
    """Check that ``weighting`` can come before ``combining``, and have both know the same tasks and ranks.

    Raises:
        TypeError: ``weighting`` is not a balancer.
        ValueError: the two don't fit together.
    """
    if not isinstance(weighting, LossBalancer):
        raise TypeError(f"weighting is of type {type(weighting).__name__}; expected a balancer")
    name, own = type(weighting).__name__, type(combining).__name__
    if combining._weigh_takes is not None:
        raise ValueError(f"{own} has a weighting of its own: give weighting to a method that has none")
    if weighting.when == "forward":
        raise ValueError(f"{name} learns before a step is weighed, so it can't be the weighting of {own}")
    if weighting.combines and (weighting.reads != "gramian" or weighting.replaces_gradients):
        raise ValueError(f"{name} reads all entries of the gradients, so that it can't be the weighting of {own}")
    if getattr(weighting, "weighting", None) is not None or (weighting.combines and weighting._weigh_takes is not None):
        raise ValueError(f"{name} weighs the losses before it combines gradients, so it can't be a weighting itself")
    for option in ("accumulate", "update_every"):
        if getattr(weighting, option, 1) > 1:
            raise ValueError(f"weighting has {option}={getattr(weighting, option)}, but {own} combines in each pass")
    weighting.join(combining)


def scale(weighting: LossBalancer, read: Read, index: Tensor | None, finite: Tensor) -> Scaled:
    """Have a weighting that reads inner products choose what this pass's gradients are multiplied by."""
    valid, result = weighting._updated(
        read, weighting._arguments(weighting._update_takes, index, read=read), index, finite
    )
    assert result.weights is not None
    return Scaled(read, result, torch.where(valid, result.weights, 1.0), valid)


def keep(weighting: LossBalancer, scaled: Scaled, index: Tensor | None, valid: Tensor) -> None:
    """Write what `scale` found, at the end of the pass."""
    weighting._commit(scaled.result, scaled.read, index, valid)
    weighting._count_draws()
    weights = scaled.weights
    if index is not None:
        weights = weighting.last_weights.index_copy(0, index, weights)
    weighting._record(weights)
    weighting.statistics.update(scaled.result.statistics)


def teach(weighting: LossBalancer, read: Read, given: tuple[bool, ...] | None, valid: Tensor | None) -> None:
    """Have a weighting that learns from losses or norms learn, at the end of the pass, where ``valid``."""
    if weighting.looks_again:
        weighting._step_valid = valid
    if weighting._learns and not (weighting.reads == "norms" and not read.norms.numel()):
        weighting._learn(read, given, valid)
