"""Losses and weights of every step, kept on the device until someone asks."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Record:
    """Buffers for a known number of steps; to note a step neither waits for the device nor allocates on the host.

    Attributes:
        losses, weights: ``(steps, T)``, on the host: the steps fetched so far.
    """

    def __init__(self, steps: int, num_tasks: int, device: torch.device) -> None:
        self._noted = 0
        self._buffer = torch.empty(2, steps, num_tasks, dtype=torch.float64, device=device)
        self.losses: NDArray[np.float64] = np.empty((0, num_tasks))
        self.weights: NDArray[np.float64] = np.empty((0, num_tasks))

    def note(self, losses: Sequence[Tensor] | Tensor, weights: Tensor) -> None:
        """Keeps the losses, T scalars or ``(T,)``, and the ``(T,)`` ``weights`` of the next step."""
        stacked = losses if isinstance(losses, Tensor) else torch.stack(list(losses))
        self._buffer[0, self._noted] = stacked.detach()
        self._buffer[1, self._noted] = weights
        self._noted += 1

    def fetch(self) -> None:
        """Brings ``losses`` and ``weights`` up to date. Waits for the device."""
        new = self._buffer[:, len(self.losses) : self._noted].cpu().numpy()
        self.losses = np.concatenate([self.losses, new[0]])
        self.weights = np.concatenate([self.weights, new[1]])
