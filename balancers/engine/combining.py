"""Balancers whose weights are decided by the very gradients that they then combine.

At a fork the tasks' gradients of the features are held until all are there; what goes on into the trunk is then their
combination, and the heads are trained on the losses as they are. Without a fork, each loss is differentiated with
respect to the shared parameters, and then the weighted sum is, once, for all parameters.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from .base import LossBalancer
from .fork_audit import ForkError
from .gradients import GradientBalancer
from .loss_input import Entries
from .measure import Measurement
from .ranks import mean_over_ranks, world_size
from .window import Pass


class Combination(NamedTuple):
    """What a method makes of T gradients."""

    weights: Tensor
    """``(T,)``."""
    valid: Tensor
    """A bool scalar: false where it could not be made; the weights are then those of the step before."""
    directions: list[Tensor] | None = None
    """What takes the place of each gradient's weighted sum, where it is not that: one a tensor of gradients, each of
    the shape of one task's."""


class CombiningBalancer(GradientBalancer):
    r"""A balancer that decides in each backward pass what becomes of that pass's gradients.

    At a fork, the heads get the gradients of the losses as they are, and the trunk :math:`\sum_i \lambda_i \nabla L_i`.
    Without one all parameters get the latter. The scalar that the balancer returns is the plain sum of the losses, and
    its backward pass is not that of the sum. A task that a dict leaves out takes no part, and its weight stays.

    Args:
        fork, wrt, tasks, check_finite: see `GradientBalancer`.
        update_every: k, to decide on the weights in every k-th pass only, and to keep them in the others.
        accumulate: makes no difference: each backward pass is combined on its own.
    """

    heads: ClassVar[Literal["weighted", "plain"]] = "plain"

    def combine(self, gradients: Sequence[Tensor], losses: Tensor) -> Combination:
        """Decide what to do with the gradients of T tasks' losses.

        Args:
            gradients: of each tensor of features or of parameters, ``(T, ...)``.
            losses: ``(T,)``.
        """
        raise NotImplementedError(f"{type(self).__name__} must override combine")

    ones: Tensor

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("ones", torch.ones(self.num_tasks), persistent=False)
        self.present: Tensor | None = None
        """The indices of the tasks that `combine` is given gradients of; None: all."""
        self._indices: dict[tuple[bool, ...], Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        if self._fork is not None:
            self._fork.reading.combines = True

    def weigh(self, losses: Tensor) -> Tensor:
        """Return what the losses are multiplied by before their gradients are combined, ``(T,)``: ones."""
        return self.ones

    def _weighed(self, losses: Tensor, mask: Tensor | None, learning: bool) -> Tensor:
        return self.weigh(losses)

    def _set_recording(self) -> None:
        if self._fork is not None:
            self._fork.reading.recording = True

    def _measure(self, this: Pass, losses: Entries) -> tuple[Tensor] | None:
        present = self._index(losses)
        if self._fork is not None:
            held = _Held(self.num_tasks)
            self._fork.reading.observer = held.observe
            self._fork.reading.combiner = partial(self._onward, this, held, present)
            return None
        assert this.factors is not None
        directions = None
        if this.measured:
            measurement = Measurement(self.num_tasks, self._wrt, True, self.weights.dtype)
            self._differentiate_losses(this, losses, measurement)
            directions = self._decide(this, measurement.columns(), present)
        if directions is None:
            return (this.factors * self._shares(this),)
        assert self._wrt is not None
        for parameter, direction in zip(self._wrt, directions, strict=True):
            self._hooks.append(parameter.register_hook(partial(_in_place_of, direction)))
        return None

    def _onward(self, this: Pass, held: "_Held", present: Tensor | None, z: Tensor) -> Tensor:
        """Return what goes on from features ``z`` into the trunk."""
        if not held.complete:
            held.complete = True
            stacked = held.stacked()
            if this.measured:
                columns = stacked
                if self._wrt is not None:
                    measurement = Measurement(self.num_tasks, self._wrt, True, self.weights.dtype, overwrite=False)
                    for source, gradients in zip(held.sources, stacked, strict=True):
                        measurement.observe(source, None, gradients, spare=0)
                    columns = measurement.columns()
                directions = self._decide(this, columns, present)
                held.combined = directions
            if held.combined is None:
                shares = self._shares(this)
                held.combined = [_weighted_sum(shares, gradients) for gradients in stacked]
        return held.take(z)

    def _decide(self, this: Pass, columns: list[Tensor], present: Tensor | None) -> list[Tensor] | None:
        """Set the weights from scaled gradients; return what takes the place of their weighted sums, if anything."""
        assert this.factors is not None
        scale, losses = this.factors[0], this.losses.to(self.weights.dtype)
        if this.weights is not self.ones:
            scale = scale / this.weights[0]
        if present is not None:
            columns, losses = [column[present] for column in columns], losses[present]
        self.present = present
        if self._wrt is not None and world_size() > 1:
            columns = [mean_over_ranks(column) for column in columns]
        made = self._combined(columns, scale, losses)
        shares = made.weights if present is None else self.weights.index_copy(0, present, made.weights)
        weights = shares if this.weights is self.ones else shares * this.weights
        if present is not None:
            weights = self.weights.index_copy(0, present, weights[present])
        self._buffers["weights"] = torch.where(made.valid, weights, self.weights)
        this.valid = made.valid
        return None if made.directions is None else [direction * scale for direction in made.directions]

    def _shares(self, this: Pass) -> Tensor:
        """Return the weights of the gradients, which are of losses that have been multiplied already."""
        return self.weights if this.weights is self.ones else self.weights / this.weights

    def _combined(self, columns: list[Tensor], scale: Tensor, losses: Tensor) -> Combination:
        return self.combine([column.to(self.weights.dtype) / scale for column in columns], losses)

    def _end(self, this: Pass) -> None:
        if self._fork is not None:
            self._fork.reading.observer = self._fork.reading.combiner = None
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if type(self).update is not LossBalancer.update:
            self.update(this.losses.to(self.weights.dtype), None if this.given is None else this.given > 0)
        super()._end(this)
        if self.check_finite and this.valid is not None and not this.valid:
            raise FloatingPointError("this step's losses or gradients are not valid; the balancer's state is unchanged")

    def _index(self, losses: Entries) -> Tensor | None:
        """Return the indices of the tasks that take part in this step; None: all."""
        if isinstance(losses, Tensor) or all(loss is not None for loss in losses):
            return None
        given = tuple(loss is not None for loss in losses)
        if given not in self._indices:  # kept, so that only a new combination of tasks waits for the device
            self._indices[given] = torch.tensor([i for i, is_given in enumerate(given) if is_given])
        self._indices[given] = self._indices[given].to(self.weights.device)
        return self._indices[given]


class _Held:
    """The tasks' gradients of the features, held until all are there."""

    def __init__(self, num_tasks: int) -> None:
        self.sources: list[Tensor] = []
        self.complete = False
        self.combined: list[Tensor] | None = None
        self._num_tasks = num_tasks
        self._gradients: list[list[Tensor | None] | Tensor] = []

    def observe(self, z: Tensor, task: int | None, gradients: Tensor, spare: int) -> None:
        """Take what a `Fork` observed."""
        if self.complete:
            raise ForkError(
                "features went through the fork again after the gradient of the first had gone on into the trunk: a "
                "method that combines gradients needs all features of a step in one call of the fork"
            )
        if task is None:
            self.sources.append(z)
            self._gradients.append(gradients)
            return
        place = next((i for i, source in enumerate(self.sources) if source is z), None)
        if place is None:
            place = len(self.sources)
            self.sources.append(z)
            self._gradients.append([None] * self._num_tasks)
        of_tasks = self._gradients[place]
        assert isinstance(of_tasks, list)
        of_tasks[task] = gradients

    def stacked(self) -> list[Tensor]:
        """Of each tensor of features, ``(T, *z.shape)``, zero where a loss does not depend on it."""
        return [
            gradients
            if isinstance(gradients, Tensor)
            else torch.stack([torch.zeros_like(z) if gradient is None else gradient for gradient in gradients])
            for z, gradients in zip(self.sources, self._gradients, strict=True)
        ]

    def take(self, z: Tensor) -> Tensor:
        """Return the combination that takes the place of the gradient of ``z``."""
        assert self.combined is not None
        place = next(i for i, source in enumerate(self.sources) if source is z)
        return self.combined[place].view_as(z).to(z.dtype)


def _weighted_sum(weights: Tensor, gradients: Tensor) -> Tensor:
    """``(...)``: of ``weights`` ``(T,)`` and ``gradients`` ``(T, ...)``."""
    return torch.mv(gradients.flatten(1).t(), weights.to(gradients.dtype)).view(gradients.shape[1:])


def _in_place_of(direction: Tensor, gradient: Tensor) -> Tensor:
    return direction.to(gradient.dtype)
