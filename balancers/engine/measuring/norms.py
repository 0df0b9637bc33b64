"""Norms of the tasks' gradients, to rounding at any size."""

from collections.abc import Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor

from ..torch_internals import foreach_norm

MANY = 2**16
"""Entries whose squares are summed in parts on a CPU: a sum of millions in single precision is off by 1e-4."""


def in_parts(tensor: Tensor, dtype: torch.dtype, first: int = 0) -> Tensor:
    """Return the norms of a large tensor's parts, beside its first dimension where ``first`` is 1; of others itself."""
    dims = range(first, tensor.ndim)
    if len(dims) < 2 or tensor.numel() <= MANY * (len(tensor) if first else 1) or not tensor.is_cpu:
        return tensor
    slowest = max(dims, key=tensor.stride)  # parts lie in memory one after another
    wide = torch.promote_types(tensor.dtype, dtype)
    parts: Tensor = torch.linalg.vector_norm(tensor, dim=[k for k in dims if k != slowest], dtype=wide)
    return parts


def norm(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the norm of all entries, a scalar."""
    wide = torch.promote_types(tensor.dtype, dtype)
    found: Tensor = torch.linalg.vector_norm(in_parts(tensor, dtype), dtype=wide)
    return found.to(dtype)


def norm_of_all(tensors: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the joint norm of one or several tensors, a scalar; a large one is not held once its part is known."""
    parts = [in_parts(tensor, dtype) for tensor in tensors]
    if len(parts) == 1:
        return norm(parts[0], dtype)
    wide = reduce(torch.promote_types, (part.dtype for part in parts), dtype)
    return norm(torch.stack(foreach_norm(parts, wide)), dtype)


def row_norms(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """``(T,)``: the norm of each of T tensors stacked; one number for each of them is its norm already."""
    if rows.ndim == 1:
        return rows
    rows = in_parts(rows, dtype, first=1)
    wide = torch.promote_types(rows.dtype, dtype)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=tuple(range(1, rows.ndim)), dtype=wide)
    return norms.to(dtype)


def joint_norms(columns: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """``(T,)``: each task's joint norm over columns of shape ``(T, ...)``."""
    return reduce(torch.hypot, [row_norms(column, dtype) for column in columns])
