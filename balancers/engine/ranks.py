"""Average over the ranks of ``torch.distributed`` that learn together."""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of ranks that learn together; 1 without ``torch.distributed``."""
    return dist.get_world_size() if dist.is_initialized() else 1


def over_ranks(losses: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return each task's mean loss over the ranks that were given it, and the number of these ranks, ``(T,)`` each.

    Args:
        losses: ``(T,)``, this rank's.
        mask: ``(T,)``, 1 for each task that this rank was given and 0 for the others; None if it was given all.
    """
    both = torch.stack([losses, torch.ones_like(losses) if mask is None else mask.to(losses.dtype)])
    dist.all_reduce(both)
    return both[0] / both[1].clamp(min=1.0), both[1]


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of all ranks' ``tensor``."""
    tensor = tensor.contiguous()
    dist.all_reduce(tensor)
    return tensor / world_size()
