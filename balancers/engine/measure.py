"""What one backward pass shows of the tasks' gradients.

Measured on the graph already recorded. At a fork, each task's gradient of the features arrives by itself; that of a
layer before it is a vector-Jacobian product of what lies between. Each is reduced to its norm as it arrives: no more
than one task's is held, of heads as one product a few, unless gradients are to be averaged before their norm is taken.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from .fork_audit import ForkError
from .layer import Linear, linear

LITTLE = 2**18
"""Entries, 1 MiB of single precision, whose memory is worth less than the operator calls that they save."""


class Measurement:
    """Takes the tasks' gradients, in whatever order they come.

    Args:
        num_tasks: T.
        wrt: the parameters to take gradients of; None: the features.
        adds_up: whether what is measured is to be summed, over several features or passes: gradients of parameters are
            then kept. Norms of features go by squares: other samples' features are other variables.
        dtype: of the norms.
        overwrite: whether all tasks' gradients, when they come as one, are lost to the caller.
    """

    def __init__(
        self,
        num_tasks: int,
        wrt: Sequence[nn.Parameter] | None,
        adds_up: bool,
        dtype: torch.dtype,
        overwrite: bool = True,
    ) -> None:
        self._overwrite = overwrite
        self._wrt = wrt
        self._adds_up = adds_up
        self._dtype = dtype
        self._of_task: list[list[Tensor] | None] = [None] * num_tasks
        self._of_all: list[Tensor] | None = None
        self._layer: tuple[Tensor, Linear | None] | None = None

    def observe(self, z: Tensor, task: int | None, gradients: Tensor, spare: int) -> None:
        """Take what a `Fork` observed: gradients of features ``z``, one task's or, for None, those of all."""
        if self._wrt is None:
            norms = [row_norms(gradients, self._dtype) if task is None else self._norm(gradients)]
            self._keep(task, norms)
            return
        if self._layer is None or self._layer[0] is not z:
            self._layer = z, linear(z, self._wrt)
        layer = self._layer[1]
        if task is None:
            self._keep(None, self._all(z, layer, gradients, spare))
        else:
            self._keep(task, self._differentiated(z, gradients) if layer is None else self._of_one(layer, gradients))

    def add(self, task: int, gradients: Sequence[Tensor | None]) -> None:
        """Take one task's gradients of the parameters; None is a zero."""
        self._of_task[task] = self._reduced(gradients)

    def columns(self) -> list[Tensor]:
        """Return what was measured, each ``(T, ...)``: zeros for a task without a gradient; empty if none arrived.

        The norm of a task's gradient is the joint norm of its rows: see `joint_norms`.
        """
        some = next((parts for parts in self._of_task if parts is not None), None)
        if some is None:
            return self._of_all or []
        rows = [[torch.zeros_like(part) for part in some] if parts is None else parts for parts in self._of_task]
        columns = [torch.stack(column) for column in zip(*rows, strict=True)]
        return columns if self._of_all is None else self._sum(columns, self._of_all)

    def _keep(self, task: int | None, new: list[Tensor]) -> None:
        if task is None:
            self._of_all = new if self._of_all is None else self._sum(self._of_all, new)
        else:
            before = self._of_task[task]
            self._of_task[task] = new if before is None else self._sum(before, new)

    def _sum(self, before: list[Tensor], new: list[Tensor]) -> list[Tensor]:
        if self._wrt is not None and not self._adds_up:
            raise ForkError(
                "a loss depends on features that went through the fork before an earlier call of the balancer: weigh a "
                "step's losses before the next step's forward pass"
            )
        combine = torch.hypot if self._wrt is None else torch.add
        return [combine(a, b) for a, b in zip(before, new, strict=True)]

    def _all(self, z: Tensor, layer: Linear | None, gradients: Tensor, spare: int) -> list[Tensor]:
        """Return what is kept of several tasks' gradients of ``z``, each ``(T, ...)``."""
        if layer is not None:
            return self._of_several(layer, gradients, spare)
        rows = [self._differentiated(z, gradient) for gradient in gradients]
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    def _differentiated(self, z: Tensor, gradient: Tensor) -> list[Tensor]:
        """Return what is kept of one task's, by way of the graph."""
        assert self._wrt is not None
        return self._reduced(torch.autograd.grad(z, self._wrt, gradient, retain_graph=True, allow_unused=True))

    def _of_one(self, layer: Linear, gradient: Tensor) -> list[Tensor]:
        parts = layer.gradient(layer.before_relu(_rows(gradient, layer, 0), overwrite=False))
        return parts if self._adds_up else [self._norm(part) for part in parts]

    def _of_several(self, layer: Linear, gradients: Tensor, spare: int) -> list[Tensor]:
        gradients = layer.before_relu(_rows(gradients, layer, 1), self._overwrite)
        if self._adds_up:
            return layer.gradients(gradients)
        num_tasks, num_rows, num_outputs = gradients.shape
        size = num_outputs * layer.inputs.shape[1]
        # As many products at a time as fit into what is spare, a copy of the features and two of the layer's gradient.
        at_once = 2 + (max(spare, LITTLE) + num_rows * num_outputs) // size
        if at_once >= num_tasks:
            return [joint_norms(layer.gradients(gradients), self._dtype)]
        return [torch.cat([joint_norms(layer.gradients(some), self._dtype) for some in gradients.split(at_once)])]

    def _reduced(self, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        assert self._wrt is not None
        if self._adds_up:
            pairs = zip(gradients, self._wrt, strict=True)
            return [torch.zeros_like(parameter) if gradient is None else gradient for gradient, parameter in pairs]
        some = [gradient for gradient in gradients if gradient is not None]
        if len(some) == 1:
            return [self._norm(some[0])]
        if not some:
            return [torch.zeros((), dtype=self._dtype, device=self._wrt[0].device)]
        return [self._norm(torch.stack(torch._foreach_norm(some, dtype=self._dtype)))]

    def _norm(self, tensor: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(tensor, dtype=self._dtype)
        return norm


def _rows(gradients: Tensor, layer: Linear, dim: int) -> Tensor:
    """Return ``gradients`` with the dimensions from ``dim`` on as the layer has them, ``(N, out)``."""
    if gradients.ndim == dim + 2 and gradients.shape[dim] == len(layer.inputs):
        return gradients
    return gradients.reshape(*gradients.shape[:dim], len(layer.inputs), -1)


def row_norms(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """``(T,)``: the norm of each of T tensors stacked."""
    return torch.linalg.vector_norm(rows, dim=tuple(range(1, rows.ndim)), dtype=dtype) if rows.ndim > 1 else rows


def joint_norms(columns: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """``(T,)``: each task's joint norm over columns of shape ``(T, ...)``."""
    return reduce(torch.hypot, [row_norms(column, dtype) for column in columns])
