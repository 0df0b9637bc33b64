"""A GPU boolean that the CPU can poll without synchronising."""

from typing import Any

import torch
from torch import Tensor


class Later:
    """A bool scalar that is being copied from its device to the host.

    A value on the CPU is known at once, one on a CUDA device after some steps, and one on another device never.
    """

    def __init__(self, value: Tensor) -> None:
        self._value = value.to("cpu", non_blocking=True) if value.is_cuda else value
        self._copied: torch.cuda.Event | None = None
        if value.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(value.device))

    def is_true(self) -> bool:
        """Return True if the value has arrived and is true; always False while a CUDA graph is captured."""
        if self._copied is not None and (torch.cuda.is_current_stream_capturing() or not self._copied.query()):
            return False
        # `tolist` reads the host's memory and calls no operator; `numpy` would too, but needs NumPy.
        return self._value.device.type == "cpu" and bool(self._value.tolist())

    def __reduce__(self) -> tuple[Any, ...]:
        if self._copied is not None:
            self._copied.synchronize()
        return Later, (self._value,)
