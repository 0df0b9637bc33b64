"""A step whose method decides, in the backward pass, what the tasks' gradients are multiplied by before they go on."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import compress
from typing import TYPE_CHECKING, Never

import torch
from torch import Tensor

from ..fork_error import ForkError
from ..forks.fork import Passage
from ..forks.fork_audit import feature_gradients, passages_to
from ..forks.gate import differentiate
from ..graph_behind import GraphBehind
from ..loss_input import Entries, roots
from ..measuring.task_gradients import TaskGradients, dense, real_as, weighted_sum
from ..passes import as_measurements
from ..torch_internals import COMPILED, after_this_pass, current_pass, hook_first, not_compiled
from .measuring_step import MeasuringStep, is_read_at_a_fork, nothing_measured, read_at_a_fork
from .step import Call, scale_of

if TYPE_CHECKING:
    from ..classes.gradients import GradientBalancer


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
        self._release()
        after_this_pass(self._release)
        return None

    def _release(self) -> None:
        """Let go of the gradients of a pass, and of passages, which hold this step."""
        self._rows = _Rows(self.balancer.num_tasks)

    def _begin(self, losses: Entries) -> tuple[Tensor] | None:
        self._release()
        self._shares = None
        if self.balancer.fork is not None:
            self._at_fork(losses)
            if self.has_several_calls:  # some may be of a forward pass that no loss of this step is computed from
                self.features = len(passages_to(self.balancer.fork, losses))
            return None
        if self.balancer.replaces_gradients and is_read_at_a_fork(losses):
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
            hook_first(parameter, partial(self._corrected, correction))
            for parameter, correction in zip(self.wrt, corrections, strict=True)
        ]
        return None

    @not_compiled(COMPILED)
    def _corrected(self, correction: Tensor, gradient: Tensor) -> Tensor | None:
        """Add to a parameter's gradient what makes the plain sum of the tasks' gradients the method's direction."""
        if not self.is_current():
            return None
        return gradient + real_as(correction, gradient)

    def observe(self, passage: Passage, z: Tensor, task: int | None, gradients: Tensor, free_entries: int) -> None:
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
                    f"fork; or fork=None. A balancer that was replaced reads the fork for as long as the loss lives "
                    f"that it returned last: del loss"
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
                    self._tell_unreached(measurement.reached)
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
        self,
        leaves: Sequence[Tensor],
        features: Sequence[Tensor],
        graph: GraphBehind,
        passages: Sequence[Passage],
        retain_graph: bool,
    ) -> Sequence[Tensor | None]:
        assert self.wrt is not None
        rows, of_passage = self._rows, dict(zip(passages, features, strict=True))
        if not rows.passages:
            return [None] * len(leaves)
        self._tell_missing()
        sources = [of_passage[passage] for passage in rows.passages]
        # Linear heads show those of features that are flattened to two dimensions.
        of_features = [
            each if each[0].shape == z.shape else [gradient.view(z.shape) for gradient in each]
            for each, z in zip(rows.one_by_one(), sources, strict=True)
        ]
        rows.release([])
        if self._shares is None and not self._measures:
            self._shares = self.balancer.last_shares(self)
        if self._shares is not None:
            combined = [weighted_sum(self._shares, torch.stack(list(each))) for each in of_features]
            return differentiate(sources, combined, leaves, retain_graph)
        if len(sources) < len(features):
            graph = GraphBehind(sources)
        found = self._of_leaves(leaves, sources, graph, of_features, retain_graph)
        return [found.get(leaf) for leaf in leaves]

    def _of_leaves(
        self,
        leaves: Sequence[Tensor],
        features: Sequence[Tensor],
        graph: GraphBehind,
        of_features: Sequence[Sequence[Tensor]],
        retain_graph: bool,
    ) -> Mapping[Tensor, Tensor]:
        """Decide on this pass's gradients, and return that of each leaf.

        Args:
            leaves: all that the features depend on.
            features: those of this step that a gradient came to.
            graph: what is behind them.
            of_features: the T tasks' gradients of each of them, in its shape.
            retain_graph: whether to keep the graph.
        """
        assert self.wrt is not None
        self.gated = True
        balancer, index = self.balancer, self.balancer.index(self.given)
        if self.given is not None:
            of_features = [list(compress(each, self.given)) for each in of_features]
        others = set(leaves).difference(self.wrt)
        by_gramian = balancer.reads == "gramian" and balancer._ranks.size == 1
        forms = self._forms_gradients or not by_gramian
        kind = forms, len(graph.users), len(of_features[0]), [z.shape for z in features]
        trunk = TaskGradients(
            features,
            graph,
            of_features,
            [*self.wrt, *others],
            len(self.wrt),
            forms,
            recomputes=self._recomputes([z.grad_fn for z in features]),
            retain_graph=retain_graph,
            by_autograd=kind == balancer.trunk_by_autograd,
        )
        balancer.recomputes = trunk.recomputes
        balancer.trunk_by_autograd = kind if trunk.by_autograd else None
        if not trunk.reached:
            raise ForkError(nothing_measured(balancer, observed=True))
        if balancer.lists_parameters:
            reached = trunk.leaves_reached
            self._tell_unreached({k for k, parameter in enumerate(self.wrt) if parameter in reached})
        if balancer.replaces_gradients and trunk.has_sparse:
            raise TypeError(_sparse(balancer))
        if by_gramian:
            gramian = self._of_all_tasks(self._of_all_tasks(trunk.gramian(self.weights.dtype), index).mT, index)
            self._shares, _ = balancer.decide(self, [], gramian)
        else:
            columns = trunk.columns()
            columns = [self._of_all_tasks(column, index) for column in columns]
            self._shares, directions = balancer.decide(self, columns)
            if directions is not None:
                replaced = {leaf: real_as(each, leaf) for leaf, each in zip(self.wrt, directions, strict=True)}
                ones = self._shares.new_ones(len(of_features[0]))
                return trunk.combined(ones, others) | replaced
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
        self._release()
        read_at_a_fork.pop(self._pass, None)
        super()._end()


