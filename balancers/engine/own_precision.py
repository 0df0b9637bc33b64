"""Keep a caller's autocast from rounding what a balancer computes."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .torch_internals import autocasts

_UNCHANGED = nullcontext()


def own_precision(like: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast does not round products on the device of ``like``.

    Users call the balancer, and some call ``backward``, within autocast. There, inner products of gradients would
    overflow in float16, and a Gramian rounded to bfloat16 can have negative eigenvalues.
    """
    if not autocasts():
        return _UNCHANGED
    device = like.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return _UNCHANGED
