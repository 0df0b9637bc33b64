"""Let the backward pass of a loss reach parameters that the loss does not depend on."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def reaching(losses: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return ``losses``, whose backward pass brings each of ``parameters`` a gradient, of zero where it had none.

    A method that replaces the gradients of these parameters can then replace them all.
    """
    reached: Tensor = _Reach.apply(losses, *parameters)
    return reached


class _Reach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, losses: Tensor, *parameters: Tensor) -> Tensor:
        ctx.zeros = [parameter.new_zeros(()).expand_as(parameter) for parameter in parameters]
        return losses.view_as(losses)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return *gradients, *ctx.zeros
