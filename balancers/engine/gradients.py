"""Balancers that read the tasks' gradients: where these are measured, and what a method makes of them.

At a fork, they are measured during the one backward pass. Without a fork, each loss is differentiated with respect to
the shared parameters, before the weighted sum is.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from .base import REQUIRED, LossBalancer, Reads
from .declared import option
from .fork import Fork, Reader
from .fork_audit import audit
from .fork_error import ForkError
from .host_flag import Later
from .loss_input import Entries, Losses, LossReader
from .prior_weighting import Scaled, adopt, keep, scale, teach
from .reach import reaching
from .readings import NOTHING, Read, Result, State
from .shared_parameters import SharedParameters
from .step import Call, CombiningStep, HeldStep, MeasuringStep, NormsStep, Step
from .torch_internals import COMPILED, foreach_norm, not_compiled

Wrt = Literal["features", "layer", "parameters"]
SETTLED_CHECKS = 10
"""Number of updates between two looks of ranks for whether the method has stopped learning."""


class GradientBalancer(LossBalancer):
    r"""A balancer that reads the tasks' gradients.

    A method that reads their *norms* learns from them for the next step. One that reads their *Gramian*, or the
    *gradients* themselves, decides in each backward pass what that pass's gradients are multiplied by: at a fork, the
    heads get the gradients of the losses as they are, and the trunk :math:`\sum_i \lambda_i \nabla L_i`. Without a fork
    all parameters get the latter. The scalar that such a balancer returns is the plain sum of the losses, and its
    backward pass is not that of the sum. ``accumulate`` makes no difference: each pass is combined on its own.

    What is measured at a fork is all that comes through it: a penalty on the outputs, added to the returned loss,
    counts with the tasks whose heads it goes through.

    Besides `update`, a method may keep state of the size of the parameters (`tracks`). It then writes
    ``track(gradient, tracked, state)``, which returns the new state of one parameter, ``(T', ...)``, and a tensor; it
    may overwrite ``gradient``. If the method `sees_all_tasks`, ``state["present"]``, ``(T,)``, is 1 for the tasks that
    take part and 0 for the others, whose gradients are zero. The
    sum of these tensors over all parameters is ``read.tracked``. With `replaces_gradients` the parameters receive the
    weighted sum of the tracked values in place of that of the gradients.

    Args:
        fork: the model's `Fork`. None where the tasks share parameters but no features; then ``wrt`` names them.
        wrt: what the gradients are taken with respect to. None: the features at the fork, which costs next to nothing.
            A module or parameters upstream of the fork: all parameters given, biases too. If a method that combines
            gets all that are trained upstream of the fork, the tasks' gradients go through the trunk one by one, and
            their sum does not. With ``fork=None``: any shared parameters, at the price of one backward pass a task.
        tasks: the tasks' names, or without a fork their number.
        update_every: k, to measure and to update the weights in every k-th window only. The steps between cost next to
            nothing.
        exact: form each gradient whose norm or inner product is read. Otherwise norms at a layer are taken without it
            where that is less arithmetic: they are then off by up to 1e-7 of what a gradient's terms, one for each row,
            measure together.
        weighting: for a method that combines: a balancer whose weights multiply the losses before their gradients are
            combined, such as `UncertaintyWeighting`. One that reads norms learns from those of the gradients that are
            combined, wherever it was made to measure. One that reads inner products, such as `UnitNorm`, scales the
            gradients within the pass, and leaves the losses of the heads as they are.
        averaging: :math:`\alpha`, 0 to 1, for a method that combines by weights: use the moving average
            :math:`\alpha \lambda + (1 - \alpha) \hat\lambda` of its weights, which starts at the first of them
            (CR-MOGM: Zhou et al., "On the Convergence of Stochastic Multi-Objective Gradient Manipulation and Beyond",
            NeurIPS 2022). There 0.9 and above; 0 is the method itself.
        accumulate, check_finite, compile, process_group, options: see `LossBalancer`.

    Raises:
        TypeError: ``fork`` is missing or no `Fork`, ``wrt`` no module or parameters, or ``weighting`` no balancer.
        ValueError: ``wrt`` has nothing to train, ``tasks`` are not as many as the fork's, neither fork nor tasks say
            how many there are, or ``weighting`` or ``averaging`` does not fit the method.
        ForkError: on the first step, a loss reaches shared parameters other than through its alias of the features; on
            any step, nothing was measured.

    Example::

        class UnitGradients(GradientBalancer):
            name, reads = "unit-gradients", "gramian"

            def solve(self, gramian: Tensor) -> Tensor:
                return gramian.diagonal(dim1=-2, dim2=-1).rsqrt()
    """

    reads: ClassVar[Reads] = "norms"
    default_wrt: ClassVar[Wrt] = "features"
    """The place that the method's paper measures: features at the fork, last shared layer, or shared parameters."""
    undefined_for: ClassVar[Mapping[Wrt, str]] = MappingProxyType({})
    """The kinds of ``wrt`` that the method is not defined for, and why."""
    tracks: ClassVar[str] = ""
    """The name of the state of the size of the parameters, which starts at zero, of a method that writes `track`."""
    track: Callable[[Tensor, Tensor, State], tuple[Tensor, Tensor]]
    """Returns the new state of one parameter, and what is added up in ``read.tracked``; see above."""
    per_parameter: ClassVar[str] = ""
    """The name of state that has a number for each task and each parameter tensor, ``(T, number of tensors)``."""

    update_every: int = option(1, at_least=1, whole=True)
    exact: bool = option(False)
    weighting: LossBalancer | None = option(None, free=True, combining=True)
    averaging: float = option(0.0, at_least=0, at_most=1, combining=True)
    fork: Fork | None
    _shared: SharedParameters | None

    def __init__(
        self,
        fork: Fork | None = REQUIRED,
        wrt: nn.Module | nn.Parameter | Iterable[nn.Parameter] | None = None,
        *,
        tasks: int | Sequence[str] | None = None,
        compile: bool = False,
        **options: object,
    ) -> None:
        super().__init__(_tasks_of(type(self), fork, tasks), compile=compile, **options)
        if not self.combines:
            self.weighting, self.averaging = None, 0.0
        if fork is None and wrt is None:
            raise ValueError("without a fork there are no features to measure at: give the shared parameters as wrt")
        kind: Wrt = "parameters" if fork is None else "features" if wrt is None else "layer"
        self.needs_whole_trunk = (
            kind == "layer" and kind in self.undefined_for and "parameters" not in self.undefined_for
        )
        """Whether, with a fork, ``wrt`` must be all parameters upstream of it."""
        if kind in self.undefined_for and not self.needs_whole_trunk:
            raise ValueError(f"{type(self).__name__} {_PLACES[kind]}: {self.undefined_for[kind]}")
        self.__dict__["fork"] = fork  # past nn.Module: it is the model's, not the balancer's, to train or to save
        self.__dict__["_shared"] = None if wrt is None else SharedParameters(wrt)
        self.recomputes: bool | None = None
        """Whether losses are differentiated in one pass, by way of a checkpoint; None before the first step."""
        self.unmeasured: set[int] = set()
        """Tasks that were given for the first time, of which it is not known whether they depend on the parameters."""
        self.hooks: list[torch.utils.hooks.RemovableHandle] = []
        """Hooks of a backward pass under way."""
        self.reached: set[int] = set()
        """The parameters, by place, on which losses depended in the steps so far."""
        self._audited: set[int] = set()
        self._measures_itself = True
        """False if this is the weighting of another balancer, which measures for it."""
        self._settled: Later | None = None
        self._asked: Later | None = None
        self._asks = 0
        if (self.tracks or self.per_parameter) and self.update_every > 1:
            raise ValueError(f"update_every is {self.update_every}; expected 1: every step changes what is tracked")
        self._tracked = self._to_track() if self.tracks or self.per_parameter else []
        if self.per_parameter:
            self.declare(self.per_parameter, 0.0, (self.num_tasks, len(self._tracked)))
        for k, parameter in enumerate((self.measured_parameters() or ()) if self.tracks else ()):
            parts = (2,) if parameter.is_complex() else ()
            self.declare(f"{self.tracks}_{k}", 0.0, (self.num_tasks, *((*parameter.shape, *parts) or (1,))))
        if self.averaging > 0:
            if self.replaces_gradients and not self.tracks:
                raise ValueError(
                    f"averaging is {self.averaging}; expected 0: {type(self).__name__} combines by no weights"
                )
            self.declare("average")
            self.declare("has_average")
        self._attach()
        if self.weighting is not None:
            adopt(self, self.weighting)
            self.looks_again = self._expects_look = self.weighting.looks_again
            self.heads = "plain" if self.weighting.combines else "weighted"

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
        reason = None if self.weighting is None else self.weighting.not_capturable()
        return super().not_capturable() if reason is None else f"of its weighting: {reason}"

    @not_compiled(COMPILED)
    def after_step(self, losses: Losses) -> None:
        """Have the weighting look at the losses after the optimiser's step, if it needs to: see `LossBalancer`."""
        if self.weighting is None:
            super().after_step(losses)
        else:
            self._before, self._dropped, self._expects_look = None, 0, False
            self.weighting.after_step(losses)

    def fit(self, losses: Tensor) -> None:
        super().fit(losses)
        if self.weighting is not None:
            self.weighting.fit(losses)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.weighting is not None:
            self.weighting.reset_parameters()

    @property
    def weighs(self) -> bool:
        """Whether losses are multiplied before the backward pass."""
        return bool(self._weigh_takes) or (self.weighting is not None and not self.weighting.combines)

    def _weighed(self, losses: Tensor, given: tuple[bool, ...] | None, learning: bool) -> tuple[Tensor, Tensor | None]:
        before = self.weighting
        if before is None or before.combines:
            return super()._weighed(losses, given, learning)
        weights, valid = before._weighed(losses, given, learning)
        if learning and before.looks_again:
            before._before = losses, given
        if self.training:
            before.last_weights.copy_(weights)
        return weights.clone(), valid  # which autograd keeps

    # When it measures.

    @property
    def _learns(self) -> bool:
        return True

    def measured_parameters(self) -> tuple[nn.Parameter, ...] | None:
        """Return the parameters that gradients are taken of, as this step's graph has them; None: the features."""
        return self._shared.now() if isinstance(self._shared, SharedParameters) else None

    @property
    def lists_parameters(self) -> bool:
        """Whether ``wrt`` lists parameters, not their module."""
        return self._shared is not None and self._shared.are_listed

    def is_sharded(self) -> bool:
        """Return whether FSDP shards the parameters that gradients are taken of."""
        return self._shared is not None and self._shared.is_sharded

    def _attach(self) -> None:
        if self.fork is not None and self._measures_itself:
            self._fork_reader = Reader(self.combines, weakref.WeakMethod(self._gated_parameters))
            self.fork.reading.attach(self._fork_reader)
            weakref.finalize(self, self.fork.reading.detach, self._fork_reader)

    def _gated_parameters(self) -> tuple[nn.Parameter, ...] | None:
        """Return the parameters whose gradients a step makes itself, if the trunk has no others; None: it does not."""
        return None if self.is_sharded() else self.measured_parameters()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_fork_reader": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._attach()
        self._want()

    def _want(self) -> None:
        """Tell the fork whether the next step is measured."""
        if self.fork is not None and self._measures_itself:
            self.fork.reading.want(self._fork_reader, self.combines or self._measures_next())

    def _measures_next(self) -> bool:
        if self._settles and self._settled is None:
            self._ask_if_settled()
        on = self.takes_turns or self.turn == 0
        return on and not (self._settled is not None and self._settled.is_true())

    def state_changed(self) -> None:
        super().state_changed()
        self.turn %= self.num_tasks if self.takes_turns else self.update_every
        self._settled = self._asked = None
        self._want()

    def _watch(self, node: Node, losses: Entries, call: Call) -> None:
        measures = self._measures_next()
        step: Step
        if self._held is not None and self.combines:
            if measures:
                own, valid = self._weighed(call.losses.to(self.last_weights.dtype), call.given, True)
                step = HeldStep(self, call._replace(valid=valid), own)
            else:
                step = Step(self, call)
        elif self.combines:
            step = CombiningStep(self, call, measures)
        elif measures:
            step = NormsStep(self, call)
        elif self.turn == 0:  # it has settled
            self._want()
            return
        else:
            step = Step(self, call)  # between the steps of update_every, passes are counted
        if measures and len(self._audited) < self.num_tasks and not _given(losses) <= self._audited:
            self._audit(losses)
        step.watch(node, losses)

    def _audit(self, losses: Entries) -> None:
        if self.fork is not None:
            audit(self.fork, losses, self.measured_parameters() or (), self._reader.label)
        else:
            self.unmeasured |= _given(losses) - self._audited
        self._audited |= _given(losses)

    def _finish(self, step: Step) -> None:
        if self.combines:
            self._next_turn()
        else:
            super()._finish(step)

    def _close(self, finite: Tensor | None) -> None:
        if self.turn == 0:
            super()._close(finite)
        else:
            self._window.clear()
        self._next_turn()

    def _next_turn(self) -> None:
        if self.update_every > 1:
            self.turn = (self.turn + 1) % self.update_every
        elif self._took_turn:
            self.turn, self._took_turn = (self.turn + 1) % self.num_tasks, False
        self._want()

    def _after_update(self, valid: Tensor, losses: Tensor, index: Tensor | None) -> None:
        super()._after_update(valid, losses, index)
        if self._settles:
            self._ask_if_settled()

    def _ask_if_settled(self) -> None:
        settled = self.settled(self.state())
        assert settled is not None
        self._asks += 1
        if self._ranks.size == 1:
            self._settled = Later(settled)
        elif self._settled is None or self._asks % SETTLED_CHECKS == 0:
            # A rank that stopped before another would leave it waiting. So all go by what they asked some updates ago,
            # which has arrived by now.
            self._settled, self._asked = self._asked or Later(settled), Later(settled)
            self._settled.wait()

    # Combine gradients.

    def unhook(self) -> None:
        """Remove the hooks of a backward pass."""
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def join(self, other: LossBalancer) -> None:
        super().join(other)
        self._measures_itself = False
        if self.fork is not None:
            self.fork.reading.detach(self._fork_reader)

    def last_shares(self, step: CombiningStep) -> Tensor:
        """Return what gradients that have the step's weights already are multiplied by, to have the last weights."""
        if self.weighting is not None and not self.weighting.combines:
            losses, given = step.losses.to(self.last_weights.dtype), step.given
            if self._ranks.size > 1:
                losses, given = self._mean_losses(losses, given)
            step.commit = partial(teach, self.weighting, Read(losses, step.weights), given, None)
        return _ratio(self.last_weights, step.weights)

    def _updated(
        self, read: Read, arguments: Mapping[str, Any], index: Tensor | None, finite: Tensor | None = None
    ) -> tuple[Tensor, Result]:
        valid, result = super()._updated(read, arguments, index, finite)
        if self.averaging > 0 and result.weights is not None:
            state = self.state(index)
            average = torch.lerp(result.weights, state["average"], self.averaging)
            weights = torch.where(state["has_average"] > 0, average, result.weights)
            kept = {"average": weights, "has_average": torch.ones_like(weights)}
            result = result._replace(weights=weights, state={**result.state, **kept})
        return valid, result

    def decide(
        self, step: MeasuringStep, columns: list[Tensor], gramian: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor] | None]:
        """Have the method decide on this pass's gradients, and write its state.

        Args:
            step: the step.
            columns: of each tensor of features or parameters, the gradients of the losses times ``step.factors``,
                ``(T, ...)``. They are overwritten.
            gramian: their inner products, ``(T, T)``, where these were measured in their place.

        Returns:
            What these gradients are multiplied by, ``(T,)``; and what takes the place of their weighted sums, or at
            parameters is added to their plain sums, where that is not it.
        """
        shapes = [column.shape[1:] for column in columns]
        # Methods flatten the gradients of each parameter, also those of a scalar.
        columns[:] = [column.unsqueeze(-1) if column.ndim == 1 else column for column in columns]
        told, columns, gramian = self._told(step, columns, gramian)
        index, factor, held = told.chosen, told.factor, told.held
        seen = self._seen(step, told, columns, gramian)
        read, tracked, by = seen.read, seen.tracked, None if seen.scaled is None else seen.scaled.weights
        finite = seen.finite if step.valid is None else seen.finite & step.valid
        update = self.compiled("_updated") if self.compiles and index is None else self._updated
        valid, result = update(read, self._arguments(self._update_takes, index, read=read), index, finite)
        assert result.weights is not None
        shares = torch.where(valid, result.weights, held)
        replaced = self._directions(step, columns, result, factor)
        if tracked is not None and self.replaces_gradients:
            replaced = tracked.corrections(shares * factor, valid)
        if by is not None:
            shares = torch.where(valid, shares * by, held)
        if replaced is not None:
            replaced = [each.reshape(shape) for each, shape in zip(replaced, shapes, strict=True)]
        weights = torch.where(valid, result.weights * told.used, told.shown) if self.weighs else shares
        if index is not None:
            weights = self.last_weights.index_copy(0, index, weights)
            shares = torch.zeros_like(weights).index_copy(0, index, shares)
        if self.check_finite:
            self._check_valid(valid)

        def end() -> None:
            self._commit(result, read, index, valid)
            self._count_draws()
            self._tell(result.statistics, told.given)
            if tracked is not None:
                self.commit({f"{self.tracks}_{k}": new for k, new in enumerate(tracked.new)}, index, valid)
            self._record(weights)
            if self.weighting is not None:
                self._end_weighting(self.weighting, step, told, seen, valid)
            self._after_update(valid, read.losses, index)

        step.commit = end
        return shares, replaced

    def _told(
        self, step: MeasuringStep, columns: list[Tensor], gramian: Tensor | None
    ) -> tuple["_Told", list[Tensor], Tensor | None]:
        """Return what is known of a pass beside its gradients, and those of the tasks that take part on any rank."""
        shown = self.last_weights
        losses, used, factors = (each.to(shown.dtype) for each in (step.losses, step.weights, step.factors))
        given, losses, columns = self._of_all_ranks(step, losses, columns)
        index, rest = None if self.sees_all_tasks else self.index(given), cast(Tensor | float, 0.0)
        if index is not None:
            columns = [column[index] for column in columns]
            gramian = None if gramian is None else gramian[index][:, index]
            rest = shown.index_fill(0, index, 0.0).sum()
            factors, used, shown = factors[index], used[index], shown[index]
        # Losses that were not multiplied have the factor of the whole pass; those that were, its multiple.
        factor, held = factors[0], shown
        if self._weigh_takes:
            factor, held = factors[0] / used[0], shown / used
        elif self.weighs:  # by a weighting, which may leave tasks without weight
            factor, held = torch.dot(factors, used) / torch.dot(used, used), _ratio(shown, used)
        return _Told(given, index, losses, used, rest, shown, factor, held), columns, gramian

    def _seen(self, step: MeasuringStep, told: "_Told", columns: list[Tensor], gramian: Tensor | None) -> "_Seen":
        """Return the gradients of a pass as the method reads them, after its weighting if it has one."""
        before, index, used = self.weighting, told.chosen, told.used
        read = Read(told.losses if index is None else told.losses[index], used, told.rest)
        if self.sees_all_tasks and told.given is not None:
            read.present = self.mask(told.given)
        own = self._ranks.size > 1 and step.wrt is None  # a rank's features are variables of its own
        finite, scaled, tracked = list[Tensor](), cast(Scaled | None, None), None
        if self.reads == "gramian" or (before is not None and before.reads in ("norms", "gramian")):
            if gramian is None:
                gramian = reduce(torch.add, [_gramian(column.to(used.dtype)) for column in columns])
            finite.append(self._read_gramian(read, gramian, told.factor, own))
        if before is not None and before.reads == "norms":
            read.norms = read.gramian.diagonal().clamp(min=0).sqrt() / used.abs()
        if before is not None and before.combines:
            scaled = scale(before, replace(read), index, finite[0])
            finite.append(scaled.valid)
            read.gramian = read.gramian * torch.outer(scaled.weights, scaled.weights)
        if self.tracks:
            self._check_tracked()
            tracked = self._track(columns, told, read.present, None if scaled is None else scaled.weights)
            read.tracked = tracked.total
            finite.append(_are_finite(tracked.plain))
        elif self.reads == "gradients":
            if self.per_parameter:
                self._check_tracked()
            rows = [column.to(used.dtype) / told.factor for column in columns]
            are_finite = _are_finite(rows)
            finite.append(self._ranks.mean(are_finite.to(used.dtype)) == 1 if own else are_finite)
            read.mean = self._ranks.mean if own else read.mean
            read.gradients = rows if scaled is None else [_times(each, scaled.weights) for each in rows]
        return _Seen(read, reduce(torch.logical_and, finite), tracked, scaled)

    def _end_weighting(
        self, weighting: LossBalancer, step: MeasuringStep, told: "_Told", seen: "_Seen", valid: Tensor
    ) -> None:
        """Have the weighting learn from the pass, at its end."""
        if seen.scaled is not None:
            keep(weighting, seen.scaled, told.chosen, valid)
            return
        norms = seen.read.norms
        if told.chosen is not None and norms is not NOTHING:
            norms = torch.zeros_like(told.losses).index_copy(0, told.chosen, norms)
        teach(weighting, Read(told.losses, step.weights.to(told.losses.dtype), norms=norms), told.given, valid)

    def _of_all_ranks(
        self, step: MeasuringStep, losses: Tensor, columns: list[Tensor]
    ) -> tuple[tuple[bool, ...] | None, Tensor, list[Tensor]]:
        """Return the tasks that take part on any rank, and the mean losses and gradients over all ranks."""
        given = step.given
        if self._ranks.size > 1:
            losses, given = self._mean_losses(losses, given)
            if step.wrt is not None:
                columns = [self._ranks.mean(column) for column in columns]
        return given, losses, columns

    def _read_gramian(self, read: Read, gramian: Tensor, scale: Tensor, own: bool) -> Tensor:
        """Read the Gramian, zero where it is not finite; return whether it is.

        With ``own``, each rank's features are variables of their own, in a loss that is the mean over ranks.
        """
        gramian = gramian / scale.square()
        if own:
            gramian = self._ranks.mean(gramian) / self._ranks.size
        finite = gramian.trace() < torch.inf  # no product is larger than the squares of both
        read.gramian = self.statistics["gramian"] = torch.where(finite, gramian, 0.0)
        return finite

    def _directions(
        self, step: MeasuringStep, columns: Sequence[Tensor], result: Result, scale: Tensor
    ) -> list[Tensor] | None:
        """Return what replaces the weighted sums, or at parameters is added to the plain sums; None: nothing does."""
        if result.directions is None:
            return None
        if not self.replaces_gradients or (self.fork is not None and step.wrt is not None and not step.gated):
            raise TypeError(
                f"{type(self).__name__} returned directions, so it must declare replaces_gradients = True, and be "
                f"undefined_for layers at a fork, whose gradients do not go on into the trunk"
            )
        replaced = [direction * scale for direction in result.directions]
        if step.wrt is None:
            return replaced
        return [new - rows.to(new.dtype).sum(0) for new, rows in zip(replaced, columns, strict=True)]

    def _stacked(self, losses: Entries, given: tuple[bool, ...] | None) -> Tensor:
        stacked = super()._stacked(losses, given)
        if given is None or all(given) or self.fork is not None or not self.replaces_gradients:
            return stacked
        # The parameters that only the tasks left out depend on receive the method's direction as well.
        assert self._shared is not None
        return stacked if self._shared.is_sharded else reaching(stacked, self._shared.now())

    def _to_track(self) -> list[tuple[str, torch.Size]]:
        """Return the name and the shape of each parameter that is tracked."""
        return [] if self._shared is None else [(name, each.shape) for name, each in self._shared.by_name().items()]

    def _check_tracked(self) -> None:
        """Check that the parameters are those that there is state for."""
        if self._to_track() != self._tracked:
            raise ForkError(
                f"{type(self).__name__} keeps state for each parameter of wrt, but other parameters of wrt are trained "
                f"now than when the balancer was made: were some frozen, or replaced? Make another balancer"
            )

    def _track(self, columns: list[Tensor], told: "_Told", present: Tensor | None, by: Tensor | None) -> "_Tracked":
        """Track the gradients times ``by``, parameter by parameter, each of which is freed when it was tracked."""
        made, state, factor = _Tracked(), dict(self.state(told.chosen)), told.factor
        if self.sees_all_tasks:
            state["present"] = torch.ones_like(told.shown) if present is None else present.to(told.shown.dtype)
        for k, column in enumerate(columns):
            made.plain.append(column.sum(0).flatten().to(factor.dtype))
            gradient = column.to(factor.dtype).div_(factor)
            if self.replaces_gradients and self.needs_positive_losses:
                made.held.append(torch.mv(gradient.flatten(1).t(), told.held * factor))
            if by is not None:
                gradient = _times(gradient, by)
            new, part = self.track(gradient, state[f"{self.tracks}_{k}"], state)
            made.total = made.total + part if made.total.numel() else part
            made.new.append(new)
            columns[k] = new
        return made


