"""What methods that combine gradients remember of each task: state whose first dimension is the tasks.

Such a method is given the gradients of the tasks that take part in a step, T' of them; their rows of the state alone
are read, and replaced by new ones.
"""

import torch
from torch import Tensor


def rows(state: Tensor, present: Tensor | None) -> Tensor:
    """``(T', ...)``: the rows of ``state`` ``(T, ...)`` whose indices are ``present``; None: all, the state itself."""
    return state if present is None else state[present]


def keep(state: Tensor, present: Tensor | None, new: Tensor, valid: Tensor) -> None:
    """Replaces these rows by ``new`` ones, ``(T', ...)``, where ``valid``, a bool that fits them, is true."""
    new = torch.where(valid, new, rows(state, present))
    if present is None:
        state.copy_(new)
    else:
        state.index_copy_(0, present, new)