class HeldStep(MeasuringStep):
    """The first evaluation in a block of ``held()``, of a method that combines.

    The losses have the weights held. Some of these may be zero, so each loss is differentiated by itself.

    Args:
        balancer, call: see `Step`.
        own: ``(T,)``: what the method's `weigh` multiplies the losses by.
    """

    def __init__(self, balancer: "GradientBalancer", call: Call, own: Tensor) -> None:
        super().__init__(balancer, call)
        self._own = own

    def _begin(self, losses: Entries) -> None:
        fork, dtype = self.balancer.fork, self._own.dtype
        # Scaled as this pass is: a GradScaler keeps gradients from underflow.
        self.factors = self._own * scale_of(self.factors.to(dtype), self.weights.to(dtype))
        self.weights = self._own
        if self.wrt is not None:
            measurement = self._measurement(adds_up=True)
            self._differentiate(losses, measurement, self.factors)
            columns = measurement.columns()
        else:
            assert fork is not None
            with as_measurements(root.edge.node for root in roots(losses) if root is not None):
                found = feature_gradients(fork, losses, self.factors)
            columns = [dense(column) for column in found]
        if not columns:
            raise ForkError(nothing_measured(self.balancer, observed=self.wrt is not None))
        self.balancer.decide(self, columns)


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
        """Return the tasks that were given but whose gradient did not come."""
        if any(isinstance(gradients, Tensor) for gradients in self._gradients):
            return []
        came = [any(gradients[i] is not None for gradients in self._gradients) for i in range(self._num_tasks)]
        return [i for i, some in enumerate(came) if not some and (given is None or given[i])]

    def one_by_one(self) -> list[Sequence[Tensor]]:
        """Return the T gradients of each tensor of features; zeros for an independent loss."""
        return [
            gradients.unbind()
            if isinstance(gradients, Tensor)
            else [torch.zeros_like(z) if gradient is None else gradient for gradient in gradients]
            for z, gradients in zip(self.features, self._gradients, strict=True)
        ]

    def stacked(self) -> list[Tensor]:
        """Return the same in one tensor for each, ``(T, *z.shape)``."""
        return [
            known if isinstance(known, Tensor) else torch.stack(list(gradients))
            for known, gradients in zip(self._gradients, self.one_by_one(), strict=True)
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


def _sparse(balancer: "GradientBalancer") -> str:
    return (
        f"{type(balancer).__name__} replaces the gradients of wrt, which it can't where they are sparse: make the "
        f"embedding with sparse=False" + (", or leave it out of wrt" if balancer.fork is None else "")
    )