class _Told(NamedTuple):
    """The tasks, losses and weights of a pass. T' tasks take part on any rank."""

    given: tuple[bool, ...] | None
    """For each task whether it takes part; None if all do."""
    chosen: Tensor | None
    """The tasks that do, ``(T',)``; None if all do."""
    losses: Tensor
    """``(T,)``: the mean over ranks."""
    used: Tensor
    """``(T',)``: what the losses were multiplied by."""
    rest: Tensor | float
    """The sum of the weights last used of the tasks that take no part."""
    shown: Tensor
    """``(T',)``: the weights last used."""
    factor: Tensor
    """A scalar: what all losses were multiplied by besides ``used``, such as a GradScaler's scale."""
    held: Tensor
    """``(T',)``: what this pass's gradients are to be multiplied by to have the weights last used."""


class _Seen(NamedTuple):
    """The measurements of a pass's gradients."""

    read: Read
    finite: Tensor
    """A bool scalar: whether all of them are finite."""
    tracked: "_Tracked | None"
    scaled: Scaled | None
    """The result of a weighting that reads inner products; None without one."""


class _Tracked:
    """The results of `track`, one for each parameter."""

    def __init__(self) -> None:
        self.new: list[Tensor] = []
        """The new values, ``(T', ...)``."""
        self.total = NOTHING
        """The sum of the second values that ``track`` returned."""
        self.plain: list[Tensor] = []
        """The sum of the tasks' gradients, which the backward pass sends to the parameter, flattened."""
        self.held: list[Tensor] = []
        """The gradient that the parameter receives if the step is not valid, flattened; empty if it needs none."""

    def corrections(self, weights: Tensor, valid: Tensor) -> list[Tensor]:
        """Return what each parameter's gradient lacks of the tracked values times ``weights``, ``(T',)``."""
        found = []
        for k, (new, plain) in enumerate(zip(self.new, self.plain, strict=True)):
            lacking = torch.addmv(plain, new.flatten(1).t(), weights, beta=-1)
            if self.held:
                lacking = torch.where(valid, lacking, self.held[k] - plain)
            found.append(lacking.view(new.shape[1:]))
        return found


