"""One call of a balancer, and the first backward pass through the loss that it returned.

A `Step` measures nothing but the losses. `NormsStep` measures each task's gradient on its way to the shared parameters,
and `CombiningStep` decides what they are multiplied by before they go on. A fork shows a step the gradients of the
features that went through it; without a fork, a step differentiates the losses itself.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Never

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from .fork import Passage
from .fork_audit import feature_gradients
from .fork_error import ForkError
from .gate import differentiate
from .loss_input import Entries, roots
from .measure import Measurement, joint_norms
from .passes import is_measuring, measuring
from .task_gradients import TaskGradients, dense, real_as, weighted_sum
from .torch_internals import (
    COMPILED,
    NO_PASS,
    after_this_pass,
    before_first_backward,
    current_pass,
    in_compiled_autograd,
    is_batched,
    not_compiled,
    recomputes,
)

if TYPE_CHECKING:
    from .base import LossBalancer
    from .gradients import GradientBalancer

_at_fork = set[int]()
"""The numbers of the passes under way in which a fork shows gradients to a step."""


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


class Step:
    """One call of a balancer.

    It holds no part of the autograd graph, whose nodes hold it.
    """

    combines = False
    """Whether it returns what goes on into the trunk."""

    def __init__(self, balancer: "LossBalancer", call: Call) -> None:
        self.balancer = balancer
        self.losses, self.weights, self.given, self.valid = call
        self.ended = False
        """Whether a backward pass has gone through without an exception."""
        self.factors = call.weights
        """``(T,)``: what each loss is multiplied by in the pass, its weight and the scale of the pass."""
        self.gradients: list[Tensor] = []
        """The measurements, in the form that `Window` sums."""
        self.squared = self.adds_up = False
        self.commit: Callable[[], None] | None = None
        """Writes what a combining method decided in the pass, at the pass's end."""
        self._pass = NO_PASS

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
        """Take in the whole pass; nothing is learnt from one in eval mode."""
        if self.balancer.training:
            if self.commit is not None:
                self.commit()
            self.balancer._finish(self)
        self.commit = None


class CountedStep(Step):
    """A step of a method that learns in `after_step`. Its pass is counted, and neither refused nor learnt from."""

    @not_compiled(COMPILED)
    def _reached(self, losses: Entries, factors: tuple[Tensor]) -> None:
        plain = not (is_measuring() or in_compiled_autograd() or torch.is_grad_enabled() or is_batched(factors[0]))
        if plain and not self.ended:
            after_this_pass(self._ended)

    def _end(self) -> None:
        pass


