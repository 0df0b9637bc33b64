"""A step that measures each task's gradient in its backward pass.

A fork shows a step the gradients of the features that went through it; without a fork, a step differentiates the losses
itself. A `NormsStep` measures the gradients' norms, an `ImmediateStep` returns the gradients, and a `CombiningStep` of
`combining_step` decides what they are multiplied by.
"""

import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from ..fork_error import ForkError
from ..forks.fork import Passage
from ..graph_behind import GraphBehind
from ..loss_input import Entries, roots
from ..measuring.measure import Measurement
from ..measuring.norms import joint_norms
from ..measuring.task_gradients import dense
from ..passes import as_measurements
from ..torch_internals import REENTRANT, before_first_backward, current_pass, recomputes, upstream
from .step import Call, Step

if TYPE_CHECKING:
    from ..classes.gradients import GradientBalancer

read_at_a_fork: dict[int, list[weakref.ref[Tensor]]] = {}
"""By the number of a pass under way, the losses whose gradients a fork shows to a step."""


def is_read_at_a_fork(losses: Entries) -> bool:
    """Return whether a fork shows a step the gradients of what ``losses`` contribute to, in this pass."""
    known = (each() for each in read_at_a_fork.get(current_pass(), ()))
    nodes = [loss.grad_fn for loss in known if loss is not None]
    own = {root.edge.node for root in roots(losses) if root is not None}
    return bool(nodes) and not own.isdisjoint(upstream(*nodes))


