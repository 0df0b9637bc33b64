"""The optimiser of a balancer's own few numbers.

PyTorch's fused Adam and SGD, in their functional form: the state lies in buffers, so that it moves, saves and copies
with the balancer; and a step on a gradient that is not valid is skipped on the device, without waiting for it.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

OptimizerName = Literal["adam", "sgd"]


class StateOptimizer(nn.Module):
    """Adam (betas 0.9 and 0.999, eps 1e-8) or plain SGD for one vector of shape ``(size,)``.

    Raises:
        ValueError: ``lr`` is not positive and finite, or ``name`` is neither ``"adam"`` nor ``"sgd"``.
    """

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor

    def __init__(self, name: OptimizerName, lr: float, size: int) -> None:
        super().__init__()
        if name not in ("adam", "sgd"):
            raise ValueError(f"optimizer is {name!r}; expected 'adam' or 'sgd'")
        if not (isinstance(lr, int | float) and math.isfinite(lr) and lr > 0):
            raise ValueError(f"lr is {lr!r}; expected a positive, finite learning rate")
        self.name = name
        self.lr = lr
        self.register_buffer("step", torch.zeros(()))
        if name == "adam":
            self.register_buffer("exp_avg", torch.zeros(size))
            self.register_buffer("exp_avg_sq", torch.zeros(size))

    def update(self, parameter: Tensor, gradient: Tensor, valid: Tensor, given: Tensor | None = None) -> None:
        """Steps ``parameter`` in place.

        Args:
            parameter: ``(size,)``.
            gradient: ``(size,)``.
            valid: a bool scalar; where it is false, nothing at all changes.
            given: ``(size,)``, bool: entries that are false stay as they are, their moments too; None steps all.
        """
        if given is not None:
            held = [parameter, *(moment for key, moment in self.named_buffers() if key != "step")]
            before = [tensor.clone() for tensor in held]
            self._step(parameter, gradient, valid)
            for tensor, old in zip(held, before, strict=True):
                tensor.copy_(torch.where(given, tensor, old))
        else:
            self._step(parameter, gradient, valid)

    def _step(self, parameter: Tensor, gradient: Tensor, valid: Tensor) -> None:
        skip = (~valid).to(torch.float32)
        if self.name == "sgd":
            sgd(
                [parameter],
                [gradient],
                [None],
                fused=True,
                foreach=False,
                found_inf=skip,
                lr=self.lr,
                weight_decay=0.0,
                momentum=0.0,
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )
            self.step += valid
        else:
            adam(
                [parameter],
                [gradient],
                [self.exp_avg],
                [self.exp_avg_sq],
                [],
                [self.step],
                fused=True,
                foreach=False,
                found_inf=skip,
                lr=self.lr,
                beta1=0.9,
                beta2=0.999,
                eps=1e-8,
                weight_decay=0.0,
                amsgrad=False,
                maximize=False,
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "StateOptimizer":
        super()._apply(fn, recurse)
        self.step = self.step.to(torch.float32)  # the fused kernels read the step count as float32
        return self

    def extra_repr(self) -> str:
        return f"{self.name}, lr={self.lr}"