class MeasuringStep(Step):
    """A step that differentiates."""

    balancer: "GradientBalancer"

    def __init__(self, balancer: "GradientBalancer", call: Call) -> None:
        super().__init__(balancer, call)
        self.gated = False
        """Whether it makes the gradients of the shared parameters itself, at a gate."""
        shared: Sequence[nn.Parameter] | None = None
        self.features = 0
        """Number of tensors that went through the fork since the last call."""
        if balancer.fork is not None:
            self.features, shared = balancer.fork.reading.claim(self)
        self.wrt = balancer.measured_parameters() if shared is None else tuple(shared)

    @property
    def _forms_gradients(self) -> bool:
        """Whether gradients are always formed: see `ghost_norms`, which needs double precision."""
        return self.balancer.exact or self.weights.device.type == "mps"

    def is_late(self) -> bool:
        """Return whether the code runs in the pass of another call of the balancer.

        A second batch goes through the fork within a call, so a method that needs one is never late.
        """
        if self.balancer.needs_second_batch:
            return False
        return self._pass != current_pass() and self.balancer._window.under_way == current_pass()

    def _at_fork(self) -> None:
        """Check that features went through the fork, which shows their gradients in this pass."""
        if self.features == 0:
            assert self.balancer.fork is not None
            raise ForkError(self.balancer.fork.reading.why_nothing())
        _at_fork.add(current_pass())

    def observe(self, passage: Passage, z: Tensor, task: int | None, gradients: Tensor, spare: int) -> None:
        """Take what a `Fork` shows: see `Observer`."""

    def combined(self, passage: Passage) -> Tensor | None:
        """Return what goes on from features into the trunk, of a step that combines."""
        raise NotImplementedError

    def gradients_of(
        self, leaves: Sequence[Tensor], features: Sequence[Tensor], passages: Sequence[Passage]
    ) -> Sequence[Tensor | None]:
        """Return the gradients of a gate's leaves, of a step that combines."""
        raise NotImplementedError

    def _measurement(self, adds_up: bool, overwrite: bool = True, expected: int = 0) -> Measurement:
        idle = 0
        if self.given is not None and self.balancer.is_sharded() and self.balancer._ranks.size > 1:
            idle = self.given.count(False)
        return Measurement(
            self.balancer.num_tasks,
            self.wrt,
            adds_up,
            self.weights.dtype,
            overwrite,
            expected,
            idle,
            forms_gradients=self._forms_gradients or idle > 0,
        )

    def _nothing(self) -> list[Tensor]:
        """Return gradients of zero for a rank whose few tasks have none: other ranks wait for it, and may have some."""
        if self.wrt is None or self.balancer._ranks.size == 1 or self.given is None or all(self.given):
            raise ForkError(nothing_measured(self.balancer, observed=False))
        tasks, like = self.balancer.num_tasks, [dense(torch.zeros_like(parameter)) for parameter in self.wrt]
        return [zero.new_zeros(tasks, *zero.shape) for zero in like]

    def _differentiate(self, losses: Entries, measurement: Measurement, factors: Tensor) -> None:
        """Measure the gradients of the losses, multiplied by ``factors``, with respect to ``wrt``."""
        assert self.wrt is not None
        found = roots(losses)
        edges = [root.edge for root in found if root is not None]
        first = self.balancer.recomputes is None
        if first:
            self.balancer.recomputes = any(recomputes(edge.node) for edge in edges)
        seeded = [
            None if root is None else (root.edge, root.seed * factor)
            for root, factor in zip(found, factors, strict=True)
        ]
        nodes = [edge.node for edge in edges]
        with measuring(nodes), before_first_backward(edges) if first else nullcontext():
            self.balancer.recomputes = measurement.differentiate(seeded, together=bool(self.balancer.recomputes))
        missing = sorted(measurement.missing & self.balancer.unmeasured)
        self.balancer.unmeasured.clear()
        if missing and len(measurement.missing) < len(edges) and self.balancer._ranks.size == 1:
            raise ForkError(
                f"the loss of {self.balancer.label(missing[0])} does not depend on the parameters that wrt names: was "
                f"it detached? A task without a loss to learn from can be left out of a {{task: loss}} dict"
            )
        told = self.balancer.warnings
        if 0 < len(measurement.missing) < len(edges):
            told.tell_missing(self.balancer, measurement.missing)
        has_all = self.given is None or all(self.given)
        if self.balancer.lists_parameters and has_all and measurement.reached:
            told.tell_unreached(self.balancer, len(self.balancer.reached - measurement.reached))
        self.balancer.reached |= measurement.reached


