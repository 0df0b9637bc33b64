"""Copies of GPU values that the CPU can poll without synchronising."""

from typing import Any

import torch
from torch import Tensor


class HostCopy:
    """A small tensor that is being copied from its device to the host.

    A value on the CPU is known at once, one on a CUDA device after some steps, and one on another device never.
    """

    def __init__(self, value: Tensor) -> None:
        self._value = value.to("cpu", non_blocking=True) if value.is_cuda else value
        self._copied: torch.cuda.Event | None = None
        if value.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(value.device))

    def is_known(self) -> bool:
        """Return whether the value has arrived; always False while a CUDA graph is captured."""
        if self._copied is not None and (torch.cuda.is_current_stream_capturing() or not self._copied.query()):
            return False
        return self._value.device.type == "cpu"

    def wait(self) -> None:
        """Wait until the value has arrived."""
        if self._copied is not None:
            self._copied.synchronize()

    def is_true(self) -> bool:
        """Return True if the value, a scalar, has arrived and is true."""
        # `tolist` reads the host's memory and calls no operator; `numpy` would too, but needs NumPy.
        return self.is_known() and bool(self._value.tolist())

    def values(self) -> list[int]:
        """Return the entries of the value, a vector, when it has arrived."""
        return list(self._value.tolist())

    def __reduce__(self) -> tuple[Any, ...]:
        self.wait()
        return HostCopy, (self._value,)


def is_capturing(tensor: Tensor) -> bool:
    """Return whether a CUDA graph is being captured on the tensor's device."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
