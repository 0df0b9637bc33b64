"""Run tests that name no device on another device than the CPU, with the random numbers that they have on the CPU."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

MAKES = (
    *(torch.empty, torch.zeros, torch.ones, torch.full, torch.eye, torch.tensor, torch.as_tensor),
    *(torch.arange, torch.linspace, torch.logspace, torch.rand, torch.randn, torch.randint, torch.randperm),
)
"""Functions of PyTorch that make a tensor from none."""
FILLS = (
    *(Tensor.uniform_, Tensor.normal_, Tensor.random_, Tensor.bernoulli_, Tensor.exponential_),
    *(nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_, nn.init.xavier_uniform_, nn.init.xavier_normal_),
)
"""Functions that fill a tensor with random numbers."""


class OnDevice(TorchFunctionMode):
    """Put every tensor that is made without naming a device on ``device``: data, networks, a balancer's state.

    This is what `torch.set_default_device` does. But tensors and random numbers are made on the CPU and then moved, so
    that a seed gives the same numbers on all devices, and a generator of the CPU can be used. The mode holds in the
    thread of the test; hooks of a backward pass on CUDA run in another one.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in MAKES and kwargs.get("device") is None:
            made = func(*args, **{**kwargs, "device": "cpu"})
            moved: Tensor = made.detach().to(self.device)
            return moved.requires_grad_() if made.requires_grad else moved
        if func in FILLS:
            filled, *others = args if args else (kwargs.pop("tensor"),)
            with torch.no_grad():
                return filled.copy_(func(torch.empty_like(filled, device="cpu"), *others, **kwargs))
        return func(*args, **kwargs)