class NormsStep(MeasuringStep):
    """A step that measures the norms of the tasks' gradients."""

    def __init__(self, balancer: "GradientBalancer", call: Call) -> None:
        super().__init__(balancer, call)
        # A layer's gradients add up over all features that depend on it; norms of features go by squares.
        self.adds_up = balancer.accumulate > 1 or balancer._ranks.size > 1
        self.adds_up |= balancer.fork is not None and self.wrt is not None and self.features != 1
        self.squared = self.adds_up and self.wrt is None
        self._found: Measurement | None = None

    def _begin(self, losses: Entries) -> None:
        expected = 0 if self.features != 1 else self.balancer.num_tasks if self.given is None else sum(self.given)
        self._found = self._measurement(self.adds_up, expected=expected)
        if self.balancer.fork is None:
            self._differentiate(losses, self._found, self.factors)
        else:
            self._at_fork()

    def observe(self, passage: Passage, z: Tensor, task: int | None, gradients: Tensor, spare: int) -> None:
        assert self._found is not None
        self._found.observe(z, task, gradients, spare)

    def _end(self) -> None:
        assert self._found is not None
        found, self._found = self._found, None
        _at_fork.discard(self._pass)
        without = found.without_gradient(self.given) if self.balancer.fork is not None else ()
        columns = found.columns()
        if not columns and (not self.adds_up or found.observed or self.balancer.fork is not None):
            raise ForkError(nothing_measured(self.balancer, found.observed))
        self.balancer.warnings.tell_missing(self.balancer, without)
        columns = columns or self._nothing()
        factors, dtype = self.factors.to(self.weights.dtype), self.weights.dtype
        if self.adds_up and self.wrt is not None:
            columns = [column if column.ndim > 1 else column.unsqueeze(1) for column in columns]  # one row a task
            self.gradients = [(column.to(dtype).movedim(0, -1) / factors).movedim(-1, 0) for column in columns]
        else:
            norms = joint_norms(columns, dtype) / factors.abs()
            self.gradients = [norms.square() if self.adds_up else norms]
        super()._end()


def _called_twice(balancer: "LossBalancer") -> str:
    return (
        f"one backward pass goes through losses that two calls of {type(balancer).__name__} returned, and it learns "
        f"from each as from a step. Call it once, with the losses of all tasks. For several batches in a step of "
        f"the optimiser, call backward on the loss of each, and give accumulate=the number of batches. To evaluate "
        f"losses several times in a step, do it in a block `with balancer.held():`"
    )


def nothing_measured(balancer: "GradientBalancer", observed: bool) -> str:
    """Return why a backward pass showed no gradient; ``observed``: whether one came to the fork."""
    if balancer.fork is not None and not observed:
        return (
            "the backward pass brought no gradient to the fork: the tasks' gradients were not measured. Call backward "
            "on the loss that the balancer returned, for all parameters, and run the model that the balancer was made "
            "for: a copied model has another fork. A head must not change its features in place"
        )
    return (
        "no loss depends on the parameters that wrt names. Are they frozen, were they replaced after the balancer was "
        "made (load_state_dict(assign=True), fully_shard, a copied model), or does a checkpoint with "
        "use_reentrant=True hide them? Give the module itself as wrt, and make the balancer after the model"
    )


def _sparse(balancer: "GradientBalancer") -> str:
    return (
        f"{type(balancer).__name__} replaces the gradients of wrt, which it can't where they are sparse: make the "
        f"embedding with sparse=False" + (", or leave it out of wrt" if balancer.fork is None else "")
    )


