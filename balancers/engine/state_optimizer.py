"""Optimise the few numbers that a balancer itself learns.

This calls the kernels of PyTorch's fused Adam and SGD directly. The optimiser's state lies in buffers, so that it is
moved, saved and copied with the balancer. A step on an invalid gradient is skipped on the device, without waiting.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

OptimizerName = Literal["adam", "sgd"]


class StateOptimizer(nn.Module):
    """Adam (betas 0.9 and 0.999, eps 1e-8) or plain SGD for one vector of shape ``(size,)``.

    Raises:
        ValueError: ``lr`` is not positive and finite, or ``name`` is neither ``"adam"`` nor ``"sgd"``.
    """

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    _skip_step: Tensor

    def __init__(self, name: OptimizerName, lr: float, size: int) -> None:
        super().__init__()
        if name not in ("adam", "sgd"):
            raise ValueError(f"optimizer is {name!r}; expected 'adam' or 'sgd'")
        if not (isinstance(lr, int | float) and math.isfinite(lr) and lr > 0):
            raise ValueError(f"lr is {lr!r}; expected a positive, finite learning rate")
        self.name = name
        self.lr = lr
        # The fused kernels need both as float32.
        self.register_buffer("step", torch.zeros((), dtype=torch.float32))
        self.register_buffer("_skip_step", torch.zeros((), dtype=torch.float32), persistent=False)
        if name == "adam":
            self.register_buffer("exp_avg", torch.zeros(size))
            self.register_buffer("exp_avg_sq", torch.zeros(size))

    def update(self, parameter: Tensor, gradient: Tensor, valid: Tensor, given: Tensor | None = None) -> None:
        """Update ``parameter`` in place by one step.

        Args:
            parameter: ``(size,)``.
            gradient: ``(size,)``.
            valid: a bool scalar; if it is false, nothing changes.
            given: ``(size,)``, bool: where it is false, the entry and its moments stay as they are; None updates all.
        """
        if given is not None:
            held = [parameter, *(moment for key, moment in self.named_buffers() if moment.ndim)]
            before = [tensor.clone() for tensor in held]
            self._step(parameter, gradient, valid)
            for tensor, old in zip(held, before, strict=True):
                tensor.copy_(torch.where(given, tensor, old))
        else:
            self._step(parameter, gradient, valid)

    def _step(self, parameter: Tensor, gradient: Tensor, valid: Tensor) -> None:
        # The kernels of torch.optim's fused Adam and SGD. They change nothing if found_inf is 1.
        torch.logical_not(valid, out=self._skip_step)
        self.step.add_(valid)
        if self.name == "sgd":
            torch._fused_sgd_(
                [parameter],
                [gradient],
                [],
                weight_decay=0.0,
                momentum=0.0,
                lr=self.lr,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
                found_inf=self._skip_step,
            )
        else:
            torch._fused_adam_(
                [parameter],
                [gradient],
                [self.exp_avg],
                [self.exp_avg_sq],
                [],
                [self.step],
                lr=self.lr,
                beta1=0.9,
                beta2=0.999,
                weight_decay=0.0,
                eps=1e-8,
                amsgrad=False,
                maximize=False,
                found_inf=self._skip_step,
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "StateOptimizer":
        super()._apply(fn, recurse)
        self.step = self.step.to(torch.float32)
        self._skip_step = self._skip_step.to(torch.float32)
        return self

    def extra_repr(self) -> str:
        return f"{self.name}, lr={self.lr}"
