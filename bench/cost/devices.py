"""Find the device to measure on, and name its machine for tables and figures."""

from enum import StrEnum

import torch

from bench.run import machine_facts

from .subject import SubjectError


class DeviceName(StrEnum):
    """The devices that the command line accepts."""

    CPU = "cpu"
    CUDA = "cuda"


def find(name: DeviceName) -> torch.device:
    """Return the device called ``name``.

    Raises:
        SubjectError: PyTorch finds no such device.
    """
    if name is DeviceName.CUDA and not torch.cuda.is_available():
        raise SubjectError("--device is cuda, but PyTorch finds no CUDA device")
    return torch.device(name)


def machine(device: torch.device) -> str:
    """Return the name of the machine that ``device`` is part of, for tables and figures.

    A GPU's name has the processor beside it, which decides how long short steps take: it launches them.
    """
    processor = machine_facts.processor()
    return f"{machine_facts.gpu()}, {processor}" if device.type == "cuda" else f"{processor}, one thread"
