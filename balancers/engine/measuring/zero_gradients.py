"""Give parameters that a loss does not depend on a gradient of zero in its backward pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def with_zero_gradients(losses: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return ``losses``, whose backward pass brings each of ``parameters`` a gradient, of zero where it had none.

    A method that replaces the gradients of these parameters can then replace them all.
    """
    result: Tensor = _ZeroGradients.apply(losses, *parameters)
    return result


class _ZeroGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, losses: Tensor, *parameters: Tensor) -> Tensor:
        ctx.zeros = [parameter.new_zeros(()).expand_as(parameter) for parameter in parameters]
        return losses.view_as(losses)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return *gradients, *ctx.zeros
