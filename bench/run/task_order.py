"""Put a batch's losses into the order of the tasks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Losses = Sequence[Tensor] | Mapping[str, Tensor] | Tensor
"""The losses of a batch, as a problem returns them: T scalars, a dict of them by task, or one tensor ``(T,)``."""


def in_task_order(losses: Losses, tasks: Sequence[str]) -> list[Tensor]:
    """Return T scalars in the order of ``tasks``, each with the graph that it has."""
    if isinstance(losses, Mapping):
        return [losses[task] for task in tasks]
    return list(losses.unbind()) if isinstance(losses, Tensor) else list(losses)


def stacked(losses: Losses, tasks: Sequence[str]) -> Tensor:
    """Return one tensor ``(T,)`` in the order of ``tasks``."""
    return losses if isinstance(losses, Tensor) else torch.stack(in_task_order(losses, tasks))
