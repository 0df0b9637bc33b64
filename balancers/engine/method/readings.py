"""The argument of a method's `update`, and its return value."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

NOTHING = torch.empty(0, device="cpu")
"""Stands for what was not read."""
State = Mapping[str, Tensor]
"""A method's state and constants by name. Rows of per-task state are those of the tasks that take part."""


def _itself(tensor: Tensor) -> Tensor:
    return tensor


@dataclass
class Read:
    """The measurements of a window of backward passes. T' is the number of tasks that took part.

    Example::

        def update(self, read: Read) -> Result:
            return Result(weights=read.gramian.diagonal().rsqrt())
    """

    losses: Tensor
    """``(T',)``: each task's mean loss."""
    weights: Tensor
    """``(T',)``: what the losses were multiplied by."""
    rest: Tensor | float = 0.0
    """The sum of the weights of the tasks that took no part, which keep them."""
    present: Tensor | None = None
    """``(T,)``, bool: the tasks that took part, for methods with ``sees_all_tasks``; None if all did."""
    norms: Tensor = NOTHING
    """``(T',)``: the norm of each loss's gradient; of the mean gradient where several passes or ranks make a step. Of a
    method that reads residuals, the root mean square of their gradients' norms."""
    gramian: Tensor = NOTHING
    """``(T', T')``: the inner products of the gradients of the losses, multiplied by ``weights``."""
    gradients: Sequence[Tensor] = ()
    """The gradients of the losses, multiplied by ``weights``: ``(T', ...)`` for each tensor of features or
    parameters."""
    mean: Callable[[Tensor], Tensor] = _itself
    """Returns the mean over ranks of a tensor that each rank computed from ``gradients`` of its own features."""
    tracked: Tensor = NOTHING
    """The sum over all parameters of the second value that ``track`` returned."""
    second_losses: Tensor = NOTHING
    """``(T',)``: of a method that looks at a second batch, its losses."""
    products: Tensor = NOTHING
    """Inner products of the gradients of the losses with those of a second batch, ``(T', T')``, or ``(T',)`` with one
    gradient of it."""
    losses_before: Tensor = NOTHING
    """``(T',)``: of a method that looks at the losses after the optimiser's step, those before it."""


class Result(NamedTuple):
    """New state and weights, which count only if all of them are finite.

    Example::

        def update(self, read: Read, state: State) -> Result:
            averages = torch.lerp(state["averages"], read.losses, 0.1)
            return Result(state={"averages": averages}, statistics={"progress": read.losses / averages})
    """

    weights: Tensor | None = None
    """``(T',)``: what each of these gradients is multiplied by in this step, of methods that read the Gramian or the
    gradients."""
    state: State = {}
    """The new values of the state that changes, with the shapes of the old."""
    gradient: Tensor | None = None
    """``(T',)``: the gradient of what the method learns: see `LearnedState`."""
    directions: Sequence[Tensor] | None = None
    """Directions that replace the gradients' weighted sum: one for each tensor in ``Read.gradients``, without the
    first dimension."""
    statistics: State = {}
    """Further tensors to log, by name."""