class CombiningStep(MeasuringStep):
    """A step that decides what the gradients are multiplied by, from these gradients.

    Args:
        balancer, call: see `Step`.
        measures: whether they are measured; false between the steps of ``update_every``.
    """

    combines = True

    def __init__(self, balancer: "GradientBalancer", call: Call, measures: bool) -> None:
        super().__init__(balancer, call)
        self._measures = measures
        self._rows: _Rows
        self._shares: Tensor | None = None
        """``(T,)``: what this step's gradients, which have the weights already, are multiplied by."""

    def _differentiated(self) -> tuple[Tensor] | None:
        raise RuntimeError(
            f"{type(self.balancer).__name__} combines the tasks' gradients on their way, which can't be "
            f"differentiated or batched: call backward without create_graph=True or is_grads_batched=True"
        )

    def _measured_by_another(self) -> tuple[Tensor] | None:
        raise RuntimeError(
            f"another balancer measures the loss that {type(self.balancer).__name__} returned, which has no gradient "
            f"of its own: it combines gradients. Put the method that combines outermost"
        )

    def _again(self, factors: Tensor) -> tuple[Tensor] | None:
        if self.balancer.replaces_gradients:
            raise RuntimeError(
                f"a second backward pass through a loss that {type(self.balancer).__name__} returned: it replaces "
                f"gradients by directions, and has none for this pass"
            )
        self._pass, self.factors = current_pass(), factors
        if self.balancer.fork is None:
            assert self._shares is not None
            return (factors * self._shares.to(factors.dtype),)
        self._rows = _Rows(self.balancer.num_tasks)
        return None

    def _begin(self, losses: Entries) -> tuple[Tensor] | None:
        self._rows, self._shares = _Rows(self.balancer.num_tasks), None
        if self.balancer.fork is not None:
            self._at_fork()
            return None
        if self.balancer.replaces_gradients and current_pass() in _at_fork:
            self._measured_by_another()
        self.balancer.unhook()  # what a pass left that an exception ended
        corrections = None
        if self._measures:
            measurement = self._measurement(adds_up=True)
            self._differentiate(losses, measurement, self.factors)
            if self.balancer.replaces_gradients and measurement.has_sparse:
                raise TypeError(_sparse(self.balancer))
            columns = measurement.columns() or self._nothing()
            self._shares, corrections = self.balancer.decide(self, columns)
        else:
            self._shares = self.balancer.last_shares(self)
        if corrections is None:
            return (self.factors * self._shares.to(self.factors.dtype),)
        assert self.wrt is not None
        self.balancer.hooks += [
            parameter.register_hook(partial(self._corrected, correction))
            for parameter, correction in zip(self.wrt, corrections, strict=True)
        ]
        return None

    @not_compiled(COMPILED)
    def _corrected(self, correction: Tensor, gradient: Tensor) -> Tensor | None:
        """Add to a parameter's gradient what makes the plain sum of the tasks' gradients the method's direction."""
        if not self.is_current():
            return None
        return gradient + real_as(correction, gradient)

    def observe(self, passage: Passage, z: Tensor, task: int | None, gradients: Tensor, spare: int) -> None:
        self._rows.observe(passage, z, task, gradients)

    def combined(self, passage: Passage) -> Tensor | None:
        rows = self._rows
        if passage not in rows.passages:  # no gradient came to it
            return None
        if rows.combined is None:
            if self.balancer.needs_whole_trunk:
                raise ForkError(
                    f"{type(self.balancer).__name__} replaces the gradients of all shared parameters: give it as wrt "
                    f"all parameters that are trained upstream of its fork and no others, in a model that calls the "
                    f"fork once, has no other fork before it, and is not sharded, and let no other balancer read the "
                    f"fork; or fork=None"
                )
            self._tell_missing()
            stacked = rows.stacked()
            directions = None
            if self._shares is None and not self._measures:
                self._shares = self.balancer.last_shares(self)
            if self._shares is None:
                columns, gramian = [dense(gradients) for gradients in stacked], None
                if self.wrt is not None:
                    measurement = self._measurement(adds_up=True, overwrite=False)
                    if self.balancer.reads == "gramian" and self.balancer._ranks.size == 1:
                        gramian = measurement.gramian(rows.features, stacked)
                    if gramian is None:
                        measurement.observe_all(rows.features, stacked)
                        columns = measurement.columns()
                        if not columns:
                            raise ForkError(nothing_measured(self.balancer, observed=True))
                self._shares, directions = self.balancer.decide(self, columns, gramian)
            if directions is None:
                rows.release([weighted_sum(self._shares, gradients) for gradients in stacked])
            else:
                rows.release([real_as(each, gradients) for each, gradients in zip(directions, stacked, strict=True)])
        assert rows.combined is not None
        return rows.combined[rows.passages.index(passage)]

    def _tell_missing(self) -> None:
        if len(self._rows.passages) == self.features:  # else features went through the fork more than once
            self.balancer.warnings.tell_missing(self.balancer, self._rows.without_gradient(self.given))

    def gradients_of(
        self, leaves: Sequence[Tensor], features: Sequence[Tensor], passages: Sequence[Passage]
    ) -> Sequence[Tensor | None]:
        assert self.wrt is not None
        rows, of_passage = self._rows, dict(zip(passages, features, strict=True))
        if not rows.passages:
            return [None] * len(leaves)
        self._tell_missing()
        stacked, sources = rows.stacked(), [of_passage[passage] for passage in rows.passages]
        rows.release([])
        if self._shares is None and not self._measures:
            self._shares = self.balancer.last_shares(self)
        if self._shares is not None:
            return differentiate(sources, [weighted_sum(self._shares, each) for each in stacked], leaves)
        found = self._of_leaves(leaves, sources, stacked)
        return [found.get(leaf) for leaf in leaves]

    def _of_leaves(
        self, leaves: Sequence[Tensor], features: Sequence[Tensor], stacked: Sequence[Tensor]
    ) -> Mapping[Tensor, Tensor]:
        """Decide on this pass's gradients, and return that of each leaf.

        Args:
            leaves: all that the features depend on.
            features: those of this step.
            stacked: the tasks' gradients of each of them, ``(T, *z.shape)``.
        """
        assert self.wrt is not None
        self.gated = True
        balancer, index = self.balancer, self.balancer.index(self.given)
        if index is not None:
            stacked = [each[index] for each in stacked]
        others = set(leaves).difference(self.wrt)
        by_gramian = balancer.reads == "gramian" and balancer._ranks.size == 1
        trunk = TaskGradients(
            features,
            stacked,
            [*self.wrt, *others],
            len(self.wrt),
            forms=self._forms_gradients or not by_gramian,
            recomputes=balancer.recomputes,
        )
        balancer.recomputes = trunk.recomputes
        if not trunk.reached:
            raise ForkError(nothing_measured(balancer, observed=True))
        if balancer.replaces_gradients and trunk.has_sparse:
            raise TypeError(_sparse(balancer))
        if by_gramian:
            gramian = self._of_all_tasks(self._of_all_tasks(trunk.gramian(self.weights.dtype), index).mT, index)
            self._shares, _ = balancer.decide(self, [], gramian)
        else:
            columns = trunk.columns()
            plain = [column.sum(0) for column in columns] if balancer.replaces_gradients else []
            columns = [self._of_all_tasks(column, index) for column in columns]
            if balancer.tracks and not balancer.replaces_gradients and index is None:
                columns = [column.clone() for column in columns]  # which tracking overwrites
            self._shares, corrections = balancer.decide(self, columns)
            if corrections is not None:
                new = [a + b for a, b in zip(plain, corrections, strict=True)]
                replaced = {leaf: real_as(each, leaf) for leaf, each in zip(self.wrt, new, strict=True)}
                return trunk.combined(torch.ones_like(self._shares), others) | replaced
        return trunk.combined(self._shares if index is None else self._shares[index])

    def _of_all_tasks(self, rows: Tensor, index: Tensor | None) -> Tensor:
        """Return ``rows`` of the tasks at ``index`` with zeros for the others, ``(T, ...)``."""
        if index is None:
            return rows
        return rows.new_zeros(self.balancer.num_tasks, *rows.shape[1:]).index_copy(0, index, rows)

    def _end(self) -> None:
        if self.balancer.fork is not None and self._shares is None:
            raise ForkError(nothing_measured(self.balancer, observed=False))
        if self.balancer.hooks:
            self.balancer.unhook()
        self._rows = _Rows(self.balancer.num_tasks)  # they hold passages, which hold this step
        _at_fork.discard(self._pass)
        super()._end()


