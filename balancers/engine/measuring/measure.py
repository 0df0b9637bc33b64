"""Take the tasks' gradients from one backward pass.

Measured on the graph already recorded. At a fork, each task's gradient of the features arrives by itself; that of a
layer before it is a vector-Jacobian product of what lies between. Each is reduced to its norm as it arrives, or waits
for a few others where calls cost more than memory. Gradients that are to be averaged before their norm is taken are
kept.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ..graph_behind import GraphBehind
from ..own_precision import own_precision
from ..torch_internals import recorded_nodes, without_hooks
from .between import Between
from .ghost_norms import GhostNorms, ghost_norms
from .layer import Linear, linear
from .layer_gradients import LayerGradients
from .norms import norm, norm_of_all, row_norms
from .task_gradients import TaskGradients, dense
from .vector_jacobian import gradients as vector_jacobian
from .vector_jacobian import idle_passes, in_one_pass
from .waiting import Waiting

MOST_HELD = 2**20
"""Entries, 4 MiB of single precision, up to which gradients of several tasks are held for each other."""


class Measurement:
    """Takes the tasks' gradients, in whatever order they come.

    Args:
        num_tasks: T.
        wrt: the parameters to take gradients of; None: the features.
        adds_up: whether what is measured is to be summed, over several features or passes: gradients of parameters are
            then kept. Norms of features go by squares: other samples' features are other variables.
        dtype: of the norms.
        overwrite: whether all tasks' gradients, when they come as one, are lost to the caller.
        expected: the number of tasks whose gradients of one tensor of features come one by one; 0 if that is not known.
        idle: the number of passes to make besides the tasks' own. FSDP gathers parameters in each pass, so that all
            ranks must make as many, whatever tasks they have.
        forms_gradients: whether norms are always taken of gradients that are formed: see `row_products`.
    """

    def __init__(
        self,
        num_tasks: int,
        wrt: Sequence[nn.Parameter] | None,
        adds_up: bool,
        dtype: torch.dtype,
        overwrite: bool = True,
        expected: int = 0,
        idle: int = 0,
        forms_gradients: bool = True,
    ) -> None:
        self._wrt = wrt
        self._adds_up = adds_up
        self._dtype = dtype
        self._overwrite = overwrite
        self._expected = expected
        self._idle = idle
        self._forms_gradients = forms_gradients
        self._num_tasks = expected or num_tasks

        self.missing: set[int] = set()
        """Tasks that were given, but have no gradient of a parameter."""
        self.reached: set[int] = set()
        """The parameters, by place, that a loss was found to depend on."""
        self.has_sparse = False
        """Whether gradients of parameters are sparse."""
        self.observed = False
        """Whether a gradient of the features came."""
        self._of_task: list[list[Tensor] | None] = [None] * num_tasks
        self._of_all: list[Tensor] | None = None

        self._z: Tensor | None = None
        """The features at hand."""
        self._layer: LayerGradients | None = None
        """Takes gradients of these features to the linear layer that they come from, if they do."""
        self._ghosts: GhostNorms | None = None
        """Takes norms through what else is behind them, where that is less work than forming the gradients."""
        self._recomputes = False
        """Whether a checkpoint is behind them: all tasks are then differentiated in one pass."""
        self._at_once: int | None = None
        """Number of tasks whose norms are taken together; None where nobody has asked."""
        self._observed = 0
        """Number of tasks whose gradients of them came, and waited or went through the graph."""
        self._for_others = Waiting(self.take_waiting)
        """Gradients of the features at hand that wait for other tasks', so that norms are taken together."""
        self._for_one_pass = Waiting(self._differentiate_waiting)
        """Gradients of features behind which there are checkpoints: all are differentiated in one pass."""

    def observe(self, z: Tensor, task: int | None, gradients: Tensor, free_entries: int) -> None:
        """Take what a `Fork` observed: gradients of features ``z``, one task's or, for None, those of all."""
        self.observed = True
        if gradients.layout is not torch.strided:
            gradients = gradients.to_dense()
        if self._wrt is None:
            gradients = dense(gradients)
            take = row_norms if task is None else norm
            self._keep(task, [take(gradients, self._dtype)])
            return
        self._look_behind(z)
        if task is None:
            self._keep(None, self._of_several(z, gradients, free_entries))
        elif self._recomputes:
            self._for_one_pass.add(z, task, gradients)
        elif (at_once := self._tasks_at_once(z)) > 1:
            self._for_others.add(z, task, gradients)
            self._observed += 1
            if len(self._for_others) == at_once or self._observed == self._expected:
                self.take_waiting()
        elif self._layer is not None:
            self._keep(task, self._layer.gradient(gradients) if self._adds_up else self._layer.norm_parts(gradients))
        else:
            self._keep(task, self._differentiated(z, gradients))
            self._observed += 1
            if self._observed == self._expected:
                self._idle_passes(get_gradient_edge(z), gradients)

    def _look_behind(self, z: Tensor) -> None:
        """Find what features come from. The graph is searched once for each ``z``."""
        assert self._wrt is not None
        if self._z is z:
            return
        self._z, self._observed, self._at_once = z, 0, None
        self._recomputes, self._layer, self._ghosts = False, None, None
        layer = linear(z, self._wrt)
        if layer is not None:
            self._layer = self._gradients_of(z, layer, self._num_tasks)
            self.reached.update(range(len(layer.parts)))
        else:
            between = Between(GraphBehind([z]), self._wrt)
            self._recomputes = between.recomputes
            if not (self._adds_up or self._forms_gradients or self._recomputes):
                self._ghosts = ghost_norms(z, between, self._num_tasks)

    def _gradients_of(self, z: Tensor, layer: Linear, num_tasks: int) -> LayerGradients:
        return LayerGradients(z, layer, num_tasks, self._dtype, self._forms_gradients, self._overwrite)

    def _tasks_at_once(self, z: Tensor) -> int:
        """Return the number of tasks whose norms are taken at once, behind the features at hand."""
        if self._at_once is None:
            self._at_once = 1 if self._adds_up else self._most_at_once(z.numel(), self._layer or self._ghosts)
        return self._at_once

    def _most_at_once(self, entries: int, by: LayerGradients | GhostNorms | None) -> int:
        """Return how many tasks' norms it pays to take at once, which calls each operator once, not for each task.

        Gradients of the features, each of so many entries, wait until then. With what taking the norms needs, they take
        no more memory than T + 1 of them and two of the layer's, up to `MOST_HELD`; or than one of the layer's.
        """
        if by is None:
            return 1
        held = max(by.weight_entries, min(MOST_HELD, (self._expected + 1) * entries + 2 * by.weight_entries))
        at_once = min(self._expected, held // max(1, by.entries_needed))
        return at_once if by.gains(at_once) else 1

    def take_waiting(self) -> None:
        """Take the norms of the gradients that have come and wait for others.

        The step calls this too, at its end: a pass to the features alone (``backward(inputs=...)``) runs no node of
        theirs.
        """
        waiting = self._for_others.take()
        if not waiting:
            return
        z, tasks = waiting[0].features, [entry.task for entry in waiting]
        gradients = [waiting.pop(0).gradient for _ in tasks]
        with own_precision(z):
            if self._layer is not None:
                of_all = torch.stack(gradients)
                gradients.clear()
                norms = self._layer.norms(of_all, self._layer.weight_entries)
            else:
                norms = self._ghost_norms(gradients)
        if len(tasks) == len(self._of_task):
            self._of_all = [norms]
        else:
            for task, each in zip(tasks, norms.unbind(), strict=True):
                self._of_task[task] = [each]

    def _ghost_norms(self, gradients: list[Tensor]) -> Tensor:
        """Return some tasks' norms, and take their gradients of the features out of the list."""
        assert self._ghosts is not None
        with without_hooks(self._wrt or ()):
            norms = self._ghosts.norms(gradients, self._dtype)
        self._note(self._ghosts.reached)
        return norms

    def observe_all(self, features: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Take all tasks' gradients, each ``(T, *z.shape)``, of all features ``z`` of a step."""
        if len(features) > 1 and self._wrt is not None and Between(GraphBehind(features), self._wrt).recomputes:
            rows = self._together([get_gradient_edge(z) for z in features], gradients)
            self._keep(None, [torch.stack(column) for column in zip(*rows, strict=True)])
            return
        for z, of_all in zip(features, gradients, strict=True):
            self.observe(z, None, of_all, free_entries=0)

    def gramian(self, features: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor | None:
        """Return the inner products ``(T, T)`` of all tasks' gradients; for the arguments see `observe_all`.

        None where the features are the layer itself, and products are no more arithmetic.
        """
        assert self._wrt is not None
        layer = linear(features[0], self._wrt) if len(features) == 1 else None
        if layer is None:
            graph = GraphBehind(features)
            one_by_one = [each.unbind() for each in gradients]
            found = TaskGradients(features, graph, one_by_one, self._wrt, len(self._wrt), self._forms_gradients)
            self._note(found.leaves_reached)
            return found.gramian(self._dtype) if found.reached else None
        self.reached.update(range(len(layer.parts)))
        return self._gradients_of(features[0], layer, len(gradients[0])).inner_products(gradients[0])

    def _differentiate_waiting(self) -> None:
        """Differentiate the gradients of the features that have come so far, of all tasks in one pass."""
        waiting = self._for_one_pass.take()
        if not waiting:
            return
        features = list({id(entry.features): entry.features for entry in waiting}.values())
        tasks = list(dict.fromkeys(entry.task for entry in waiting))
        given = dict[tuple[int, int], Tensor]()
        for z, task, gradient in waiting:  # of one tensor that went through the fork twice, two
            before = given.get((id(z), task))
            given[id(z), task] = gradient if before is None else before + gradient
        rows = [
            torch.stack([torch.zeros_like(z) if (g := given.get((id(z), task))) is None else g for task in tasks])
            for z in features
        ]
        for task, found in zip(tasks, self._together([get_gradient_edge(z) for z in features], rows), strict=True):
            self._keep(task, found)

    def differentiate(self, losses: Sequence[tuple[GradientEdge, Tensor] | None], together: bool) -> bool:
        """Take the gradients of the parameters from the losses: each one's edge and the gradient to start with there.

        With ``together`` all are differentiated in one pass, so that a checkpoint on the way is recomputed once.
        Without it, the others are as soon as a pass has recomputed one.

        Returns:
            Whether they were differentiated in one pass, and are the next time.
        """
        assert self._wrt is not None
        waiting = [(task, *loss) for task, loss in enumerate(losses) if loss is not None]
        edge, seed = waiting[0][1:]
        while waiting and not together:
            before = recorded_nodes()
            task, start, gradient = waiting.pop(0)
            self._found(task, self._gradients([start], [gradient]))
            together = recorded_nodes() > before
        if waiting:
            seeds = [
                torch.stack([seed if i == j else torch.zeros_like(seed) for j in range(len(waiting))])
                for i, (_, _, seed) in enumerate(waiting)
            ]
            found = self._in_one_pass([edge for _, edge, _ in waiting], seeds)
            for (task, _, _), gradients in zip(waiting, found, strict=True):
                self._found(task, gradients)
        else:
            self._idle_passes(edge, seed)
        return together

    def _found(self, task: int, gradients: Sequence[Tensor | None]) -> None:
        if len(self.reached) < len(gradients):
            self.has_sparse = self.has_sparse or any(each is not None and each.is_sparse for each in gradients)
        self._note_given(gradients)
        if all(gradient is None for gradient in gradients):
            self.missing.add(task)
        self._of_task[task] = self._reduced(gradients)

    def _together(self, edges: Sequence[GradientEdge], rows: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return what is kept of several tasks' gradients of features, each ``(T, ...)``, from one pass."""
        found = self._in_one_pass(edges, rows)
        for row in found:
            self._note_given(row)
        return [self._reduced(gradients) for gradients in found]

    def _note(self, parameters: Collection[Tensor]) -> None:
        """Count parameters as reached."""
        assert self._wrt is not None
        if len(self.reached) < len(self._wrt):
            self.reached.update(k for k, parameter in enumerate(self._wrt) if parameter in parameters)

    def _note_given(self, gradients: Sequence[Tensor | None]) -> None:
        """Count the parameters as reached that have a gradient."""
        if len(self.reached) < len(gradients):
            self.reached.update(k for k, gradient in enumerate(gradients) if gradient is not None)

    # Hooks on the parameters see the gradient that training takes, once. Norms by way of a layer never reach them.

    def _gradients(self, edges: Sequence[GradientEdge], seeds: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        assert self._wrt is not None
        with without_hooks(self._wrt):
            return vector_jacobian(edges, self._wrt, seeds)

    def _in_one_pass(self, edges: Sequence[GradientEdge], seeds: Sequence[Tensor]) -> list[list[Tensor | None]]:
        assert self._wrt is not None
        with without_hooks(self._wrt):
            return in_one_pass(edges, self._wrt, seeds, self._idle)

    def _idle_passes(self, edge: GradientEdge, like: Tensor) -> None:
        assert self._wrt is not None
        with without_hooks(self._wrt):
            idle_passes(edge, self._wrt, like, self._idle)

    def without_gradient(self, given: Sequence[bool] | None) -> list[int]:
        """Return the tasks that were given but whose gradient did not come to the features."""
        if self._of_all is not None:
            return []
        return [i for i, parts in enumerate(self._of_task) if parts is None and (given is None or given[i])]

    def columns(self) -> list[Tensor]:
        """Return what was measured, each ``(T, ...)``: zeros for a task without a gradient; empty if none arrived.

        Each task's part is freed when it is in its column.
        The norm of a task's gradient is the joint norm of its rows: see `joint_norms`.
        """
        if self._wrt is not None and not self.reached:
            return []
        some = next((parts for parts in self._of_task if parts is not None), None)
        if some is None:
            return self._of_all or []
        rows = [[torch.zeros_like(part) for part in some] if parts is None else parts for parts in self._of_task]
        size, self._of_task, some = len(some), [], None
        columns = [torch.stack([parts.pop(0) for parts in rows]) for _ in range(size)]
        return columns if self._of_all is None else self._sum(columns, self._of_all)

    def _keep(self, task: int | None, new: list[Tensor]) -> None:
        if task is None:
            self._of_all = new if self._of_all is None else self._sum(self._of_all, new)
        else:
            before = self._of_task[task]
            self._of_task[task] = new if before is None else self._sum(before, new)

    def _sum(self, before: list[Tensor], new: list[Tensor]) -> list[Tensor]:
        assert self._wrt is None or self._adds_up
        combine = torch.hypot if self._wrt is None else torch.add
        return [combine(a, b) for a, b in zip(before, new, strict=True)]

    def _of_several(self, z: Tensor, gradients: Tensor, free_entries: int) -> list[Tensor]:
        """Return what is kept of several tasks' gradients of ``z``, each ``(T, ...)``."""
        if self._layer is not None:
            if self._adds_up:
                return self._layer.gradients(gradients)
            return [self._layer.norms(gradients, free_entries)]
        if self._recomputes:
            rows = self._together([get_gradient_edge(z)], [gradients])
        else:
            rows = [self._differentiated(z, gradient) for gradient in gradients]
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    def _differentiated(self, z: Tensor, gradient: Tensor) -> list[Tensor]:
        """Return what is kept of one task's, by way of the graph."""
        if self._ghosts is not None:
            return [self._ghost_norms([gradient])[0]]
        found = self._gradients([get_gradient_edge(z)], [gradient])
        self._note_given(found)
        return self._reduced(found)

    def _reduced(self, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        assert self._wrt is not None
        if not self._wrt:
            return []
        if self._adds_up:
            pairs = zip(gradients, self._wrt, strict=True)
            return [dense(torch.zeros_like(parameter) if part is None else part) for part, parameter in pairs]
        some = [gradient for gradient in gradients if gradient is not None]
        if not some:
            return [self._wrt[0].new_zeros((), dtype=self._dtype)]
        return [norm_of_all(map(dense, some), self._dtype)]
