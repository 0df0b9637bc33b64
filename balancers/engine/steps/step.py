"""One call of a balancer, and the first backward pass through the loss that it returned.

A `Step` measures nothing but the losses. Those of `measuring_step` and `combining_step` measure each task's gradient on
its way to the shared parameters.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ..loss_input import Entries
from ..passes import is_measuring
from ..torch_internals import (
    COMPILED,
    NO_PASS,
    after_this_pass,
    current_pass,
    in_compiled_autograd,
    is_batched,
    not_compiled,
)

if TYPE_CHECKING:
    from ..classes.base import LossBalancer


class Call(NamedTuple):
    """The losses of one call of a balancer, and the weights that it used."""

    losses: Tensor
    """``(T,)``, detached; zero where a task was left out."""
    weights: Tensor
    """``(T,)``: what the losses were multiplied by."""
    given: tuple[bool, ...] | None
    """For each task whether it was given; None if all were."""
    valid: Tensor | None
    """A bool scalar: whether the losses could be weighed; None if the weights don't depend on them."""
    turn: int | None = None
    """The task whose turn it was, of a method that takes turns."""


class Step:
    """One call of a balancer.

    It holds no part of the autograd graph, whose nodes hold it.
    """

    combines = False
    """Whether it returns what goes on into the trunk."""

    def __init__(self, balancer: "LossBalancer", call: Call) -> None:
        self.balancer = balancer
        self.losses, self.weights, self.given, self.valid, self.turn = call
        self.ended = False
        """Whether a backward pass has gone through without an exception."""
        self.factors = call.weights
        """``(T,)``: what each loss is multiplied by in the pass, its weight and the scale of the pass."""
        self.gradients: list[Tensor] = []
        """The measurements, in the form that `Window` sums."""
        self.adds_up = False
        """Whether the window sums `gradients` over passes and ranks before it takes their norms."""
        self.squared = False
        """Whether, in that case, `gradients` are squares of norms, which are summed as such."""
        self.commit: Callable[[], None] | None = None
        """Writes what a combining method decided in the pass, at the pass's end."""
        self._pass = NO_PASS
        self._loads = balancer._loads

    def watch(self, node: Node, losses: Entries) -> None:
        """Begin when a backward pass reaches ``node``, that of the losses as one tensor."""
        node.register_prehook(partial(self._reached, losses))

    def is_current(self) -> bool:
        """Return whether the code runs in the pass that this step measures."""
        return self._pass == current_pass() and not torch.is_grad_enabled()

    @not_compiled(COMPILED)
    def _reached(self, losses: Entries, factors: tuple[Tensor]) -> tuple[Tensor] | None:
        """Begin the pass; ``factors`` is the gradient that the losses received, and the return value replaces it."""
        if is_measuring():
            return self._measured_by_another()
        if in_compiled_autograd():
            raise RuntimeError(
                f"{type(self.balancer).__name__} can't measure in compiled autograd, whose backward pass is not "
                f"that of the recorded graph: set torch._dynamo.config.compiled_autograd = False"
            )
        if torch.is_grad_enabled() or is_batched(factors[0]):
            return self._differentiated()
        if self.ended:
            return self._again(factors[0])
        window, number = self.balancer._window, current_pass()
        if window.under_way == number:
            raise RuntimeError(_called_twice(self.balancer))
        window.under_way = self._pass = number
        self.factors = factors[0]
        after_this_pass(self._ended)
        return self._begin(losses)

    def _differentiated(self) -> tuple[Tensor] | None:
        """Take in a pass that is differentiated (``create_graph=True``) or batched, and so is no step of training."""
        return None

    def _measured_by_another(self) -> tuple[Tensor] | None:
        """Take in a pass of another balancer that measures the loss which this one returned."""
        return None

    def _again(self, factors: Tensor) -> tuple[Tensor] | None:
        """Take in a further pass through the same loss, which updates nothing."""
        return None

    def _begin(self, losses: Entries) -> tuple[Tensor] | None:
        return None

    @not_compiled(COMPILED)
    def _ended(self) -> None:
        self.ended = True
        window = self.balancer._window
        window.under_way = NO_PASS
        window.passes += 1
        self._end()

    def _end(self) -> None:
        """Take in the whole pass; nothing is learnt from one in eval mode, or of a call before a state was loaded."""
        if self.balancer.training and self._loads == self.balancer._loads:
            self._end_turn()
            if self.commit is not None:
                self.commit()
            self.balancer._finish(self)
        self.commit = None

    def _end_turn(self) -> None:
        """Let the next task have its turn, if this step had one."""
        if self.turn is not None:
            self.balancer.turn = (self.turn + 1) % self.balancer.num_tasks


class CountedStep(Step):
    """A step of a method that learns in `after_step`. Its pass is counted, and neither refused nor learnt from."""

    @not_compiled(COMPILED)
    def _reached(self, losses: Entries, factors: tuple[Tensor]) -> None:
        plain = not (is_measuring() or in_compiled_autograd() or torch.is_grad_enabled() or is_batched(factors[0]))
        if plain and not self.ended:
            after_this_pass(self._ended)

    def _end(self) -> None:
        if self.balancer.training and self._loads == self.balancer._loads:
            self._end_turn()


def scale_of(factors: Tensor, weights: Tensor) -> Tensor:
    """Return what a pass multiplied all losses by besides their weights, a scalar; 1 if all weights are zero.

    Args:
        factors: ``(T,)``: what each loss was multiplied by in all.
        weights: ``(T,)``: its weight.
    """
    squares = torch.dot(weights, weights)
    return torch.where(squares == 0, 1.0, torch.dot(factors, weights) / squares)


def _called_twice(balancer: "LossBalancer") -> str:
    return (
        f"one backward pass goes through losses that two calls of {type(balancer).__name__} returned, and it learns "
        f"from each as from a step. Call it once, with the losses of all tasks. For several batches in a step of "
        f"the optimiser, call backward on the loss of each, and give accumulate=the number of batches. To evaluate "
        f"losses several times in a step, do it in a block `with balancer.held():`"
    )
