"""What the device knows, told to the host without waiting."""

from typing import Any

import torch
from torch import Tensor


class Later:
    """A bool scalar on its way from the device to the host: at once from the CPU, after some steps from CUDA.

    From other devices it never comes.
    """

    def __init__(self, value: Tensor) -> None:
        self._value = value.to("cpu", non_blocking=True) if value.is_cuda else value
        self._copied: torch.cuda.Event | None = None
        if value.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(value.device))

    def is_true(self) -> bool:
        """Whether it has arrived, and is true; not asked while a CUDA graph is captured."""
        if self._copied is not None and (torch.cuda.is_current_stream_capturing() or not self._copied.query()):
            return False
        return self._value.device.type == "cpu" and bool(self._value.numpy())

    def __reduce__(self) -> tuple[Any, ...]:
        if self._copied is not None:
            self._copied.synchronize()
        return Later, (self._value,)
