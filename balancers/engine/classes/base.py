"""The base class of all balancers: a loss function of T losses whose backward pass also updates the balancer.

A `DeclaredMethod` knows how to call a method's two functions, `weigh` and `update`. Here is when they are called, once
for all methods: losses are read, tasks without a loss are left out, the backward pass is watched, and passes and ranks
are put together.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ..loss_input import Entries, Losses, LossReader, stack
from ..method.declared import option, state
from ..method.declared_method import DeclaredMethod
from ..method.readings import Read, State
from ..own_precision import own_precision
from ..ranks import GroupOption, Ranks
from ..steps.before_step import Ahead, learn_ahead, second_losses
from ..steps.step import Call, CountedStep, Step
from ..steps.window import Window
from ..torch_internals import COMPILED, in_transform, not_compiled
from ..user_warnings import warn
from .scalars import scalars
from .training_warnings import TrainingWarnings

DROPPED = 50
"""Number of windows or passes in a row without an update after which a warning says so; a GradScaler skips some."""


class LossBalancer(DeclaredMethod):
    r"""Choose the weights of :math:`\sum_i w_i L_i`, the loss of a network that learns T tasks.

    ``loss = balancer(losses)`` is a scalar to call ``backward`` on, by hand or by whatever trains the network. The
    first backward pass through it updates the balancer, unless that pass is being differentiated itself
    (``create_graph=True``). Without gradients, a balancer only weighs. In eval mode it uses its last weights. A step
    whose losses, measurements or results are not finite leaves the state as it was; an overflow (a GradScaler's first
    steps) that only parameters see which the balancer does not measure goes unseen.

    The state is float32, or the losses' type where that is wider, and moves to the losses' device; ``.half()`` and the
    like don't change it. Under ``torch.distributed``, weights are those of the global batch, equal on every rank.

    **A method** is a subclass. It declares what it `reads`, its options (`option`) and its state (`state`), and writes
    one or both of these functions. Each takes the arguments of these names that it needs:

    ``weigh(losses, state, draws)`` returns the weights of a step, ``(T',)``, before the backward pass, for detached
    ``losses`` ``(T',)`` of the T' tasks that have one, as if there were no others; without ``losses``, those of all T
    tasks. Losses are means over the ranks, but each pass's own. `State` is a mapping of tensors by name, `Draws` a
    source of random numbers. Only methods that read the Gramian or the gradients may leave `weigh` out: losses are
    then not multiplied.

    ``update(read, state, draws)`` learns after the backward pass: it returns a `Result` for a `Read`. Neither function
    may change a tensor that it is given, or wait for the device. A method that reads the Gramian and keeps no state
    may write ``solve(gramian)`` instead, which returns the weights.

    Args:
        tasks: their number, or their names. A balancer that was given a number takes the names of the first
            ``{task: loss}`` dict.
        accumulate: backward passes per optimiser step. What the balancer learns is learnt from the means of such a
            window, at its end. Weights hold within it, unless they follow from the losses of the call. `close_window`
            ends a shorter one, and `follow` does so by itself. A window that a checkpoint interrupts begins anew. Call
            the balancer after the backward pass of the call before: whether a call is learnt from, and which task has
            its turn, is decided when it is made, by the passes that have ended.
        check_finite: raise where a loss or a measurement is not finite. Waits for the device. Otherwise the balancer
            alone skips such a step, and the network takes it. To skip the optimiser's step too, which also waits::

                gradients = [p.grad for p in net.parameters() if p.grad is not None]
                if torch.nn.utils.get_total_norm(gradients).isfinite():
                    optimizer.step()

        compile: compile the method's `update` with `torch.compile`, at its first call. Steps in which tasks are left
            out are not compiled, nor are random draws.
        options: the method's own. One that draws random numbers takes a ``seed``. Numbers may be set later,
            ``balancer.alpha = 0.5``; values for each task may not.
        process_group: the ranks of ``torch.distributed`` that learn together: None for all, False for each on its own.

    Raises:
        ValueError: there is no task, a name stands twice, or ``accumulate`` is less than 1.
        TypeError: ``process_group`` is not a process group, or the method has no option of a given name.

    Example::

        class InverseLoss(LossBalancer):
            name = "inverse"

            def weigh(self, losses: Tensor) -> Tensor:
                return 1 / losses
    """

    accumulate: int = option(1, at_least=1, whole=True)
    check_finite: bool = option(False)
    process_group: GroupOption = option(None, free=True)
    last_weights: Tensor = state(1.0)
    """``(T,)``: the weights last used. `weights` returns a copy of them."""

    def __init__(self, tasks: int | Sequence[str], *, compile: bool = False, **options: object) -> None:
        super().__init__(LossReader(tasks), options, compile)
        self.statistics: dict[str, Tensor] = {}
        """The measurements of the last step, on the device, for logging."""
        self._ranks = Ranks(self.process_group)
        self._window = Window()
        self._followed: torch.utils.hooks.RemovableHandle | None = None
        self._held: _Held | None = None
        self._is_new = True
        """Whether the last weights are still those that it was made with: no step in training has set them."""
        self._dropped = 0
        """Number of windows in a row that `follow` dropped, or of passes that no `after_step` followed."""
        self._losses_before_step: tuple[Tensor, tuple[bool, ...] | None] | None = None
        self._expects_look = self.looks_again
        """Whether `after_step` was never called, and no warning has said so."""
        self._step_valid: Tensor | None = None
        """A bool scalar: whether the pass before `after_step` was valid to the method whose weighting this is."""
        self._closure: Callable[[], Losses] | None = None
        self._network_optimizer: weakref.ref[torch.optim.Optimizer] | None = None
        self._ahead: Ahead | None = None
        """The update that `learn_ahead` made for this call, until its backward pass is hooked."""
        self._loads = 0
        """The number of times that all of the state was set from outside: a pass of a call before counts no more."""
        self._told_of: tuple[bool, ...] | None = None
        """The tasks that the statistics are of; None: all."""
        self._losses_of: tuple[bool, ...] | None = None
        """The tasks that the last losses are of; None: all."""
        self.warnings = TrainingWarnings()

    @property
    def weights(self) -> Tensor:
        """A copy of the weights last used, ``(T,)``."""
        held = None if self._held is None else self._held.weights
        return (self.last_weights if held is None else held).clone()

    # Called by a training loop.

    @not_compiled(COMPILED)
    def forward(self, losses: Losses) -> Tensor:
        """Return the weighted sum of ``losses``: T scalars, a ``{task: loss}`` dict, or a tensor of shape ``(T,)``.

        A dict may leave out tasks: they take no part in this step, and their weights stay as they are.

        Raises:
            TypeError, ValueError: the losses are not what this balancer was made for.
            FloatingPointError: with ``check_finite``, a loss is not finite.
            ForkError: the losses do not use the fork as they must: see `GradientBalancer`.
        """
        transformed = in_transform()
        learning = self.training and torch.is_grad_enabled() and not transformed
        in_order, given = self._read(losses, learning)
        turn = self._turn_of(given) if learning and self.takes_turns else None
        if turn is not None:
            given = tuple(i == turn for i in range(self.num_tasks))
            in_order = [loss if on else None for loss, on in zip(in_order, given, strict=True)]
        stacked = self._stacked(in_order, given) if learning else stack(in_order)
        detached = stacked.detach()
        if transformed:
            return self._in_transform(stacked, detached, given)
        if not self.training:
            return torch.dot(stacked, self.weights.to(stacked))
        self.fit(detached)
        if self.check_finite and not (learning and self._learns and self._ranks.size > 1):
            # Where ranks learn together, one that raised alone would leave the others waiting. So an update raises on
            # all of them; where none follows, the mean over the ranks is looked at here.
            together = learning and self._ranks.size > 1
            self._check_finite(self._mean_losses(detached, given)[0] if together else detached)
        if (held := self._held) is None:
            weights, valid = self._weights_of_step(in_order, detached, given, learning)
        else:
            learning, held.begun = learning and not held.begun, held.begun or learning
            weights, valid = self._weights_held(held, in_order, detached, given, learning), None
        total = torch.dot(stacked, weights.to(stacked.dtype))
        if learning:
            self._begin_step(stacked, in_order, Call(detached, weights, given, valid, turn))
        return total

    @not_compiled(COMPILED)
    def after_step(self, losses: Losses) -> None:
        """Look at the same batch's losses again, after the optimiser's step; for methods that ``looks_again``.

        In eval mode it does nothing.

        Raises:
            TypeError, ValueError: the losses do not fit this balancer, or are of other tasks than in the last pass.
            RuntimeError: there was no pass in training mode since the last call.
            FloatingPointError: with ``check_finite``, a loss is not valid.
        """
        in_order, given = self._read(losses, learning=False)
        if not (self.looks_again and self.training):
            return
        self._expects_look = False
        if self._losses_before_step is None:
            raise RuntimeError("after_step needs a pass before it: call the balancer in training mode, then backward")
        before, given_before = self._losses_before_step
        if given != given_before:
            raise ValueError(
                "after_step got the losses of other tasks than the call before it: pass the same tasks' losses, of the "
                "same batch"
            )
        self._losses_before_step = None
        both = torch.stack([each.to(self.last_weights.dtype) for each in (before, stack(in_order).detach())])
        if self._ranks.size > 1:
            both, given = self._mean_losses(both, given)
        also_valid, self._step_valid = self._step_valid, None
        self._learn(Read(both[1], self.last_weights, losses_before=both[0]), given, also_valid)

    @not_compiled(COMPILED)
    def close_window(self) -> None:
        """Update from the backward passes since the last update, where they are fewer than ``accumulate``.

        Under ``torch.distributed``, to be called on all ranks, after as many passes on each.
        """
        if self._window.count:
            self._close(None)

    def _close(self, step_made: Tensor | None) -> None:
        """Update from the window; ``step_made`` is a bool scalar that says whether its step was made, or None."""
        window, given = self._window, self._window.given
        if self.when == "forward":
            window.clear()
            return
        try:
            if self._ranks.size > 1:
                window.add_other_ranks(self._ranks)
                given = None if given is None else self._ranks.union(given, self.tasks)
            read = window.read()
        finally:
            window.clear()
        self._learn(read, given, step_made)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """End each accumulation window at the optimiser's step, after ``accumulate`` passes or fewer.

        A window whose step a GradScaler skipped is dropped.

        Raises:
            TypeError: ``optimizer`` is not an optimiser.
        """
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer is of type {type(optimizer).__name__}; expected an optimiser of torch.optim")
        optimizer = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps them
        self._network_optimizer = weakref.ref(optimizer)
        if self._followed is not None:
            self._followed.remove()
        balancer = weakref.ref(self)

        @not_compiled(COMPILED)
        def after_step(stepped: torch.optim.Optimizer, *_: object) -> None:
            one = balancer()
            if one is not None and one.training and one._window.count:
                # A GradScaler tells a fused optimiser, which decides on the device whether it makes the step.
                overflow = getattr(stepped, "found_inf", None)
                one._close(None if overflow is None else overflow == 0)

        self._followed = optimizer.register_step_post_hook(after_step)

    def second_batch(self, closure: Callable[[], Losses]) -> None:
        """Give a method that learns from a second batch the function that computes its losses.

        The closure draws another batch, such as the next one of a validation loader, and returns the losses of the
        same tasks with the model as it is when it is called. In training, each call of the balancer that begins an
        accumulation window calls it: once, or as often as the method says::

            balancer.second_batch(lambda: losses_of(model, next(validation)))

        A balancer that is copied or unpickled does not have the closure: give it again. Under DistributedDataParallel,
        compute the losses with the wrapped model, ``model.module``: DDP expects one forward pass per backward pass.
        Running statistics, such as batch norm's, take the batch in if the model is in train mode.

        Raises:
            TypeError: the method needs no second batch, or ``closure`` can't be called.
        """
        if not self.needs_second_batch:
            raise TypeError(f"{type(self).__name__} learns from no second batch")
        if not callable(closure):
            raise TypeError(f"closure is of type {type(closure).__name__}; expected a function that returns losses")
        self._closure = closure

    def scalars(self) -> dict[str, float]:
        """Return what the last step showed, by names for a logger, such as ``weight/depth``.

        These are each task's ``weight``, ``loss`` and, where they were measured, ``gradient_norm``; the ``cosine`` of
        two tasks' gradients, 0 if one of them is zero; and what else the method has in `statistics`. Tasks without a
        name are numbered from 0. Waits for the device, once.
        """
        shown = self.statistics | {"weights": self.weights}
        return scalars(shown, self.tasks, self.num_tasks, self._told_of, self._losses_of)

    @contextmanager
    def held(self) -> Iterator[Self]:
        r"""Hold the weights for several evaluations of one step, such as a closure's (L-BFGS) or SAM's two passes.

        Within the block, value and gradient are those of :math:`\sum_i \lambda_i L_i` with the weights shown before
        it, heads included. If weights follow from the losses of a call, a new balancer's first block has those of its
        first evaluation. The balancer learns from the first evaluation; what it learnt applies after the block::

            with balancer.held():
                optimizer.step(closure)

        Raises:
            TypeError: the method replaces gradients by something other than their weighted sum.
        """
        if self.replaces_gradients:
            raise TypeError(f"{type(self).__name__} can't hold its weights: it replaces gradients, not their weights")
        if self._held is not None:
            raise RuntimeError("held() is already in use: leave the first block before another")
        held = self._held = _Held()
        try:
            yield self
        finally:
            self._held = None
            if held.new is None and held.begun and not self.combines and not self._weighs_by_losses:  # it reads none
                held.new, _ = self._weighed(self.last_weights, None, False)
            if held.new is not None:
                self.last_weights.copy_(held.new)

    def not_capturable(self) -> str | None:
        """Why a step with this balancer can't be captured in a CUDA graph; None if it can: see `CapturedStep`."""
        if self.check_finite:
            return "with check_finite it waits for the device"
        if self.accumulate > 1:
            return f"with accumulate={self.accumulate} its steps are not all alike"
        if self.random:
            return "it draws random numbers, which the host seeds anew for each step"
        if self.looks_again:
            return "it looks at the losses again after the optimiser's step"
        if self.needs_second_batch:
            return "it calls a function that draws another batch"
        if self.takes_turns:
            return "it takes the tasks in turn, so that its steps are not all alike"
        return None

    def join(self, other: "LossBalancer") -> None:
        """Know the same tasks and learn on the same ranks as another balancer, whose weighting this one becomes.

        Raises:
            ValueError: the two were made for other tasks.
        """
        mine, its = self._reader, other._reader
        if mine.num_tasks != its.num_tasks or (mine.names and its.names and mine.names != its.names):
            raise ValueError(
                f"weighting is for other tasks: {type(self).__name__} was made for {mine.in_words()}, but "
                f"{type(other).__name__} for {its.in_words()}"
            )
        its.names = its.names or mine.names
        self._reader, self._ranks = its, other._ranks

    # Before the backward pass.

    def _read(self, losses: Losses, learning: bool) -> tuple[Entries, tuple[bool, ...] | None]:
        """Return the losses in task order, and which tasks were given; None if all were, here and on other ranks."""
        in_order, given = self._reader.read(losses, learning)
        if given is not None and all(given) and self._ranks.size == 1:
            given = None
        return in_order, given

    def _turn_of(self, given: tuple[bool, ...] | None) -> int | None:
        """Return the task that a step with the losses of all tasks is to train on, of a method that takes turns.

        All evaluations in a block of `held` are of one task. None: tasks were left out, so that all given take part.
        """
        if given is not None and not all(given):
            return None
        if self._held is None:
            return self.turn
        if self._held.turn is None:
            self._held.turn = self.turn
        return self._held.turn

    def _weights_of_step(
        self, losses: Entries, values: Tensor, given: tuple[bool, ...] | None, learning: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the weights ``(T,)`` of a call outside a block of `held`, and show them unless the method combines.

        Args:
            losses: those of the call, with their graph.
            values: ``(T,)``: the same, detached.
            given: for each task whether it has a loss; None if all have.
            learning: whether the balancer is to learn from the call.

        Returns:
            The weights, and a bool scalar that says whether they are valid; None if they don't depend on the losses.
        """
        self._is_new = False
        ahead = self._ahead = learn_ahead(self, losses, values, given) if learning else None
        if ahead is not None:
            weights, valid = ahead.weights, ahead.valid
        else:
            weights, valid = self._weighed(values.to(self.last_weights.dtype), given, learning)
        if not self.combines:
            weights = self.last_weights.copy_(weights).clone()  # autograd keeps one, a user has the other
        return weights, valid

    def _weights_held(
        self, held: "_Held", losses: Entries, values: Tensor, given: tuple[bool, ...] | None, learning: bool
    ) -> Tensor:
        """Return the weights ``(T,)`` of an evaluation in a block of `held`, and learn those that follow the block.

        The arguments after the block are those of `_weights_of_step`.
        """
        is_first, self._is_new = self._is_new, self._is_new and not learning
        ahead = self._ahead = learn_ahead(self, losses, values, given) if learning else None
        weights = self.weights
        if ahead is not None:
            held.new = ahead.weights
        elif learning and self._weighs_by_losses and not self.combines:
            held.new, _ = self._weighed(values.to(weights.dtype), given, learning)
            weights = held.new.clone() if is_first and held.weights is None else weights
        held.weights = weights
        return weights

    def _begin_step(self, stacked: Tensor, losses: Entries, call: Call) -> None:
        """Note the losses of a call to learn from, and hook its backward pass; ``stacked`` is one tensor of them."""
        self.statistics["losses"], self._losses_of = call.losses, call.given
        if self.looks_again:
            if self._losses_before_step is not None:
                self._warn_of_no_second_look()
            self._losses_before_step = call.losses, call.given
        if self._update_takes is None and not self.combines and self.loss_domain:
            index = self.index(call.given)
            self.warnings.look(self, call.losses if index is None else call.losses[index], index)
        if stacked.grad_fn is not None:
            self._watch(stacked.grad_fn, losses, call)

    @property
    def _learns(self) -> bool:
        return self._update_takes is not None and self.when != "after_step"

    def _in_transform(self, stacked: Tensor, losses: Tensor, given: tuple[bool, ...] | None) -> Tensor:
        """Return the total under `torch.func` or in forward mode, where nothing is recorded."""
        weights = self.last_weights
        if self.training:
            if self.reads in ("norms", "gramian", "gradients") and torch.is_grad_enabled():
                raise RuntimeError(
                    f"{type(self).__name__} measures in a backward pass, and functional transforms (torch.func) and "
                    f"forward mode make none: call it outside of them, or in eval mode, which uses its last weights"
                )
            weights, _ = self._weighed(losses.to(weights.dtype), given, learning=False)
        return torch.dot(stacked, weights.to(stacked.dtype))

    def _weighed(self, losses: Tensor, given: tuple[bool, ...] | None, learning: bool) -> tuple[Tensor, Tensor | None]:
        """Return the weights of a step, ``(T,)``: as they were for tasks left out, and where losses can't be read.

        Returns:
            The weights, and a bool scalar that says whether the losses could be read; None if no weight depends on
            them.
        """
        if not self._weighs_by_losses:
            if self.combines and self._weigh_takes is None:
                return torch.ones_like(self.last_weights), None
            if self._weigh_takes is None:
                raise NotImplementedError(f"{type(self).__name__} must override weigh")
            return self._weights_by(), None
        if learning and self._ranks.size > 1:
            losses, given = self._mean_losses(losses, given)
        index = self.index(given)
        losses = losses if index is None else losses[index]
        weights = self._weights_by(index, losses=losses)
        valid = self._valid(losses, weights)
        if learning and self._update_takes is None and not self.combines:
            self.warnings.tell(self, losses, index, valid)
        before = torch.ones_like(self.last_weights) if self.combines else self.last_weights
        if index is not None:
            weights = before.index_copy(0, index, weights)
        return torch.where(valid, weights, before), valid

    def _mean_losses(self, losses: Tensor, given: tuple[bool, ...] | None) -> tuple[Tensor, tuple[bool, ...] | None]:
        """Return each task's mean losses ``(..., T)`` over the ranks that have it, and which tasks any rank has."""
        count = self.mask(given).to(losses.dtype)
        losses, count = self._ranks.sum([losses * count, count])
        given = None if given is None else self._ranks.union(given, self.tasks)
        return losses / count.clamp(min=1.0), None if given is None or all(given) else given

    def _check_finite(self, losses: Tensor) -> None:
        if not losses.isfinite().all():
            bad = [self._reader.label(i) for i in losses.isfinite().logical_not().nonzero().flatten().tolist()]
            raise FloatingPointError(f"the loss of {', '.join(bad)} is not finite")

    def _watch(self, node: Node, losses: Entries, call: Call) -> None:
        """Have the backward pass measured, if the method learns from it; ``node`` is that of the stacked losses."""
        if self._learns:
            step = Step(self, call)
            step.commit, self._ahead = None if self._ahead is None else self._ahead.commit, None
            step.watch(node, losses)
        elif self._expects_look or call.turn is not None:
            CountedStep(self, call).watch(node, losses)

    # After the backward pass.

    def _finish(self, step: Step) -> None:
        """Take in a backward pass that has ended."""
        if self._followed is not None and self._window.count == self.accumulate:
            self._window.clear()  # the optimiser skipped its step
            self._warn_of_dropped(
                "the optimiser that this balancer follows made no step after any of the last {} accumulation windows, "
                "so that nothing was learnt: follow the optimiser whose step() is called, and give accumulate the "
                "number of backward passes to each of its steps"
            )
        self._window.add(step, self)
        if self._followed is None and self._window.count == self.accumulate:
            self.close_window()

    def _warn_of_dropped(self, message: str) -> None:
        self._dropped += 1
        if self._dropped == DROPPED:
            warn(f"{self.name}: {message.format(DROPPED)}")

    def _warn_of_no_second_look(self) -> None:
        """Warn that no `after_step` followed the last pass: at once, unless there has been an `after_step` before."""
        if not self._expects_look:
            self._warn_of_dropped("none of the last {} passes was followed by after_step, from which it learns")
        elif self._window.passes >= self.accumulate:
            self._expects_look, self._dropped = False, DROPPED  # one warning is enough
            warn(
                f"{self.name} learns in after_step, which was not called after the last step, so that its weights stay "
                f"as they are. After optimizer.step(), with the losses of the same batch computed anew, add:  "
                f"with torch.no_grad(): balancer.after_step(losses)"
            )

    def _stacked(self, losses: Entries, given: tuple[bool, ...] | None) -> Tensor:
        """Return the losses as one tensor, whose backward pass is learnt from."""
        return stack(losses)

    def _learn(self, read: Read, given: tuple[bool, ...] | None, also_valid: Tensor | None = None) -> None:
        """Update the state from ``read``, which is of all T tasks; those of ``given`` took part. See `_updated`."""
        self._dropped = 0
        index = self._select(read, given)
        arguments = self._arguments(self._update_takes, index, read=read)
        with own_precision(self.last_weights):
            if self.compiles and index is None:
                valid, new, statistics = self.compiled("_new_state")(read, arguments, also_valid)
                self.write(new)
            else:
                valid, result = self._updated(read, arguments, index, also_valid)
                self._commit(result, read, index, valid)
                statistics = result.statistics
        self._count_draws()
        self._show_statistics(statistics, given)
        given_at = self.index(given)
        losses = read.losses[given_at] if self.sees_all_tasks and given_at is not None else read.losses
        self._after_update(valid, losses, given_at)

    def _show_statistics(self, statistics: State, given: tuple[bool, ...] | None) -> None:
        """Show the statistics of the tasks that took part."""
        self.statistics.update(statistics)
        self._told_of = None if self.sees_all_tasks else given

    # Before a step, of a method that learns then: see `before_step`.

    @property
    def begins_window(self) -> bool:
        """Whether the next call in training begins a window that is learnt from, of a method that does so ahead."""
        return self.measures_now and not 0 < self._window.count < self.accumulate

    @property
    def measures_now(self) -> bool:
        """Whether a window that begins now is learnt from: see ``update_every``."""
        return self.takes_turns or self.turn == 0

    def look(self, read: Read, losses: Entries, given: tuple[bool, ...] | None) -> None:
        """Put into ``read``, which has the losses of all T tasks, what else the method learns from before a step.

        Args:
            read: to be added to.
            losses: those of the step, with their graph.
            given: for each task whether this rank has its loss; None if it has all.
        """
        values = stack(second_losses(self, given, learning=False)).detach().to(read.losses.dtype)
        read.second_losses = values if self._ranks.size == 1 else self._mean_losses(values, given)[0]

    # At the end of an update.

    def _record(self, weights: Tensor) -> None:
        """Show the weights, ``(T,)``, that a combining method used."""
        if self._held is None:
            self.last_weights.copy_(weights)
        else:
            self._held.new = weights

    def _after_update(self, valid: Tensor, losses: Tensor, index: Tensor | None) -> None:
        if self.check_finite:
            self._check_valid(valid)
        self.warnings.tell(self, losses, index, valid)
        self.warnings.look(self, losses, index)

    # Copies, and state that is set from outside.

    def __getstate__(self) -> dict[str, Any]:
        # The optimiser calls the original alone, and the closure computes the losses of its model.
        lost: dict[str, Any] = {
            "_followed": None,
            "_network_optimizer": None,
            "_closure": None,
            "_ahead": None,
            "_held": None,  # no block ends for the copy
        }
        return super().__getstate__() | lost

    def state_changed(self) -> None:
        self._window.clear()
        self._losses_before_step = self._ahead = None
        self._is_new = False
        self._loads += 1
        if self.takes_turns:
            self.turn %= self.num_tasks

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self._is_new = True


class _Held:
    """The weights of a block of `LossBalancer.held`."""

    weights: Tensor | None = None
    """Those of all its evaluations; None before the first."""
    begun = False
    """Whether there was an evaluation to learn from."""
    new: Tensor | None = None
    """The weights that apply after the block, where they are known."""
    turn: int | None = None
    """The task that its evaluations train on, of a method that takes turns; None before the first."""
