"""What every balancer is: a loss function of T losses whose backward pass also updates the balancer.

`LossBalancer` reads the losses, weighs them and returns their weighted sum. The backward pass through that scalar is
the balancer's step. Its first act tells what each loss is multiplied by, the scale that the pass was called with
included (a GradScaler's, an accumulation's 1/k). When it has ended, what it measured on its way updates the balancer's
state. A method overrides `weigh`, `update`, or both.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from .loss_input import Entries, Losses, LossReader, stack
from .ranks import over_ranks, world_size
from .rng import Draws
from .window import Pass, Window

Reads = Literal["nothing", "losses", "norms", "gramian", "gradients"]


class Range(NamedTuple):
    """The values of a hyper-parameter that are worth trying."""

    low: float
    high: float
    log: bool = False
    """Whether to try them evenly by their logarithm."""


class LossBalancer(nn.Module):
    r"""Chooses the weights of :math:`\sum_i w_i L_i`, the loss of a network that learns T tasks.

    ``loss = balancer(losses)`` is a scalar to call ``backward`` on, by hand or by whatever trains the network. The
    first backward pass through it updates the balancer's own state, unless that pass is being differentiated itself
    (``create_graph=True``). In eval mode and without gradients, a balancer only weighs. A step whose losses or
    measurements are not finite leaves the state as it was; an overflow (a GradScaler's first steps) that only
    parameters see which the balancer does not measure goes unseen.

    The state is float32, or the losses' type where that is wider, and moves to the losses' device; ``.half()`` and the
    like don't change it. Under ``torch.distributed``, it is updated from averages over all ranks and equal on each.

    Args:
        tasks: their number, or their names. A balancer that was given a number takes the names of the first
            ``{task: loss}`` dict.
        accumulate: backward passes per optimiser step: the weights hold within such a window, and are updated from its
            means at its end. `close_window` ends a shorter one. A window that a checkpoint interrupts begins anew.
        check_finite: raise where a loss or a measurement is not finite. Waits for the device.

    Raises:
        ValueError: there is no task, a name stands twice, or ``accumulate`` is less than 1.
    """

    name: ClassVar[str]
    """What the registry calls the method."""
    summary: ClassVar[str]
    """What the method does, in a sentence."""
    use_when: ClassVar[str] = ""
    """What it is good for, in a sentence."""
    reads: ClassVar[Reads] = "losses"
    """What the weights depend on: of the tasks' gradients their norms, all their inner products, or themselves."""
    reads_now: ClassVar[bool] = True
    """Of a method that reads losses: whether `weigh` does; false where `update` alone does, for the steps to come."""
    heads: ClassVar[Literal["weighted", "plain"]] = "weighted"
    """Whether heads are trained on the weighted losses or on the losses as they are."""
    needs_positive_losses: ClassVar[bool] = False
    """Whether it is defined for positive losses alone. In a step where one is not, the weights stay as they were."""
    random: ClassVar[bool] = False
    """Whether it draws random numbers, from a generator of its own: it then takes ``seed``."""
    looks_again: ClassVar[bool] = False
    """Whether it needs `after_step`."""
    tunable: ClassVar[Mapping[str, Range]] = MappingProxyType({})
    """Its hyper-parameters, as its arguments name them, and the ranges worth tuning."""

    _draws: Draws | None = None
    """Where a method that is ``random`` takes its random numbers from; saved with its state."""
    weights: Tensor
    """``(T,)``: the weights last used."""
    latest_losses: Tensor
    """``(T,)``: where `weigh` reads losses, each task's when it was last given."""

    def __init__(self, tasks: int | Sequence[str], *, accumulate: int = 1, check_finite: bool = False) -> None:
        super().__init__()
        self._reader = LossReader(tasks)
        if not isinstance(accumulate, int) or accumulate < 1:
            raise ValueError(f"accumulate is {accumulate}; expected a number of backward passes, 1 or more")
        self.accumulate = accumulate
        self.check_finite = check_finite
        self.statistics: dict[str, Tensor] = {}
        """What the last step measured, on the device, for logging."""
        self._window = Window()
        self._masks: dict[tuple[bool, ...], Tensor] = {}
        self._constants: dict[str, list[float]] = {}
        self.register_buffer("weights", torch.ones(self.num_tasks))
        self._weighs_losses = self.reads == "losses" and self.reads_now
        if self._weighs_losses:
            self.register_buffer("latest_losses", torch.ones(self.num_tasks))
        self.register_load_state_dict_pre_hook(_before_loading)

    @property
    def num_tasks(self) -> int:
        """T."""
        return self._reader.num_tasks

    @property
    def tasks(self) -> tuple[str, ...] | None:
        """The tasks' names, where they are known."""
        return self._reader.names

    # What a method writes.

    def weigh(self, losses: Tensor) -> Tensor:
        """Return the weights of this step, ``(T,)``, for detached ``losses`` of shape ``(T,)``."""
        raise NotImplementedError(f"{type(self).__name__} must override weigh")

    def update(self, losses: Tensor, given: Tensor | None) -> Tensor:
        """Update the state, in place, after a window of backward passes.

        Args:
            losses: ``(T,)``, their means.
            given: ``(T,)``, true for tasks that had a loss; None where all had.

        Returns:
            A bool scalar: whether what was measured was valid. Where it is false, nothing may have changed.
        """
        raise NotImplementedError(f"{type(self).__name__} must override update")

    # What a training loop calls.

    def after_step(self, losses: Losses) -> None:
        """Look at the same batch's losses again, after the optimiser's step; for methods that ``looks_again``.

        Raises:
            TypeError, ValueError: the losses are not what this balancer was made for.
        """

    def forward(self, losses: Losses) -> Tensor:
        """Return the weighted sum of ``losses``: T scalars, a ``{task: loss}`` dict, or a tensor of shape ``(T,)``.

        A dict may leave out tasks: they count nothing in this step, and their weights stay as they are.

        Raises:
            TypeError, ValueError: the losses are not what this balancer was made for.
            FloatingPointError: with ``check_finite``, a loss is not finite.
        """
        learning = self.training and torch.is_grad_enabled()
        in_order, given = self._reader.read(losses, learning)
        stacked = stack(in_order)
        detached = stacked.detach()
        if detached.device != self.weights.device or detached.dtype.itemsize > self.weights.dtype.itemsize:
            self._move(detached.device, torch.promote_types(detached.dtype, self.weights.dtype))
        # Where ranks learn together, one that raised here would leave the others waiting: close_window raises on all.
        if self.check_finite and not (learning and self._learns and world_size() > 1) and not detached.isfinite().all():
            bad = [self._reader.label(i) for i in detached.isfinite().logical_not().nonzero().flatten().tolist()]
            raise FloatingPointError(f"the loss of {', '.join(bad)} is not finite")
        mask = None if given is None else self._mask(given)
        weights = self._weighed(detached.to(self.weights.dtype), mask, learning)
        total = torch.dot(stacked, weights.to(stacked.dtype))
        if learning:
            self.statistics["losses"] = detached
            self._watch(stacked, in_order, Pass(detached, weights, mask))
        return total

    def _weighed(self, losses: Tensor, mask: Tensor | None, learning: bool) -> Tensor:
        """Return the weights of a step."""
        weights = self._from_losses(losses, mask, learning) if self._weighs_losses else self.weigh(losses)
        self._buffers["weights"] = weights  # at a tenth of the time that nn.Module takes for it
        return weights

    def _from_losses(self, losses: Tensor, mask: Tensor | None, learning: bool) -> Tensor:
        """Weights that this step's losses decide: as they were for tasks left out, and where losses can't be read."""
        if learning and world_size() > 1:
            losses, mask = over_ranks(losses, mask)
        if mask is not None:
            losses = torch.where(mask > 0, losses, self.latest_losses)
        weights = self.weigh(losses)
        if self.needs_positive_losses:
            weights = torch.where(_positive(losses), weights, self.weights)
        if learning:
            self._buffers["latest_losses"] = torch.where(losses.isfinite(), losses, self.latest_losses)
        return weights if mask is None else torch.where(mask > 0, weights, self.weights)

    def close_window(self) -> None:
        """Update from the backward passes since the last update, where they are fewer than ``accumulate``.

        Under ``torch.distributed``, to be called on all ranks, after as many passes on each.
        """
        if self._window.count == 0:
            return
        try:
            if world_size() > 1:
                self._window.add_other_ranks()
            valid = self._update(self._window)
        finally:
            self._window.clear()
        if self.check_finite and not valid:
            raise FloatingPointError("this step's losses or gradients are not valid; the balancer's state is unchanged")

    def not_capturable(self) -> str | None:
        """Why a step with this balancer can't be captured in a CUDA graph; None if it can: see `CapturedStep`."""
        if self.check_finite:
            return "with check_finite it waits for the device"
        if self.accumulate > 1:
            return f"with accumulate={self.accumulate} its steps are not all alike"
        if self.random:
            return "it draws random numbers from a generator of its own"
        if self.looks_again:
            return "it looks at the losses again after the optimiser's step"
        return None

    # The backward pass.

    def _watch(self, stacked: Tensor, losses: Entries, this: Pass) -> None:
        """Has the backward pass through the losses, ``stacked``, measured, where the method learns from it."""
        if self._learns and stacked.grad_fn is not None:
            stacked.grad_fn.register_prehook(partial(self._begin, this, losses))

    @property
    def _learns(self) -> bool:
        return type(self).update is not LossBalancer.update

    def _begin(self, this: Pass, losses: Entries, factors: tuple[Tensor]) -> tuple[Tensor] | None:
        """Begin the pass; ``factors`` holds the gradient that the losses received.

        Returns:
            What they are to receive in its place; None to leave it.
        """
        # With create_graph=True the pass is being differentiated, not trained on; a second pass counts no more.
        if this.factors is None and not torch.is_grad_enabled():
            [this.factors] = factors
            Variable._execution_engine.queue_callback(partial(self._end, this))
            return self._measure(this, losses)
        return None

    def _measure(self, this: Pass, losses: Entries) -> tuple[Tensor] | None:
        """Measures, or gets ready to, what the method needs besides the losses; returns what `_begin` returns."""
        return None

    def _end(self, this: Pass) -> None:
        """End the pass."""
        self._window.add(this)
        if self._window.count == self.accumulate:
            self.close_window()

    def _update(self, window: Window) -> Tensor:
        return self.update(window.mean_losses().to(self.weights.dtype), window.mask())

    def _mask(self, given: tuple[bool, ...]) -> Tensor:
        if given not in self._masks:  # kept, so that only a new combination of tasks waits for the device
            self._masks[given] = torch.tensor(given, dtype=self.weights.dtype, device=self.weights.device)
        return self._masks[given]

    # The state.

    def _register_constants(self, name: str, values: list[float], persistent: bool = True) -> None:
        """Register a buffer for what the caller gave, which is not to lose digits on the way to a wider type."""
        self._constants[name] = values
        self.register_buffer(name, torch.tensor(values), persistent=persistent)

    def _move(self, device: torch.device, dtype: torch.dtype) -> None:
        before = {name: self.get_buffer(name) for name in self._constants}
        super()._apply(lambda state: state.to(device, dtype))
        for name, rounded in before.items():
            exact = torch.tensor(self._constants[name], dtype=torch.float64)
            if rounded.dtype != dtype and rounded.cpu().equal(exact.to(rounded.dtype)):
                setattr(self, name, exact.to(device, dtype))
        self._masks.clear()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._masks.clear()
        super()._apply(lambda state: state.to(fn(state).device), recurse)
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """Return the tasks' names and, of a method that draws random numbers, its generator's state."""
        draws = {} if self._draws is None else {"draws": self._draws.state()}
        return {"tasks": None if self.tasks is None else list(self.tasks)} | draws

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._reader.names = self.tasks or (None if state["tasks"] is None else tuple(state["tasks"]))
        if self._draws is not None:
            self._draws.restore(state["draws"])

    def extra_repr(self) -> str:
        return f"{self.num_tasks} tasks" if self.tasks is None else ", ".join(self.tasks)


def _positive(losses: Tensor) -> Tensor:
    """Return a bool scalar: whether all are positive and finite."""
    return ((losses > 0) & (losses < math.inf)).all()


def _before_loading(balancer: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Refuses the state of other tasks; and loads a float64 state as such, although a new balancer is float32."""
    assert isinstance(balancer, LossBalancer)
    names = state.get(f"{prefix}_extra_state", {}).get("tasks")
    if names is not None and balancer.tasks is not None and tuple(names) != balancer.tasks:
        raise ValueError(f"the state to load is of the tasks ({', '.join(names)}), but {balancer._reader.made_for()}")
    balancer._window.clear()
    saved = state.get(f"{prefix}weights")
    if isinstance(saved, Tensor):
        balancer._move(balancer.weights.device, saved.dtype)
