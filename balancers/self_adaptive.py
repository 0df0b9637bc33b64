"""Self-adaptive weights: raise each task's weight by gradient ascent on the objective that the network descends."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .engine import LearnedState, Range, Read, Result, State, option, register, state


@register
class SelfAdaptiveWeighting(LearnedState):
    r"""Raise the weights of the tasks whose losses stay large, for as long as they do (SA-PINN, one weight a task).

    The network minimises an objective that the numbers :math:`\lambda_i` maximise:

    .. math:: \min_\theta \max_\lambda \sum_i m(\lambda_i) L_i(\theta), \quad
        w_i = m(\lambda_i), \quad \lambda_i \leftarrow \lambda_i + \eta\, m'(\lambda_i)\, L_i

    The mask :math:`m` is a square, :math:`m(\lambda) = \lambda^2`, or a sigmoid. Network and weights step from the
    same losses. A positive loss can only raise its weight: a square grows without bound, and a sigmoid comes close to
    1. A loss below zero lowers its weight. To keep the weights from some step on, as the paper does for L-BFGS, call
    ``balancer.eval()``, again after each ``train()`` of a model that has the balancer as its part.

    The paper gives each training point a weight of its own. Here a weight belongs to a task, which is one term of the
    objective: a balancer sees a term's mean loss, not its points.

    Args:
        tasks: see `LossBalancer`.
        mask_function: :math:`m`, ``"square"`` or ``"sigmoid"``.
        initial: :math:`\lambda_i` at the start: one number for all tasks, one per task, or a dict by task name. With a
            square it can't be 0, where the slope is 0. With a sigmoid, 0 is a weight of 1/2.
        lr: :math:`\eta`, learning rate of :math:`\lambda`.
        optimizer: optimiser of :math:`\lambda`, ``"adam"`` or ``"sgd"``.
        options: see `LossBalancer`.

    Raises:
        ValueError: ``mask_function`` or ``optimizer`` is not one of these, ``lr`` is not positive, ``initial`` is not
            finite, or 0 with a square, or its number or names are not those of the tasks.

    Example::

        balancer = SelfAdaptiveWeighting(["equation", "boundary"], mask_function="sigmoid", initial=0.0)
        balancer(losses).backward()
        balancer.eval()  # keeps the weights from here on

    Source: McClenny and Braga-Neto, "Self-adaptive physics-informed neural networks", Journal of Computational Physics
    2023. In the official code :math:`\lambda` multiplies the residual, so that the mask is a square. There it starts
    at random numbers up to 1, or up to 100 for initial conditions, and Adam's first beta is 0.99. In PINA the mask is
    a sigmoid, :math:`\lambda` starts at 0, and the network's step already uses the new weights.
    """

    name = "self-adaptive"
    summary = "Raise the weights of losses that stay large, by gradient ascent on the network's objective."
    reads = "losses"
    compares_tasks = False
    use_when = (
        "For physics-informed networks, where all losses can come close to zero; "
        "the weights of losses that can't never stop growing."
    )
    mask_function: Literal["square", "sigmoid"] = option("square", one_of=("square", "sigmoid"), fixed=True)
    initial: list[float] = option(1.0, per_task=True)
    lr: float = option(0.005, above=0, tune=Range(1e-4, 1e-1, log=True))
    learns = "adaptations"
    adaptations: Tensor = state(lambda balancer: balancer.initial)
    r""":math:`\lambda_i`, ``(T,)``."""
    last_weights: Tensor = state(lambda balancer: _masked(balancer.initial, balancer.mask_function))

    def prepare(self) -> None:
        if self.mask_function == "square" and 0 in self.initial:
            raise ValueError(f"initial is {self.initial}; expected no 0, which a square never changes")

    def weigh(self, state: State) -> Tensor:
        r"""Return :math:`m(\lambda_i)`, ``(T,)``."""
        adaptations = state["adaptations"]
        return adaptations.square() if self.mask_function == "square" else torch.sigmoid(adaptations)

    def update(self, read: Read, state: State) -> Result:
        weights = self.weigh(state)
        slopes = 2 * state["adaptations"] if self.mask_function == "square" else weights * (1 - weights)
        return Result(gradient=-slopes * read.losses)


def _masked(adaptations: Sequence[float], function: str) -> list[float]:
    r"""Return :math:`m(\lambda_i)`."""
    if function == "square":
        return [value**2 for value in adaptations]
    return [(1 + math.tanh(value / 2)) / 2 for value in adaptations]
