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

    Its `update` returns the number's gradient in the `Result`; the optimiser's step is made if all of it is valid. Adam
    corrects its moments by the number of steps that the task took part in.
    """

    learns: ClassVar[str]
    """The name of the state that is learnt, ``(T,)``."""
    lr: float = option(0.025, above=0, tune=Range(1e-4, 1e-1, log=True))
    optimizer: Literal["adam", "sgd"] = option("adam", one_of=("adam", "sgd"), fixed=True)
    optimizer_steps: Tensor = state(shape="", float32=True)
    task_steps: Tensor = state(float32=True)
    """The number of these steps that each task took part in, ``(T,)``."""
    moments_1: Tensor = state()
    moments_2: Tensor = state()
    _may_differ = False
    """Whether a task may have taken part in fewer steps than the optimiser made."""

    def project(self, values: Tensor, read: Read) -> Tensor:
        """Return what the optimiser's step arrived at, ``(T',)``, within the bounds of what is learnt."""
        return values

    def state_changed(self) -> None:
        super().state_changed()
        steps = self.task_steps
        self._may_differ = not steps.is_meta and bool((steps != self.optimizer_steps).any())

    def _step_in_place(self, gradient: Tensor, read: Read, index: Tensor | None, valid: Tensor) -> None:
        if index is not None:
            self._may_differ = True
        # The kernel takes one number of steps for all tasks. A step that is not valid leaves the numbers alike, which
        # the host does not know but a balancer that is loaded from this state does: so the device decides.
        adam = self.optimizer == "adam"
        alike = (self.task_steps == self.optimizer_steps).all() if adam and self._may_differ else None
        self.optimizer_steps.add_(valid)
        if index is None:
            self.task_steps.add_(valid)
        else:
            self.task_steps.index_add_(0, index, valid.to(self.task_steps.dtype).expand(len(index)))
        state = self.state(index)
        values, first, second = state[self.learns], state["moments_1"], state["moments_2"]
        if not adam:
            values = values - self.lr * gradient
        else:
            steps = state["task_steps"]
            by_row = None if alike is None else _adam(values, first, second, gradient, steps, self.lr)
            fused_adam(values, first, second, gradient, self.optimizer_steps, self.lr, skip=valid.logical_not())
            if by_row is not None and alike is not None:
                pairs = zip((values, first, second), by_row, strict=True)
                values, first, second = (torch.where(alike, fused, each) for fused, each in pairs)
        self.commit({self.learns: self.project(values, read), "moments_1": first, "moments_2": second}, index, valid)

    def _stepped(self, gradient: Tensor, read: Read, index: Tensor | None) -> State:
        state = self.state(index)
        values, first, second, steps = state[self.learns], state["moments_1"], state["moments_2"], state["task_steps"]
        if self.optimizer == "sgd":
            values = values - self.lr * gradient
        else:  # not the optimiser's own kernel, for which the compiled one would be split
            values, first, second = _adam(values, first, second, gradient, steps + 1, self.lr)
        learnt = {self.learns: self.project(values, read), "moments_1": first, "moments_2": second}
        return learnt | {"optimizer_steps": self.optimizer_steps + 1, "task_steps": steps + 1}


def _adam(
    values: Tensor, first: Tensor, second: Tensor, gradient: Tensor, steps: Tensor, lr: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return values and moments, ``(T',)`` each, after one step of Adam, which is the ``steps``-th of each task."""
    first, second = torch.lerp(first, gradient, 0.1), torch.lerp(second, gradient.square(), 0.001)
    steps = steps if steps.device.type == "mps" else steps.double()  # which that device does not have
    mean = first / (1 - 0.9**steps).to(first.dtype)
    square = second / (1 - 0.999**steps).to(second.dtype)
    return values - lr * mean / (square.sqrt() + 1e-8), first, second
