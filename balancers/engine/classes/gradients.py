"""Balancers that read the tasks' gradients: where and when these are measured.

At a fork, they are measured during the one backward pass. Without a fork, each loss is differentiated with respect to
the shared parameters, before the weighted sum is. `decision` has a method that combines them decide in that pass.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from ..fork_error import ForkError
from ..forks.fork import Fork, Reader
from ..forks.fork_argument import NOT_MEASURED, tasks_of
from ..forks.fork_audit import audit
from ..host_copy import HostCopy
from ..loss_input import Entries, Losses
from ..measuring.shared_parameters import SharedParameters
from ..measuring.zero_gradients import with_zero_gradients
from ..method.declared import option
from ..method.declared_method import REQUIRED, Reads, Wrt
from ..method.readings import Read, Result, State
from ..own_precision import own_precision
from ..steps.combining_step import CombiningStep, HeldStep
from ..steps.measuring_step import MeasuringStep, NormsStep
from ..steps.step import Call, Step
from ..torch_internals import COMPILED, not_compiled
from . import decision
from .base import LossBalancer
from .prior_weighting import adopt, teach

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

    Gradients of parameters are measured by further passes through a part of the graph, one for each task. Hooks on
    these parameters don't see them, and what such hooks change is not measured. Hooks on modules and activations on the
    way are called in these passes too, and ``retain_grad()`` adds up what an activation gets in all of them.

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
        update_every: k, to measure and to update the weights in every k-th window only, or of a method that combines
            in every k-th pass. The steps between cost next to nothing.
        exact: form each gradient whose norm or inner product is read. Otherwise norms at a layer are taken without it
            where that is less arithmetic: in single precision, they are then off by up to 2e-7 of what a gradient's
            terms, one for each row, measure together. The norm of a gradient that is formed is rounded likewise.
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
    averaging: float = option(0.0, at_least=0, at_most=1, combining=True, fixed=True)
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
        super().__init__(tasks_of(type(self), fork, tasks), compile=compile, **options)
        if not self.combines:
            self.weighting, self.averaging = None, 0.0
        if fork is None and wrt is None:
            raise ValueError("without a fork there are no features to measure at: give the shared parameters as wrt")
        kind: Wrt = "parameters" if fork is None else "features" if wrt is None else "layer"
        self._kind = kind
        self.needs_whole_trunk = (
            self.replaces_gradients and kind == "layer" in self.undefined_for and "parameters" not in self.undefined_for
        )
        """Whether, with a fork, ``wrt`` must be all parameters upstream of it."""
        if kind in self.undefined_for and not self.needs_whole_trunk:
            raise ValueError(f"{type(self).__name__} {NOT_MEASURED[kind]}: {self.undefined_for[kind]}")
        self.__dict__["fork"] = fork  # past nn.Module: it is the model's, not the balancer's, to train or to save
        self.__dict__["_shared"] = None if wrt is None else SharedParameters(wrt)
        self.recomputes: bool | None = None
        """Whether losses are differentiated in one pass, by way of a checkpoint; None before the first step."""
        self.saw_checkpoint = False
        """Whether the graph of the last step showed the checkpoint."""
        self.trunk_by_autograd: object = None
        """If autograd formed each of the last step's gradients at a gate: the trunk's number of nodes and other facts
        that a next step is compared with; else None."""
        self.unmeasured: set[int] = set()
        """Tasks that were given for the first time, and may turn out not to depend on the parameters."""
        self.hooks: list[torch.utils.hooks.RemovableHandle] = []
        """Hooks of a backward pass under way."""
        self.reached: set[int] = set()
        """The parameters, by place, on which losses depended in the steps so far."""
        self._audited: set[int] = set()
        """The tasks that were given in an audit of the graph."""
        self._audited_parameters: set[int] = set()
        """The parameters, by id, that were measured in an audit: one that is trained later may be shared otherwise."""
        self._measures_itself = True
        """False if this is the weighting of another balancer, which measures for it."""
        self._settled: HostCopy | None = None
        self._asked: HostCopy | None = None
        self._asks = 0
        self._check_update_every()
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
            if not self.weighting.combines:
                first = self.initial_values("last_weights"), self.weighting.initial_values("last_weights")
                self.declare("last_weights", [one * other for one, other in zip(*first, strict=True)])
            self.looks_again = self._expects_look = self.weighting.looks_again
            self.heads = "plain" if self.weighting.combines else "weighted"

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, wrt={self._kind!r}"

    def audit(self, losses: Losses) -> None:
        """Check, on the graph of this step's losses, that each of them uses the fork as it must.

        Done by itself on the first step, and again on one that gives a task for the first time, or that trains a
        parameter of ``wrt`` for the first time. After you thaw another layer, call it yourself. Without a fork there is
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
            self._losses_before_step, self._dropped, self._expects_look = None, 0, False
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
        return self._weigh_takes is not None or (self.weighting is not None and not self.weighting.combines)

    def _weighed(self, losses: Tensor, given: tuple[bool, ...] | None, learning: bool) -> tuple[Tensor, Tensor | None]:
        weighting = self.weighting
        if weighting is None or weighting.combines:
            return super()._weighed(losses, given, learning)
        weights, valid = weighting._weighed(losses, given, learning)
        if learning and weighting.looks_again:
            weighting._losses_before_step = losses, given
        if self.training:
            weighting.last_weights.copy_(weights)
        return weights.clone(), valid  # which autograd keeps

    def tracking(self, state: State) -> State:
        """Return the state that `track` is given: a method may add what it needs for every parameter alike."""
        return state

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

    def _check_update_every(self) -> None:
        if (self.tracks or self.per_parameter) and self.update_every > 1:
            raise ValueError(f"update_every is {self.update_every}; expected 1: every step changes what is tracked")
        if self.takes_turns and self.update_every > 1:
            raise ValueError(f"update_every is {self.update_every}; expected 1: each step trains on the next task")

    def option_changed(self) -> None:
        self._check_update_every()
        super().option_changed()
        self._decide_when()

    def _want(self) -> None:
        """Tell the fork whether the next step is measured."""
        if self.fork is not None and self._measures_itself:
            self.fork.reading.want(self._fork_reader, self.combines or self._measures_next())

    def _measures_next(self) -> bool:
        if self._settles and self._settled is None:
            self._ask_if_settled()
        return self.measures_now and not (self._settled is not None and self._settled.is_true())

    def state_changed(self) -> None:
        super().state_changed()
        self._decide_when()

    def _decide_when(self) -> None:
        """Find out anew whether the next step is measured, as the state or an option is another one."""
        if not self.takes_turns:
            self.turn %= self.update_every
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
        elif self.measures_now:  # it has settled
            self._want()
            return
        else:
            step = Step(self, call)  # between the steps of update_every, passes are counted
        if measures:
            assert isinstance(step, MeasuringStep)
            if self.fork is not None and not (self.is_sharded() or self._has_audited(step.wrt or ())):
                self._audited.clear()
            if len(self._audited) < self.num_tasks and not _given(losses) <= self._audited:
                self._audit(losses)
        step.watch(node, losses)

    def _has_audited(self, parameters: Iterable[nn.Parameter]) -> bool:
        return self._audited_parameters.issuperset(map(id, parameters))

    def _audit(self, losses: Entries) -> None:
        if self.fork is not None:
            wrt = self.measured_parameters() or ()
            audit(self.fork, losses, wrt, self.lists_parameters, self._reader.label)
            self._audited_parameters.update(map(id, wrt))
        else:
            self.unmeasured |= _given(losses) - self._audited
        self._audited |= _given(losses)

    def _finish(self, step: Step) -> None:
        if self.combines:
            self._next_turn()
        else:
            super()._finish(step)

    def _close(self, step_made: Tensor | None) -> None:
        if not self.measures_now:
            self._window.clear()
        elif self.reads == "norms" and not self._window.is_measured:
            self._window.clear()  # its passes are of calls before the turn came, so the next window is measured
            self._want()
            return
        else:
            super()._close(step_made)
        self._next_turn()

    def _next_turn(self) -> None:
        if self.update_every > 1:
            self.turn = (self.turn + 1) % self.update_every
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
            self._settled = HostCopy(settled)
        elif self._settled is None or self._asks % SETTLED_CHECKS == 0:
            # A rank that stopped before another would leave it waiting. So all go by what they asked some updates ago,
            # which has arrived by now.
            self._settled, self._asked = self._asked or HostCopy(settled), HostCopy(settled)
            self._settled.wait()

    # Called by steps and by other balancers.

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
        return decision.ratio(self.last_weights, step.weights)

    def _updated(
        self, read: Read, arguments: Mapping[str, Any], index: Tensor | None, also_valid: Tensor | None = None
    ) -> tuple[Tensor, Result]:
        valid, result = super()._updated(read, arguments, index, also_valid)
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
        """Delegate to ``decision.decide``. It is here so that steps need not import that module."""
        with own_precision(self.last_weights):
            return decision.decide(self, step, columns, gramian)

    def _stacked(self, losses: Entries, given: tuple[bool, ...] | None) -> Tensor:
        stacked = super()._stacked(losses, given)
        if given is None or all(given) or self.fork is not None or not self.replaces_gradients:
            return stacked
        # The parameters that only the tasks left out depend on receive the method's direction as well.
        assert self._shared is not None
        return stacked if self._shared.is_sharded else with_zero_gradients(stacked, self._shared.now())

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


def _given(losses: Entries) -> set[int]:
    return {i for i, loss in enumerate(losses) if loss is not None}
