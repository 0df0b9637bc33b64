"""Methods that compare the gradients of a step with those of a second batch, before they weigh the step's losses."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..loss_input import Entries
from ..measuring.task_gradients import flat
from ..method.readings import Read
from ..own_precision import own_precision
from ..steps.before_step import second_losses
from ..steps.measuring_step import ImmediateStep
from ..steps.step import Call, Step, scale_of
from .ahead import AheadBalancer

_REASON = "gradients of two batches are compared, which have different samples and so different features"


class SecondBatchBalancer(AheadBalancer):
    """A balancer that reads the inner products of gradients of two batches: see `LossBalancer.second_batch`.

    Each loss of both batches is differentiated with respect to ``wrt`` when the balancer is called, which takes the
    time of 2T backward passes and the memory of 2T copies of these parameters. The losses that are trained on are those
    of the step alone.
    """

    reads = "second batch"
    needs_second_batch = True
    undefined_for = MappingProxyType({"features": _REASON, "layer": "its losses are differentiated without a fork"})
    second_batches: ClassVar[int] = 1
    """The number of batches drawn. With two, the products are of these two, without the step's batch."""
    _pass_scale: Tensor | None = None

    @property
    def pass_scale(self) -> Tensor:
        """A scalar: the factor of the losses in the last pass, rounded to a power of two; 1 before the first pass.

        Gradients are measured times this factor. Without a GradScaler's scale they underflow in float16.
        """
        return self.last_weights.new_ones(()) if self._pass_scale is None else self._pass_scale.to(self.last_weights)

    def _finish(self, step: Step) -> None:
        scale = scale_of(step.factors.to(step.weights.dtype), step.weights).abs().log2().round()
        self._pass_scale = torch.where(scale.isfinite(), scale, 0.0).exp2()
        super()._finish(step)

    def look(self, read: Read, losses: Entries, given: tuple[bool, ...] | None) -> None:
        self._audit(losses)
        if self.second_batches > 1:
            losses = second_losses(self, given, learning=True)
        rows = self.gradients(losses, given)
        others = self.gradients(second_losses(self, given, learning=True), given)
        dtype, scale = read.losses.dtype, self.pass_scale
        with own_precision(read.losses):
            products = [flat(a).to(dtype) @ flat(b).to(dtype).mT for a, b in zip(rows, others, strict=True)]
        read.products = reduce(torch.add, products) / scale / scale

    def gradients(self, losses: Entries, given: tuple[bool, ...] | None) -> list[Tensor]:
        """Return the gradients of the losses times `pass_scale`, for each parameter: ``(T, ...)``, means over ranks.

        Complex numbers are pairs of real ones.
        """
        weights = torch.ones_like(self.last_weights) * self.pass_scale
        columns = ImmediateStep(self, Call(weights, weights, given, None)).of_losses(losses)
        return [self._ranks.mean(column) for column in columns] if self._ranks.size > 1 else columns


@contextmanager
def moved(parameters: Sequence[nn.Parameter], new: Sequence[Tensor]) -> Iterator[None]:
    """Let the parameters have other values within this context.

    Graphs that were recorded before don't notice: what they saved is the parameter, which has its values back when they
    are differentiated.
    """
    old = [parameter.data for parameter in parameters]
    torch.clear_autocast_cache()  # it has the parameters' values in half precision
    try:
        for parameter, value in zip(parameters, new, strict=True):
            parameter.data = value
        yield
    finally:
        for parameter, value in zip(parameters, old, strict=True):
            parameter.data = value
        torch.clear_autocast_cache()
