"""Balancers that read the tasks' gradients, and how these are measured.

Measured on the graph already recorded, during the one backward pass. At a fork, the features' gradients of all tasks
arrive together; the gradients of a layer before it are T vector-Jacobian products of what lies between. Without a fork,
each loss is differentiated with respect to the shared parameters, before the weighted sum is.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from .audit import ForkError, audit
from .base import LossBalancer
from .ddp import before_first_backward
from .fork import Fork
from .losses import Entries, Losses, roots
from .window import Pass, Window


class GradientBalancer(LossBalancer):
    r"""A balancer whose weights follow the norms of the tasks' gradients.

    What it measures at a fork is all that comes through it: a penalty on the outputs, added to the returned loss,
    counts with the tasks whose heads it goes through.

    Args:
        fork: the model's `Fork`. None where the tasks share parameters but no features; then ``wrt`` names them.
        wrt: what the gradients are taken with respect to. None: the features at the fork, which costs next to nothing.
            A module or parameters upstream of the fork: all parameters given, biases too. With ``fork=None``: any
            shared parameters, at the price of one backward pass a task.
        tasks: the tasks' names, or without a fork their number.
        accumulate, check_finite: see `LossBalancer`.

    Raises:
        TypeError: ``fork`` is no `Fork`, or ``wrt`` no module or parameters.
        ValueError: ``wrt`` has nothing to train, ``tasks`` are not as many as the fork's, or neither fork nor tasks say
            how many there are.
        ForkError: on the first step, a loss reaches shared parameters other than through its alias of the features.
    """

    reads = "gradients"
    default_wrt: ClassVar[Literal["features", "layer", "parameters"]] = "features"
    """What the method's paper measures: features at the fork, the last shared layer, or all shared parameters."""

    _fork: Fork | None

    def __init__(
        self,
        fork: Fork | None,
        wrt: nn.Module | nn.Parameter | Iterable[nn.Parameter] | None = None,
        *,
        tasks: int | Sequence[str] | None = None,
        accumulate: int = 1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(_tasks_of(fork, tasks), accumulate=accumulate, check_finite=check_finite)
        if fork is None and wrt is None:
            raise ValueError("without a fork there are no features to measure at: give the shared parameters as wrt")
        self.__dict__["_fork"] = fork  # past nn.Module: it is the model's, not the balancer's, to train or to save
        self._wrt = None if wrt is None else _parameters(wrt)
        self._audited: set[int] = set()
        self._measured_before = False
        if fork is not None:
            fork.recording = True

    @property
    def _learns(self) -> bool:
        return True

    def adapt(self, losses: Tensor, gradient_norms: Tensor, given: Tensor | None) -> Tensor:
        """Updates the state, in place, after a window of backward passes.

        Args:
            losses: ``(T,)``, their means.
            gradient_norms: ``(T,)``, the norm of each task's gradient, unweighted: that of the window's mean.
            given: ``(T,)``, true for tasks that had a loss; None where all had.

        Returns:
            A bool scalar: whether what was measured was valid. Where it is false, nothing may have changed.
        """
        raise NotImplementedError(f"{type(self).__name__} must override adapt")

    def audit(self, losses: Losses) -> None:
        """Checks, on the graph of this step's losses, that each of them uses the fork as it must.

        Done by itself on the first step, and again on one that gives a task for the first time. Without a fork there is
        nothing to check.

        Raises:
            ForkError: a task, and what is wrong with its way to the shared parameters.
        """
        self._audit(self._reader.read(losses, learning=True)[0])

    def _audit(self, losses: Entries) -> None:
        if self._fork is not None:
            audit(self._fork, losses, self._wrt or (), self._reader.label)
        self._audited |= _given(losses)

    def _watch(self, total: Tensor, losses: Entries, this: Pass) -> None:
        if len(self._audited) < self.num_tasks and not _given(losses) <= self._audited:
            self._audit(losses)
        total.register_hook(partial(self._begin, this, losses))

    def _measure(self, this: Pass, losses: Entries) -> None:
        if self._fork is not None:
            self._fork.observer = partial(self._observe, this)
        else:
            with nullcontext() if self._measured_before else before_first_backward(losses):
                this.gradients = self._differentiate_losses(this, losses)
            self._measured_before = True

    def _differentiate_losses(self, this: Pass, losses: Entries) -> Tensor:
        """``(T, P)``: the gradients of the weighted, scaled losses with respect to ``wrt``."""
        assert self._wrt is not None
        factors = this.factors().unbind()
        rows = [
            None
            if root is None
            else torch.autograd.grad(root.edge, self._wrt, root.seed * factor, retain_graph=True, allow_unused=True)
            for root, factor in zip(roots(losses), factors, strict=True)
        ]
        return self._matrix(rows)

    def _observe(self, this: Pass, z: Tensor, gradients: Tensor) -> None:
        """Adds what arrived at the fork for ``z``: ``(T, *z.shape)``, gradients of the weighted, scaled losses."""
        if self._wrt is None:
            # Other samples' features are other variables: the squared norms add up.
            norms = torch.linalg.vector_norm(gradients.flatten(1), dim=1, dtype=this.weights.dtype)
            measured = (norms / this.factors()).square()
        else:
            rows = [
                torch.autograd.grad(z, self._wrt, gradient, retain_graph=True, allow_unused=True)
                for gradient in gradients
            ]
            measured = self._matrix(rows)
        this.gradients = measured if this.gradients is None else this.gradients + measured

    def _matrix(self, rows: Sequence[Sequence[Tensor | None] | None]) -> Tensor:
        """One row a task of all its gradients, zero where a task or a parameter has none."""
        assert self._wrt is not None
        flat = [
            (torch.zeros_like(parameter) if gradient is None else gradient).flatten()
            for row in rows
            for parameter, gradient in zip(self._wrt, row or [None] * len(self._wrt), strict=True)
        ]
        return torch.cat(flat).view(self.num_tasks, -1).to(self.weights.dtype)

    def _end(self, this: Pass) -> None:
        if self._fork is not None:
            self._fork.observer = None
        if this.gradients is None:
            raise ForkError("the backward pass did not come through the fork: the tasks' gradients were not measured")
        if self._wrt is not None:
            this.gradients /= this.factors().unsqueeze(1)
        super()._end(this)

    def _update(self, window: Window) -> Tensor:
        assert window.gradients is not None
        sums = window.gradients
        norms = sums.sqrt() if self._wrt is None else torch.linalg.vector_norm(sums, dim=1)
        return self.adapt(window.mean_losses().to(self.weights.dtype), norms / window.count, window.mask())


def _given(losses: Entries) -> set[int]:
    return {i for i, loss in enumerate(losses) if loss is not None}


def _tasks_of(fork: Fork | None, tasks: int | Sequence[str] | None) -> int | Sequence[str]:
    if fork is None:
        if tasks is None:
            raise ValueError("without a fork the number of tasks is not known: give tasks, a number or a list of names")
        return tasks
    if not isinstance(fork, Fork):
        raise TypeError(f"fork is of type {type(fork).__name__}; expected the model's Fork, or None")
    if tasks is None:
        return fork.num_tasks
    if (tasks if isinstance(tasks, int) else len(tasks)) != fork.num_tasks:
        raise ValueError(f"tasks is {tasks!r}, but the fork was made for {fork.num_tasks}")
    return tasks


def _parameters(wrt: nn.Module | nn.Parameter | Iterable[nn.Parameter]) -> tuple[nn.Parameter, ...]:
    if isinstance(wrt, nn.Module):
        parameters = tuple(p for p in wrt.parameters() if p.requires_grad)
        if not parameters:
            raise ValueError(f"wrt is a {type(wrt).__name__} without a parameter that requires grad")
        return parameters
    if not isinstance(wrt, Iterable):
        raise TypeError(f"wrt is of type {type(wrt).__name__}; expected a module or parameters of the model")
    parameters = (wrt,) if isinstance(wrt, nn.Parameter) else tuple(wrt)
    for parameter in parameters:
        if not isinstance(parameter, nn.Parameter):
            raise TypeError(f"wrt holds a {type(parameter).__name__}; expected a module or parameters of the model")
        if not parameter.requires_grad:
            raise ValueError(f"wrt holds a parameter of shape {tuple(parameter.shape)} that does not require grad")
    if not parameters:
        raise ValueError("wrt holds no parameters")
    return parameters