def _ratio(numerators: Tensor, denominators: Tensor) -> Tensor:
    """Return the ratios, zero where the denominator is."""
    return torch.where(denominators == 0, 0.0, numerators / denominators)


def _times(rows: Tensor, weights: Tensor) -> Tensor:
    """Return rows ``(T', ...)``, each times its weight."""
    return (rows.movedim(0, -1) * weights).movedim(-1, 0)


def _are_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Return a bool scalar: whether all entries are finite."""
    return torch.stack(foreach_norm(tensors)).amax() < torch.inf


def _gramian(column: Tensor) -> Tensor:
    """Return the inner products of T gradients, ``(T, ...)``."""
    rows = column.flatten(1)
    return rows @ rows.mT


_PLACES: Mapping[Wrt, str] = {
    "features": "does not measure at the features (wrt=None)",
    "layer": "does not measure at a fork with respect to a layer",
    "parameters": "does not measure without a fork (fork=None)",
}


def _given(losses: Entries) -> set[int]:
    return {i for i, loss in enumerate(losses) if loss is not None}


def _how_to_make(method: type[GradientBalancer]) -> str:
    """Return how a method is made with a `Fork` and without one, as far as it is defined for them, for messages."""
    features, layer, parameters = (place not in method.undefined_for for place in ("features", "layer", "parameters"))
    ways = []
    if features or layer:
        ways.append(f"{method.__name__}(net.fork{'' if features else ', wrt=net.trunk'}), where net.fork is a Fork")
    if parameters:
        where = " for a model without a Fork" if ways else ""
        ways.append(f"{method.__name__}(None, wrt=net.trunk, tasks=[...]){where}")
    return ", or ".join(ways)


def tasks_at(fork: Fork, tasks: int | Sequence[str] | None) -> int | Sequence[str]:
    """Return the ``tasks`` of a balancer that is made for a fork; where they are None, their number.

    Raises:
        TypeError, ValueError: they are no tasks, or not as many as the fork's.
    """
    if tasks is None:
        return fork.num_tasks
    if LossReader(tasks).num_tasks != fork.num_tasks:
        raise ValueError(f"tasks is {tasks!r}, but the fork was made for {fork.num_tasks}")
    return tasks


def _tasks_of(
    method: type[GradientBalancer], fork: Fork | None, tasks: int | Sequence[str] | None
) -> int | Sequence[str]:
    if fork is REQUIRED:
        raise TypeError(
            f"{method.__name__} lacks its first argument, fork, by which it knows the tasks and where their gradients "
            f"are: write {_how_to_make(method)}"
        )
    if fork is None:
        if tasks is None:
            raise ValueError(
                f"fork is None and tasks is not given, so that the number of tasks is not known: write "
                f"{_how_to_make(method)}; tasks is a number or a list of names"
            )
        return tasks
    if not isinstance(fork, Fork):
        raise TypeError(
            f"fork is of type {type(fork).__name__}; expected the model's Fork, or None: write {_how_to_make(method)}"
        )
    return tasks_at(fork, tasks)
