"""GradNorm by a double backward pass over stacked losses, a common form: each gradient passes through all heads."""

import torch
from torch import Tensor

from .double_backward import DoubleBackward


class StackedDoubleBackward(DoubleBackward):
    """The peer that differentiates ``losses[i]`` of a stacked tensor, which sends zeros through all other heads."""

    name = "double backward (stacked)"

    def backward(self, losses: list[Tensor]) -> None:
        stacked = torch.stack(losses)
        super().backward([stacked[i] for i in range(len(losses))])
