"""Learn before a step: the update of a method whose ``when`` is "forward", from a second batch or from residuals.

The balancer's call updates the state and weighs the losses by it. The new state is written at the end of the backward
pass.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..loss_input import Entries
from ..method.readings import Read
from ..own_precision import own_precision
from ..torch_internals import current_pass, saved_here

if TYPE_CHECKING:
    from ..classes.base import LossBalancer


class Ahead(NamedTuple):
    """The weights of a step, and the update that led to them."""

    weights: Tensor
    """``(T,)``: those of the step."""
    valid: Tensor | None
    """A bool scalar: whether all that it learnt from and arrived at is finite; None if it learnt nothing."""
    commit: Callable[[], None]
    """Writes the new state, at the end of the step's backward pass."""


def learn_ahead(
    balancer: "LossBalancer", losses: Entries, values: Tensor, given: tuple[bool, ...] | None
) -> Ahead | None:
    """Update a balancer's state before a step, at the beginning of each window; None: it stays as it is.

    Args:
        balancer: any balancer.
        losses: those of the step.
        values: ``(T,)``: the same, detached.
        given: for each task whether it has one.

    Raises:
        RuntimeError: the method needs a second batch, and has no closure.
    """
    if balancer.when != "forward" or not balancer.begins_window:
        return None
    if current_pass() >= 0:  # a checkpoint recomputes the call, in the midst of the backward pass
        return Ahead(balancer.last_weights, None, lambda: None)
    if balancer.needs_second_batch and balancer._closure is None:
        raise RuntimeError(
            f"{type(balancer).__name__} learns from a second batch: before the first step, call "
            f"balancer.second_batch(closure) with a function that returns the losses of another batch"
        )
    own, before = given, balancer.last_weights
    read = Read(values.to(before.dtype), before)
    if balancer._ranks.size > 1:
        read.losses, given = balancer._mean_losses(read.losses, given)
    balancer.look(read, losses, own)
    index = balancer._select(read, given)
    update = balancer.compiled("_updated") if balancer.compiles and index is None else balancer._updated
    with own_precision(before):
        valid, result = update(read, balancer._arguments(balancer._update_takes, index, read=read), index, None)
    new = dict(result.state)
    if result.gradient is not None:
        new |= balancer._stepped(result.gradient, read, index)
    merged = balancer.merged(new, valid, index)
    if balancer._weighs_by_losses:
        weights = balancer._weights_by(index, merged, losses=read.losses)
        whole = weights if index is None else before.index_copy(0, index, weights)
        weights = torch.where(valid & balancer._valid(read.losses, weights), whole, before)
    else:
        weights = balancer._weights_by(None, merged)

    def commit() -> None:
        balancer._dropped = 0
        balancer.write(merged)
        balancer._count_draws()
        balancer._show_statistics(result.statistics, given)
        balancer._after_update(valid, read.losses, index)

    return Ahead(weights, valid, commit)


def second_losses(balancer: "LossBalancer", needed: Sequence[bool] | None, learning: bool) -> Entries:
    """Call the closure of `LossBalancer.second_batch`; return the losses of the tasks that are needed, None: of all.

    Args:
        balancer: one that has a closure.
        needed: for each task whether its loss is needed.
        learning: whether the losses are to be differentiated.

    Raises:
        TypeError, ValueError: the closure does not return the losses of these tasks.
    """
    assert balancer._closure is not None
    # A checkpoint around the step must not take what the second batch's graph saves for its own.
    with torch.set_grad_enabled(learning), saved_here():
        losses = balancer._closure()
    try:
        in_order, there = balancer._reader.read(losses, learning)
    except (TypeError, ValueError) as error:
        raise type(error)(f"of the second batch, {error}") from error
    wanted, had = (each or (True,) * balancer.num_tasks for each in (needed, there))
    for i, (need, has) in enumerate(zip(wanted, had, strict=True)):
        if need and not has:
            raise ValueError(
                f"the second batch has no loss of {balancer.label(i)}, which the balancer needs in this step: the "
                f"closure must return the losses of the same tasks"
            )
    if needed is None or all(needed):
        return in_order
    return [loss if need else None for loss, need in zip(in_order, needed, strict=True)]