class MeasuringStep(Step):
    """A step that differentiates."""

    balancer: "GradientBalancer"

    def __init__(self, balancer: "GradientBalancer", call: Call) -> None:
        super().__init__(balancer, call)
        self.gated = False
        """Whether it makes the gradients of the shared parameters itself, at a gate."""
        shared: Sequence[nn.Parameter] | None = None
        has_one_twice = False
        self.features = 0
        """Number of tensors that went through the fork since the last call, and may have a gradient in this step."""
        self.has_several_calls = False
        """Whether these tensors come from several calls of the fork."""
        if balancer.fork is not None:
            recording = balancer.fork.reading.claim(self)
            self.features, shared, has_one_twice = recording.count, recording.shared, recording.has_one_twice
            self.has_several_calls = self.features > 1 and recording.has_several_calls
        self.wrt = balancer.measured_parameters() if shared is None else tuple(shared)
        if has_one_twice and self.wrt is None:
            raise ForkError(
                "one tensor of features went through the fork twice in this step, or attached heads ran twice on it, "
                "so that at the features (wrt=None) it would count as two: call the fork once in a step and use what "
                "it returned again, or measure at a layer, such as wrt=net.trunk[-1]"
            )

    @property
    def _forms_gradients(self) -> bool:
        """Whether gradients are always formed: see `row_products`, for which MPS lacks double precision."""
        return self.balancer.exact or self.weights.device.type == "mps"

    def is_late(self) -> bool:
        """Return whether the code runs in the pass of another call of the balancer.

        A second batch goes through the fork within a call, so a method that needs one is never late.
        """
        if self.balancer.needs_second_batch:
            return False
        return self._pass != current_pass() and self.balancer._window.under_way == current_pass()

    def _at_fork(self, losses: Entries) -> None:
        """Check that features went through the fork, which shows the gradients of ``losses`` in this pass."""
        if self.features == 0:
            assert self.balancer.fork is not None
            raise ForkError(self.balancer.fork.reading.why_nothing())
        for number, known in list(read_at_a_fork.items()):
            if not any(each() is not None for each in known):  # an exception ended that pass
                read_at_a_fork.pop(number, None)
        given = [losses] if isinstance(losses, Tensor) else [loss for loss in losses if loss is not None]
        read_at_a_fork.setdefault(current_pass(), []).extend(map(weakref.ref, given))

    def observe(self, passage: Passage, z: Tensor, task: int | None, gradients: Tensor, free_entries: int) -> None:
        """Take what a `Fork` shows: see `Observer`."""

    def combined(self, passage: Passage) -> Tensor | None:
        """Return what goes on from features into the trunk, of a step that combines."""
        raise NotImplementedError

    def gradients_of(
        self,
        leaves: Sequence[Tensor],
        features: Sequence[Tensor],
        graph: GraphBehind,
        passages: Sequence[Passage],
        retain_graph: bool,
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

    def _recomputes(self, starts: Sequence[Node | None]) -> bool:
        """Return whether a checkpoint upstream of these nodes runs a forward pass again when they are differentiated.

        The graph is searched in the first step, and where it showed a checkpoint in the last one: it is found soon.
        """
        balancer = self.balancer
        if balancer.recomputes is not False:
            found = any(map(recomputes, starts))
            if balancer.recomputes is None or balancer.saw_checkpoint:
                balancer.recomputes = found
            balancer.saw_checkpoint = found
        return bool(balancer.recomputes)

    def _differentiate(self, losses: Entries, measurement: Measurement, factors: Tensor) -> None:
        """Measure the gradients of the losses, multiplied by ``factors``, with respect to ``wrt``."""
        assert self.wrt is not None
        found = roots(losses)
        edges = [root.edge for root in found if root is not None]
        first, together = self.balancer.recomputes is None, self._recomputes([edge.node for edge in edges])
        is_new = first or bool(self.balancer.unmeasured)
        seeded = [
            None if root is None else (root.edge, root.seed * factor)
            for root, factor in zip(found, factors, strict=True)
        ]
        nodes = [edge.node for edge in edges]
        with as_measurements(nodes), before_first_backward(edges) if first else nullcontext():
            self.balancer.recomputes = measurement.differentiate(seeded, together)
        if is_new and len(measurement.reached) < len(self.wrt) and any(n.name() == REENTRANT for n in upstream(*nodes)):
            raise ForkError(
                f"no loss reaches {len(self.wrt) - len(measurement.reached)} of the parameters that wrt names, and a "
                f"checkpoint with use_reentrant=True hides those inside it: pass use_reentrant=False to "
                f"torch.utils.checkpoint, or leave parameters out of wrt that are not used"
            )
        missing = sorted(measurement.missing & self.balancer.unmeasured)
        self.balancer.unmeasured.clear()
        if missing and len(measurement.missing) < len(edges) and self.balancer._ranks.size == 1:
            raise ForkError(
                f"the loss of {self.balancer.label(missing[0])} does not depend on the parameters that wrt names: was "
                f"it detached? A task without a loss to learn from can be left out of a {{task: loss}} dict"
            )
        if 0 < len(measurement.missing) < len(edges):
            self.balancer.warnings.tell_missing(self.balancer, measurement.missing)
        self._tell_unreached(measurement.reached)

    def _tell_unreached(self, reached: set[int]) -> None:
        """Warn if losses depend on the parameters at these places only, and before on more that ``wrt`` lists."""
        balancer = self.balancer
        if balancer.lists_parameters and reached and (self.given is None or all(self.given)):
            balancer.warnings.tell_unreached(balancer, len(balancer.reached - reached))
            balancer.reached |= reached


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
            self._at_fork(losses)

    def observe(self, passage: Passage, z: Tensor, task: int | None, gradients: Tensor, free_entries: int) -> None:
        assert self._found is not None
        self._found.observe(z, task, gradients, free_entries)

    def _end(self) -> None:
        assert self._found is not None
        found, self._found = self._found, None
        found.take_waiting()
        read_at_a_fork.pop(self._pass, None)
        without = found.without_gradient(self.given) if self.balancer.fork is not None else ()
        if self.balancer.fork is not None:
            self._tell_unreached(found.reached)
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
        self.gradients = []  # the window has them, and a loss that the caller keeps would keep the step


class ImmediateStep(MeasuringStep):
    """Differentiates losses before a step, without a backward pass of its own."""

    def of_losses(self, losses: Entries) -> list[Tensor]:
        """Return the gradient of each loss with respect to each parameter of ``wrt``, ``(T, ...)``."""
        measurement = self._measurement(adds_up=True)
        self._differentiate(losses, measurement, self.weights)
        return measurement.columns() or self._nothing()


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
