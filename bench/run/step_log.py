"""Log the losses and weights of every step on the device, without waiting for it."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .task_order import Losses, stacked


class Record:
    """The losses and weights of a run's steps, in a buffer for a known number of steps; columns are in task order.

    Noting a step neither waits for the device nor allocates memory on the host.

    Attributes:
        losses: losses of the steps fetched so far, ``(steps, T)``, on the host.
        weights: weights of these steps, ``(steps, T)``, on the host.
    """

    def __init__(self, steps: int, tasks: Sequence[str], device: torch.device) -> None:
        self._noted = 0
        self._tasks = tasks
        self._buffer = torch.empty(2, steps, len(tasks), dtype=torch.float64, device=device)
        self.losses: NDArray[np.float64] = np.empty((0, len(tasks)))
        self.weights: NDArray[np.float64] = np.empty((0, len(tasks)))

    def note(self, losses: Losses, weights: Tensor) -> None:
        """Log the next step: its losses and its ``weights`` ``(T,)``."""
        self._buffer[0, self._noted] = stacked(losses, self._tasks).detach()
        self._buffer[1, self._noted] = weights
        self._noted += 1

    def fetch(self) -> None:
        """Copy the steps noted since the last call to ``losses`` and ``weights``. Waits for the device."""
        new = self._buffer[:, len(self.losses) : self._noted].cpu().numpy()
        self.losses = np.concatenate([self.losses, new[0]])
        self.weights = np.concatenate([self.weights, new[1]])
