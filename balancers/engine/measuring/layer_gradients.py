"""The gradients of a linear layer's parameters, or their norms, from the gradients of the features that it makes."""

from functools import cached_property

import torch
from torch import Tensor

from .layer import Linear
from .norms import joint_norms, norm
from .row_products import Purpose, RowProducts, cost_of_double, is_less, way_for

CHEAP_ENTRIES = 2**18
"""Entries, 1 MiB of single precision, whose memory is worth less than the operator calls that they save."""
FEW_PRODUCTS = 4
"""Number of tasks from which on weight gradients are formed faster by one batched product, with the copy it needs."""
SMALL = 2**15
"""Entries of the features up to which they are: larger ones are copied no faster than operators are called."""


class LayerGradients:
    """Takes the tasks' gradients of a linear layer's parameters, by products of its inputs, or their norms.

    Gradients are given as those of the features, ``z.shape`` or ``(T, *z.shape)``.

    Args:
        z: the features.
        layer: the layer that made them.
        num_tasks: T.
        dtype: of norms.
        forms_gradients: whether norms are always taken of gradients that are formed: see `row_products`.
        overwrite: whether `gradients` and `norms` may overwrite what they are given.
    """

    def __init__(
        self, z: Tensor, layer: Linear, num_tasks: int, dtype: torch.dtype, forms_gradients: bool, overwrite: bool
    ) -> None:
        self._layer, self._num_tasks, self._dtype = layer, num_tasks, dtype
        self._forms_gradients, self._overwrite = forms_gradients, overwrite
        self._rows, self._inputs = layer.inputs.shape
        self._entries, self._outputs = z.numel(), z.numel() // max(1, self._rows)  # a batch may be empty
        self._way = way_for(layer.inputs, self._rows)
        self._products: RowProducts | None = None

    @cached_property
    def _by_rows(self) -> bool:
        """Whether norms are taken without forming the weight's gradients."""
        return self._is_less("norms")

    @property
    def weight_entries(self) -> int:
        """The number of entries of one task's gradient of the weight."""
        return self._inputs * self._outputs

    @property
    def entries_needed(self) -> int:
        """The number of entries, in units of single precision, that one task's norm needs.

        Its gradient of the features, a copy of this, which is freed, and what becomes of it.
        """
        found = self._way.copies * self._entries if self._by_rows else self.weight_entries
        return self._entries + max(self._entries, found)

    def gains(self, num_tasks: int) -> bool:
        """Return whether so many tasks' norms are taken faster at once than one by one."""
        return num_tasks > 1 and (self._by_rows or (num_tasks >= FEW_PRODUCTS and self._entries <= SMALL))

    def gradient(self, of_features: Tensor) -> list[Tensor]:
        """Return one task's gradient of each parameter."""
        return self._layer.gradient(self._of_outputs(of_features, 0))

    def gradients(self, of_features: Tensor) -> list[Tensor]:
        """Return T tasks' gradients of each parameter, ``(T, ...)``."""
        return self._layer.gradients(self._of_outputs(of_features, 1, self._overwrite))

    def norm_parts(self, of_features: Tensor) -> list[Tensor]:
        """Return norms whose joint norm is that of one task's gradients: of each parameter's, or of all."""
        rows = self._of_outputs(of_features, 0)
        if self._by_rows:
            return [self._norms_by_rows(rows.unsqueeze(0))[0]]
        return [norm(part, self._dtype) for part in self._layer.gradient(rows)]

    def norms(self, of_features: Tensor, free_entries: int) -> Tensor:
        """Return T tasks' norms, ``(T,)``, from as many products at a time as fit into memory.

        Args:
            of_features: T tasks' gradients of the features.
            free_entries: entries of memory that are free: see `CHEAP_ENTRIES`.
        """
        gradients = self._of_outputs(of_features, 1, self._overwrite)
        spare = max(free_entries, CHEAP_ENTRIES)
        if self._by_rows:
            at_once = 1 + spare // (self._way.copies * self._rows * self._outputs)
            return torch.cat([self._norms_by_rows(some) for some in gradients.split(at_once)])
        # Besides what is free, a copy of the features and two of the layer's gradient.
        at_once = 2 + (spare + self._rows * self._outputs) // max(1, self.weight_entries)
        if at_once >= len(gradients):
            return joint_norms(self._layer.gradients(gradients), self._dtype)
        some_tasks = gradients.split(at_once)
        return torch.cat([joint_norms(self._layer.gradients(some), self._dtype) for some in some_tasks])

    def inner_products(self, of_features: Tensor) -> Tensor | None:
        """Return the inner products of all tasks' gradients, ``(T, T)``; None where forming these is no more work."""
        if not self._is_less("gramian"):
            return None
        rows = self._of_outputs(of_features, 1).unsqueeze(1)
        return self._of_rows().inner_products(rows).to(self._dtype)

    def _of_outputs(self, of_features: Tensor, dim: int, overwrite: bool = False) -> Tensor:
        """Return gradients of the layer's outputs, ``(N, out)`` after ``dim`` dimensions, for those of the features."""
        rows = of_features
        if rows.ndim != dim + 2 or rows.shape[dim] != self._rows:
            rows = rows.reshape(*rows.shape[:dim], self._rows, -1)
        return self._layer.before_relu(rows, overwrite)

    def _is_less(self, purpose: Purpose) -> bool:
        """Return whether the weight's gradients are more work than doing without them."""
        if self._forms_gradients or "weight" not in self._layer.parts:
            return False
        double = cost_of_double(self._layer.inputs)
        return is_less(self._way, self._rows, self._inputs, self._outputs, self._num_tasks, purpose, double)

    def _of_rows(self) -> RowProducts:
        """Return what takes the place of the layer's inputs."""
        if self._products is None:
            self._products = self._way.of(self._layer.inputs.unsqueeze(0), "bias" in self._layer.parts)
        return self._products

    def _norms_by_rows(self, gradients: Tensor) -> Tensor:
        """Return the norms, ``(T,)``, for gradients of the outputs, ``(T, N, out)``."""
        return self._of_rows().squared_norms(gradients.unsqueeze(1)).sqrt().to(self._dtype)
