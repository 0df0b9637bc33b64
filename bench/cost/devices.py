"""Where steps are measured: by name, on the command line, and as tables and figures call it."""

from enum import StrEnum

import torch

from bench.run import machine_facts

from .subject import SubjectError


class DeviceName(StrEnum):
    """What may be asked for."""

    CPU = "cpu"
    CUDA = "cuda"


def find(name: DeviceName) -> torch.device:
    """The device.

    Raises:
        SubjectError: there is none.
    """
    if name is DeviceName.CUDA and not torch.cuda.is_available():
        raise SubjectError("--device is cuda, but PyTorch finds no CUDA device")
    return torch.device(name)


def machine(device: torch.device) -> str:
    """What ``device`` is called, for tables and figures."""
    return f"{machine_facts.gpu()}" if device.type == "cuda" else f"{machine_facts.processor()}, one thread"