class HeldStep(MeasuringStep):
    """The first evaluation in a block of ``held()``, of a method that combines.

    The losses have the weights held, of which some may be zero, so each loss is differentiated by itself.

    Args:
        balancer, call: see `Step`.
        own: ``(T,)``: what the method's `weigh` multiplies the losses by.
    """

    def __init__(self, balancer: "GradientBalancer", call: Call, own: Tensor) -> None:
        super().__init__(balancer, call)
        self._own = own

    def _begin(self, losses: Entries) -> None:
        fork = self.balancer.fork
        self.weights = self.factors = self._own
        if self.wrt is not None:
            measurement = self._measurement(adds_up=True)
            self._differentiate(losses, measurement, self._own)
            columns = measurement.columns()
        else:
            assert fork is not None
            with measuring(root.edge.node for root in roots(losses) if root is not None):
                found = feature_gradients(fork, losses)
            columns = [(dense(column).movedim(0, -1) * self._own).movedim(-1, 0) for column in found]
        if not columns:
            raise ForkError(nothing_measured(self.balancer, observed=self.wrt is not None))
        self.balancer.decide(self, columns)


class Lookahead(MeasuringStep):
    """Differentiates losses before a step, without a backward pass of its own."""

    def of_losses(self, losses: Entries) -> list[Tensor]:
        """Return the gradient of each loss with respect to each parameter of ``wrt``, ``(T, ...)``."""
        measurement = self._measurement(adds_up=True)
        self._differentiate(losses, measurement, self.weights)
        return measurement.columns() or self._nothing()


