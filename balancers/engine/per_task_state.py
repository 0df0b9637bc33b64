"""Read and replace rows of state whose first dimension is the tasks, for methods that combine gradients.

Such a method receives the gradients of the T' tasks that take part in a step. It reads and replaces only their rows.
"""

import torch
from torch import Tensor


def rows(state: Tensor, present: Tensor | None) -> Tensor:
    """Return the rows of ``state``, ``(T, ...)``, that ``present`` selects, ``(T', ...)``.

    It returns all of them if ``present`` is None.
    """
    return state if present is None else state[present]


def keep(state: Tensor, present: Tensor | None, new: Tensor, valid: Tensor) -> None:
    """Replace these rows by ``new``, ``(T', ...)``, where ``valid``, a bool tensor that broadcasts to them, is true."""
    new = torch.where(valid, new, rows(state, present))
    if present is None:
        state.copy_(new)
    else:
        state.index_copy_(0, present, new)
