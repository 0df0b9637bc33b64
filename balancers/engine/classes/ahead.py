"""Methods that differentiate when they are called, before they weigh a step's losses."""

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ..loss_input import Entries
from ..steps.step import Call
from .base import LossBalancer
from .gradients import GradientBalancer


class AheadBalancer(GradientBalancer):
    """A balancer that measures gradients when it is called, and weighs the losses by what it found.

    It takes no fork, whose features are differentiated in the step's own backward pass.
    """

    when = "forward"
    default_wrt = "parameters"

    def _in_transform(self, stacked: Tensor, losses: Tensor, given: tuple[bool, ...] | None) -> Tensor:
        if self.training and torch.is_grad_enabled():
            raise RuntimeError(
                f"{type(self).__name__} measures gradients when it is called, and functional transforms (torch.func) "
                f"and forward mode record none: call it outside of them, or in eval mode, which uses its last weights"
            )
        return super()._in_transform(stacked, losses, given)

    def _watch(self, node: Node, losses: Entries, call: Call) -> None:
        LossBalancer._watch(self, node, losses, call)
