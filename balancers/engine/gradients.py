"""Balancers that read the tasks' gradients: when these are measured, and what becomes of it.

At a fork, during the one backward pass. Without a fork, each loss is differentiated with respect to the shared
parameters, before the weighted sum is. `measure` does the measuring.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from .base import LossBalancer, Reads
from .ddp_graph import before_first_backward
from .fork import Fork
from .fork_audit import ForkError, audit
from .loss_input import Entries, Losses, roots
from .measure import Measurement, joint_norms
from .ranks import world_size
from .window import Pass, Window

Wrt = Literal["features", "layer", "parameters"]


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
        update_every: k, to measure and to update the weights in every k-th window only. The steps between cost next to
            nothing.
        accumulate, check_finite: see `LossBalancer`.

    Raises:
        TypeError: ``fork`` is no `Fork`, or ``wrt`` no module or parameters.
        ValueError: ``wrt`` has nothing to train, ``tasks`` are not as many as the fork's, or neither fork nor tasks say
            how many there are.
        ForkError: on the first step, a loss reaches shared parameters other than through its alias of the features.
    """

    reads: ClassVar[Reads] = "norms"
    default_wrt: ClassVar[Wrt] = "features"
    """What the method's paper measures: features at the fork, the last shared layer, or all shared parameters."""
    undefined_for: ClassVar[Mapping[Wrt, str]] = MappingProxyType({})
    """The kinds of ``wrt`` that the method is not defined for, and why."""

    _fork: Fork | None

    def __init__(
        self,
        fork: Fork | None,
        wrt: nn.Module | nn.Parameter | Iterable[nn.Parameter] | None = None,
        *,
        tasks: int | Sequence[str] | None = None,
        update_every: int = 1,
        accumulate: int = 1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(_tasks_of(fork, tasks), accumulate=accumulate, check_finite=check_finite)
        if not isinstance(update_every, int) or update_every < 1:
            raise ValueError(f"update_every is {update_every!r}; expected a number of steps, 1 or more")
        if fork is None and wrt is None:
            raise ValueError("without a fork there are no features to measure at: give the shared parameters as wrt")
        kind: Wrt = "parameters" if fork is None else "features" if wrt is None else "layer"
        if kind in self.undefined_for:
            raise ValueError(f"{type(self).__name__} {_PLACES[kind]}: {self.undefined_for[kind]}")
        self.__dict__["_fork"] = fork  # past nn.Module: it is the model's, not the balancer's, to train or to save
        self._wrt = None if wrt is None else _parameters(wrt)
        self._audited: set[int] = set()
        self._measured_before = False
        self.update_every = update_every
        self._turn = 0
        if fork is not None:
            fork.reading.recorded, fork.reading.combines = 0, False
        self._set_recording()

    @property
    def _learns(self) -> bool:
        return True

    def adapt(self, losses: Tensor, gradient_norms: Tensor, given: Tensor | None) -> Tensor:
        """Update the state, in place, after a window of backward passes.

        Args:
            losses: ``(T,)``, their means.
            gradient_norms: ``(T,)``, the norm of each task's gradient, unweighted: that of the window's mean.
            given: ``(T,)``, true for tasks that had a loss; None where all had.

        Returns:
            A bool scalar: whether what was measured was valid. Where it is false, nothing may have changed.
        """
        raise NotImplementedError(f"{type(self).__name__} must override adapt")

    def audit(self, losses: Losses) -> None:
        """Check, on the graph of this step's losses, that each of them uses the fork as it must.

        Done by itself on the first step, and again on one that gives a task for the first time. Without a fork there is
        nothing to check.

        Raises:
            ForkError: a task, and what is wrong with its way to the shared parameters.
        """
        self._audit(self._reader.read(losses, learning=True)[0])

    def not_capturable(self) -> str | None:
        if self.update_every > 1:
            return f"with update_every={self.update_every} its steps are not all alike"
        return super().not_capturable()

    def _audit(self, losses: Entries) -> None:
        if self._fork is not None:
            audit(self._fork, losses, self._wrt or (), self._reader.label)
        self._audited |= _given(losses)

    def close_window(self) -> None:
        if self._window.count == 0:
            return
        if self._window.gradients is None:
            self._window.clear()
        else:
            super().close_window()
        if self.update_every > 1:
            self._turn = (self._turn + 1) % self.update_every
            self._set_recording()

    @property
    def _measuring(self) -> bool:
        """Whether the passes of this window are measured."""
        return self._turn == 0

    def _set_recording(self) -> None:
        if self._fork is not None:
            self._fork.reading.recording = self._measuring

    def _watch(self, stacked: Tensor, losses: Entries, this: Pass) -> None:
        this.measured = self._measuring
        if this.measured:
            if len(self._audited) < self.num_tasks and not _given(losses) <= self._audited:
                self._audit(losses)
            this.adds_up = self.accumulate > 1 or world_size() > 1
            if self._fork is not None:
                # A layer's gradients add up over all the features that depend on it; norms of features go by squares.
                this.adds_up |= self._wrt is not None and self._fork.reading.recorded != 1
                self._fork.reading.recorded = 0
        super()._watch(stacked, losses, this)

    def _measure(self, this: Pass, losses: Entries) -> tuple[Tensor] | None:
        if not this.measured:
            return None
        this.measurement = Measurement(self.num_tasks, self._wrt, this.adds_up, this.weights.dtype)
        if self._fork is not None:
            self._fork.reading.observer = this.measurement.observe
        else:
            self._differentiate_losses(this, losses, this.measurement)
        return None

    def _differentiate_losses(self, this: Pass, losses: Entries, measurement: Measurement) -> None:
        """Measures the gradients of the weighted, scaled losses with respect to ``wrt``."""
        assert self._wrt is not None
        assert this.factors is not None
        with nullcontext() if self._measured_before else before_first_backward(losses):
            for task, (root, factor) in enumerate(zip(roots(losses), this.factors.unbind(), strict=True)):
                if root is not None:
                    seed = root.seed * factor
                    of = torch.autograd.grad(root.edge, self._wrt, seed, retain_graph=True, allow_unused=True)
                    measurement.add(task, of)
        self._measured_before = True

    def _end(self, this: Pass) -> None:
        if this.measurement is not None:
            if self._fork is not None:
                self._fork.reading.observer = None
            this.gradients = self._unweighted(this.measurement, this)
        super()._end(this)

    def _unweighted(self, measurement: Measurement, this: Pass) -> list[Tensor]:
        """Return what was measured, of the losses as they came, in the form that `Window` sums."""
        assert this.factors is not None
        columns, dtype = measurement.columns(), self.weights.dtype
        if not columns:
            raise ForkError("the backward pass did not come through the fork: the tasks' gradients were not measured")
        if this.adds_up and self._wrt is not None:
            return [(column.to(dtype).movedim(0, -1) / this.factors).movedim(-1, 0) for column in columns]
        norms = joint_norms(columns, dtype) / this.factors
        return [norms.square() if this.adds_up else norms]

    def _update(self, window: Window) -> Tensor:
        assert window.gradients is not None
        norms = window.gradients[0]
        if window.adds_up:
            norms = norms.sqrt() if self._wrt is None else joint_norms(window.gradients, self.weights.dtype)
            norms = norms / window.count
        return self.adapt(window.mean_losses().to(self.weights.dtype), norms, window.mask())

    def get_extra_state(self) -> dict[str, Any]:
        """Return the tasks' names, and how many windows ago the weights were updated."""
        return super().get_extra_state() | {"turn": self._turn}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self._turn = state.get("turn", 0) % self.update_every
        self._set_recording()


_PLACES: Mapping[Wrt, str] = {
    "features": "does not measure at the features (wrt=None)",
    "layer": "does not measure at a fork with respect to a layer",
    "parameters": "does not measure without a fork (fork=None)",
}


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