class _Rows:
    """The tasks' gradients of the features, held until all are there."""

    def __init__(self, num_tasks: int) -> None:
        self.passages: list[Passage] = []
        self.features: list[Tensor] = []
        """Those of each passage."""
        self.combined: list[Tensor] | None = None
        """The gradients that go on into the trunk, once they are decided."""
        self._num_tasks = num_tasks
        self._gradients: list[list[Tensor | None] | Tensor] = []

    def observe(self, passage: Passage, z: Tensor, task: int | None, gradients: Tensor) -> None:
        """Take one task's gradient of features ``z``, or for None those of all tasks, ``(T, *z.shape)``."""
        if self.combined is not None:
            self._too_late()
        if gradients.layout is not torch.strided:
            raise TypeError(
                "gradients of features are sparse, which a method that combines them can't take: make what the heads "
                "look up in the features with sparse=False, or measure the shared parameters, with fork=None"
            )
        if task is None:
            self.passages.append(passage)
            self.features.append(z)
            self._gradients.append(gradients)
            return
        if passage not in self.passages:
            self.passages.append(passage)
            self.features.append(z)
            self._gradients.append([None] * self._num_tasks)
        of_tasks = self._gradients[self.passages.index(passage)]
        assert isinstance(of_tasks, list)
        of_tasks[task] = gradients

    def without_gradient(self, given: Sequence[bool] | None) -> list[int]:
        """Return the tasks that were given, of which no gradient came."""
        if any(isinstance(gradients, Tensor) for gradients in self._gradients):
            return []
        came = [any(gradients[i] is not None for gradients in self._gradients) for i in range(self._num_tasks)]
        return [i for i, some in enumerate(came) if not some and (given is None or given[i])]

    def stacked(self) -> list[Tensor]:
        """Of each tensor of features, ``(T, *z.shape)``, zero where a loss does not depend on it."""
        return [
            gradients
            if isinstance(gradients, Tensor)
            else torch.stack([torch.zeros_like(z) if gradient is None else gradient for gradient in gradients])
            for z, gradients in zip(self.features, self._gradients, strict=True)
        ]

    def release(self, combined: list[Tensor]) -> None:
        """Free the gradients, when they are combined; later ones are refused."""
        self.combined, self._gradients, self.features = combined, [], []

    def _too_late(self) -> Never:
        raise ForkError(
            "features went through the fork again after the gradient of the first had gone on into the trunk: a method "
            "that combines gradients needs all features of a step in one call of the fork. If each task has a forward "
            "pass of its own, measure the shared parameters: fork=None, wrt=the trunk"
        )
