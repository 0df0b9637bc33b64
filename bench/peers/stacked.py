"""The same with the losses stacked first, as they often are: each gradient then passes through all heads, as zeros."""

import torch
from torch import Tensor

from .double_backward import DoubleBackward


class StackedDoubleBackward(DoubleBackward):
    """Differentiates ``losses[i]`` of a tensor of losses."""

    name = "double backward (stacked)"

    def backward(self, losses: list[Tensor]) -> None:
        stacked = torch.stack(losses)
        super().backward([stacked[i] for i in range(len(losses))])
