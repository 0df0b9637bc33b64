"""What a balancer computes itself has the precision of its numbers, whatever the caller's autocast says."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .torch_internals import autocasts

_UNCHANGED = nullcontext()


def own_precision(like: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast does not round products on the device of ``like``.

    A balancer may be called within the caller's autocast, and so may ``backward``. Inner products of gradients would
    then overflow in half precision, and a rounded Gramian has negative eigenvalues.
    """
    if not autocasts():
        return _UNCHANGED
    device = like.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return _UNCHANGED
