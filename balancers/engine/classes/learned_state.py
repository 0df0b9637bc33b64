"""Optimise the few numbers that a balancer itself learns."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..method.declared import Range, option, state
from ..method.readings import Read, State
from ..torch_internals import fused_adam
from .base import LossBalancer


class LearnedState(LossBalancer):
    """A balancer that learns one number a task by Adam (betas 0.9 and 0.999, eps 1e-8) or plain SGD.

    Its `update` returns the number's gradient in the `Result`; the optimiser's step is made if all of it is valid.
    """

    learns: ClassVar[str]
    """The name of the state that is learnt, ``(T,)``."""
    lr: float = option(0.025, above=0, tune=Range(1e-4, 1e-1, log=True))
    optimizer: Literal["adam", "sgd"] = option("adam", one_of=("adam", "sgd"))
    optimizer_steps: Tensor = state(shape="", float32=True)
    moments_1: Tensor = state()
    moments_2: Tensor = state()

    def project(self, values: Tensor, read: Read) -> Tensor:
        """Return what the optimiser's step arrived at, ``(T',)``, within the bounds of what is learnt."""
        return values

    def _descend(self, gradient: Tensor, read: Read, index: Tensor | None, valid: Tensor) -> None:
        self.optimizer_steps.add_(valid)
        state = self.state(index)
        values, first, second = state[self.learns], state["moments_1"], state["moments_2"]
        if self.optimizer == "sgd":
            values = values - self.lr * gradient
        else:
            fused_adam(values, first, second, gradient, self.optimizer_steps, self.lr, skip=valid.logical_not())
        self.commit({self.learns: self.project(values, read), "moments_1": first, "moments_2": second}, index, valid)

    def _descended(self, gradient: Tensor, read: Read, index: Tensor | None) -> State:
        state, steps = self.state(index), self.optimizer_steps + 1
        values, first, second = state[self.learns], state["moments_1"], state["moments_2"]
        if self.optimizer == "sgd":
            values = values - self.lr * gradient
        else:  # not the optimiser's own kernel, for which the compiled one would be split
            first, second = torch.lerp(first, gradient, 0.1), torch.lerp(second, gradient.square(), 0.001)
            mean, square = first / (1 - 0.9 ** steps.double()), second / (1 - 0.999 ** steps.double())
            values = values - self.lr * mean / (square.sqrt() + 1e-8)
        learnt = {self.learns: self.project(values, read), "moments_1": first, "moments_2": second}
        return learnt | {"optimizer_steps": steps}
