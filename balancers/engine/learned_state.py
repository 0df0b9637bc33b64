"""Optimise the few numbers that a balancer itself learns."""

from typing import Literal

from torch import Tensor

from .base import LossBalancer
from .declared import Range, option, state
from .readings import State
from .torch_internals import fused_adam


class LearnedState(LossBalancer):
    """A balancer that learns one number a task by Adam (betas 0.9 and 0.999, eps 1e-8) or plain SGD."""

    lr: float = option(0.025, above=0, tune=Range(1e-4, 1e-1, log=True))
    optimizer: Literal["adam", "sgd"] = option("adam", one_of=("adam", "sgd"))
    optimizer_steps: Tensor = state(shape="", float32=True)
    moments_1: Tensor = state()
    moments_2: Tensor = state()

    def learnt(self, state: State, name: str, gradient: Tensor) -> dict[str, Tensor]:
        """Return the new values of ``state[name]`` and of the optimiser's own state after one step.

        Args:
            state: the balancer's.
            name: what is learnt, ``(T,)``.
            gradient: ``(T,)``.
        """
        steps = state["optimizer_steps"] + 1
        if self.optimizer == "sgd":
            return {name: state[name] - self.lr * gradient, "optimizer_steps": steps}
        new = {each: state[each].clone() for each in (name, "moments_1", "moments_2")}
        fused_adam(new[name], new["moments_1"], new["moments_2"], gradient, steps, self.lr)
        return new | {"optimizer_steps": steps}
