"""Take the tasks' gradients from one backward pass.

Measured on the graph already recorded. At a fork, each task's gradient of the features arrives by itself; that of a
layer before it is a vector-Jacobian product of what lies between. Each is reduced to its norm as it arrives, or waits
for a few others where calls cost more than memory: see `Measurement._gathered_at_once`. Gradients that are to be
averaged before their norm is taken are kept.
"""

import weakref
from collections.abc import Callable, Collection, Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from ..graph_behind import GraphBehind
from ..own_precision import own_precision
from ..torch_internals import current_pass, foreach_norm, recorded_nodes, without_hooks
from .between import Between
from .ghost_norms import GhostNorms, ghost_norms
from .layer import Linear, linear
from .row_products import Purpose, RowProducts, cost_of_double, is_less, way_for
from .task_gradients import TaskGradients, dense
from .vector_jacobian import gradients as vector_jacobian
from .vector_jacobian import idle_passes, in_one_pass

CHEAP_ENTRIES = 2**18
"""Entries, 1 MiB of single precision, whose memory is worth less than the operator calls that they save."""
MOST_HELD = 2**20
"""Entries, 4 MiB of single precision, up to which gradients of several tasks are held for each other."""
MANY = 2**16
"""Entries whose squares are summed in parts on a CPU: a sum of millions in single precision is off by 1e-4."""
FEW_PRODUCTS = 4
"""Number of tasks from which on weight gradients are formed faster by one batched product, with the copy it needs."""
SMALL = 2**15
"""Entries of the features up to which they are: larger ones are copied no faster than operators are called."""


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
        self._overwrite = overwrite
        self._expected = expected
        self._idle = idle
        self._observed = 0
        """Number of tasks whose gradients of the features at hand waited, or were differentiated by themselves."""
        self._at_once = 1
        """Number of tasks whose gradients of the features at hand wait for each other: see `_gathered_at_once`."""
        self._by_rows = False
        """Whether the norms of the layer at hand are taken without forming its weight's gradients."""
        self._late: RemovableHandle | None = None
        """The hook on the features' node that takes the gradients which still wait when this node runs."""
        self._gathered: dict[int, Tensor] = {}
        """By task, gradients of the features at hand that wait."""
        self._waiting: list[tuple[Tensor, int, Tensor]] = []
        """Features, and a task's gradient of them, that are differentiated together."""
        self.missing: set[int] = set()
        """Tasks that were given, but have no gradient of a parameter."""
        self.reached: set[int] = set()
        """The parameters, by place, that a loss was found to depend on."""
        self.has_sparse = False
        """Whether gradients of parameters are sparse."""
        self.observed = False
        """Whether a gradient of the features came."""
        self._recomputes = False
        self._wrt = wrt
        self._adds_up = adds_up
        self._dtype = dtype
        self._of_task: list[list[Tensor] | None] = [None] * num_tasks
        self._of_all: list[Tensor] | None = None
        self._layer: tuple[Tensor, Linear | None] | None = None
        self._ghosts: GhostNorms | None = None
        """Measures norms at the features at hand, where that is less work than forming the gradients."""
        self._products: RowProducts | None = None
        self._num_tasks = expected or num_tasks
        self._forms_gradients = forms_gradients

    def observe(self, z: Tensor, task: int | None, gradients: Tensor, free_entries: int) -> None:
        """Take what a `Fork` observed: gradients of features ``z``, one task's or, for None, those of all."""
        self.observed = True
        if gradients.layout is not torch.strided:
            gradients = gradients.to_dense()
        if self._wrt is None:
            gradients = dense(gradients)
            norms = [row_norms(gradients, self._dtype) if task is None else self._norm(gradients)]
            self._keep(task, norms)
            return
        layer = self._layer_of(z)
        if task is None:
            self._keep(None, self._all(z, layer, gradients, free_entries))
        elif self._at_once > 1:
            self._gather(z, task, gradients)
        elif layer is not None:
            self._keep(task, self._of_one(layer, gradients))
        elif self._recomputes:
            if all(z is not other for other, _, _ in self._waiting):
                # The node of the features runs when all tasks' gradients of them have come.
                assert z.grad_fn is not None
                z.grad_fn.register_prehook(_in_this_pass(weakref.WeakMethod(self._differentiate_waiting)))
            self._waiting.append((z, task, gradients))
        else:
            self._keep(task, self._differentiated(z, gradients))
            self._observed += 1
            if self._observed == self._expected:
                self._idle_passes(get_gradient_edge(z), gradients)

    def _gathered_at_once(self, z: Tensor, layer: Linear | None) -> int:
        """Return the number of tasks whose norms are taken at once, which calls each operator once, not for each task.

        Features' gradients wait until then. With what taking the norms needs, they take no more memory than T + 1
        gradients of the features and two of the layer, up to `MOST_HELD`; or than one of the layer.
        """
        if layer is not None:
            size = layer.inputs.shape[1] * (z.numel() // max(1, len(layer.inputs)))  # a batch may be empty
            copies = way_for(layer.inputs, len(layer.inputs)).copies
            each = z.numel() + max(z.numel(), copies * z.numel() if self._by_rows else size)
        elif self._ghosts is not None:
            size, each = self._ghosts.num_not_formed(), max(z.numel(), self._ghosts.num_needed())
        else:
            return 1
        held = max(size, min(MOST_HELD, (self._expected + 1) * z.numel() + 2 * size))
        at_once = min(self._expected, held // max(1, each))
        if layer is not None and not self._by_rows and (at_once < FEW_PRODUCTS or z.numel() > SMALL):
            return 1
        return at_once

    def _gather(self, z: Tensor, task: int, gradient: Tensor) -> None:
        if self._observed == 0:
            # A task may have no gradient: then what came is taken when the features' node runs.
            assert z.grad_fn is not None
            self._late = z.grad_fn.register_prehook(_in_this_pass(weakref.WeakMethod(self.take_gathered)))
        self._gathered[task] = gradient
        self._observed += 1
        if len(self._gathered) == self._at_once or self._observed == self._expected:
            self.take_gathered()
        if self._observed == self._expected and self._late is not None:
            self._late.remove()

    def take_gathered(self) -> None:
        """Take the norms of the gradients that have come and wait for others."""
        if not self._gathered:
            return
        assert self._layer is not None
        gathered, self._gathered = sorted(self._gathered.items()), {}
        (z, layer), tasks = self._layer, [task for task, _ in gathered]
        gradients = [gathered.pop(0)[1] for _ in tasks]
        with own_precision(z):
            if layer is not None:
                size = layer.inputs.shape[1] * (z.numel() // len(layer.inputs))
                of_all = torch.stack(gradients)
                gradients.clear()
                [norms] = self._of_several(layer, of_all, size)
            else:
                norms = self._ghost_norms(gradients)
        if len(tasks) == len(self._of_task):
            self._of_all = [norms]
        else:
            for task, norm in zip(tasks, norms.unbind(), strict=True):
                self._of_task[task] = [norm]

    def _ghost_norms(self, gradients: list[Tensor]) -> Tensor:
        """Return some tasks' norms, and take their gradients of the features out of the list."""
        assert self._ghosts is not None
        with without_hooks(self._wrt or ()):
            norms = self._ghosts.norms(gradients, self._dtype)
        self._note(self._ghosts.reached)
        return norms

    def _layer_of(self, z: Tensor) -> Linear | None:
        """Return the linear layer that ``z`` comes from, if it does; the graph is searched once for each ``z``."""
        assert self._wrt is not None
        if self._layer is None or self._layer[0] is not z:
            self._layer, self._observed = (z, linear(z, self._wrt)), 0
            self._products = self._ghosts = None
            between = Between(GraphBehind([z]), self._wrt) if self._layer[1] is None else None
            self._recomputes = between is not None and between.recomputes
            if between is not None and not (self._adds_up or self._forms_gradients or self._recomputes):
                self._ghosts = ghost_norms(z, between, self._num_tasks)
            self._by_rows = self._layer[1] is not None and self._takes_rows(z, self._layer[1])
            self._at_once = 1 if self._adds_up else self._gathered_at_once(z, self._layer[1])
        return self._layer[1]

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
            found = TaskGradients(GraphBehind(features), gradients, self._wrt, len(self._wrt), self._forms_gradients)
            self._note(found.leaves_reached)
            return found.gramian(self._dtype) if found.reached else None
        self.reached.update(range(len(layer.parts)))
        rows = _rows(gradients[0], layer, 1)
        num_tasks, _, outputs = rows.shape
        if self._forms_gradients or not self._is_less(layer, outputs, num_tasks, "gramian"):
            return None
        rows = layer.before_relu(rows, overwrite=False).unsqueeze(1)
        return _products_of(layer).inner_products(rows).to(self._dtype)

    def _differentiate_waiting(self) -> None:
        """Differentiate the gradients of the features that have come so far, of all tasks in one pass."""
        waiting, self._waiting = self._waiting, []
        features = list({id(z): z for z, _, _ in waiting}.values())
        tasks = sorted({task for _, task, _ in waiting})
        given = {(id(z), task): gradient for z, task, gradient in waiting}
        if not waiting:
            return
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

    def _all(self, z: Tensor, layer: Linear | None, gradients: Tensor, free_entries: int) -> list[Tensor]:
        """Return what is kept of several tasks' gradients of ``z``, each ``(T, ...)``."""
        if layer is not None:
            return self._of_several(layer, gradients, free_entries)
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

    def _of_one(self, layer: Linear, gradient: Tensor) -> list[Tensor]:
        self.reached.update(range(len(layer.parts)))
        rows = layer.before_relu(_rows(gradient, layer, 0), overwrite=False)
        if self._by_rows:
            return [self._row_norms(layer, rows.unsqueeze(0))[0]]
        parts = layer.gradient(rows)
        return parts if self._adds_up else [self._norm(part) for part in parts]

    def _of_several(self, layer: Linear, gradients: Tensor, free_entries: int) -> list[Tensor]:
        self.reached.update(range(len(layer.parts)))
        gradients = layer.before_relu(_rows(gradients, layer, 1), self._overwrite)
        if self._adds_up:
            return layer.gradients(gradients)
        num_tasks, num_rows, num_outputs = gradients.shape
        if self._by_rows:
            each = way_for(layer.inputs, num_rows).copies * num_rows * num_outputs
            at_once = 1 + max(free_entries, CHEAP_ENTRIES) // each
            return [torch.cat([self._row_norms(layer, some) for some in gradients.split(at_once)])]
        size = num_outputs * layer.inputs.shape[1]
        # As many products at a time as fit into what is free, a copy of the features and two of the layer's gradient.
        at_once = 2 + (max(free_entries, CHEAP_ENTRIES) + num_rows * num_outputs) // size
        if at_once >= num_tasks:
            return [joint_norms(layer.gradients(gradients), self._dtype)]
        return [torch.cat([joint_norms(layer.gradients(some), self._dtype) for some in gradients.split(at_once)])]

    def _takes_rows(self, z: Tensor, layer: Linear) -> bool:
        """Return whether norms are taken without forming the weight's gradients."""
        if self._adds_up or self._forms_gradients:
            return False
        return self._is_less(layer, z.numel() // max(1, len(layer.inputs)), self._num_tasks, "norms")

    def _is_less(self, layer: Linear, outputs: int, num_tasks: int, purpose: Purpose) -> bool:
        """Return whether the weight's gradients are more work than doing without them."""
        if "weight" not in layer.parts:
            return False
        num_rows, inputs = layer.inputs.shape
        double = cost_of_double(layer.inputs)
        return is_less(way_for(layer.inputs, num_rows), num_rows, inputs, outputs, num_tasks, purpose, double)

    def _row_norms(self, layer: Linear, gradients: Tensor) -> Tensor:
        """Return the norms ``(T,)`` for gradients ``(T, N, out)`` of the layer's outputs."""
        if self._products is None:
            self._products = _products_of(layer)
        return self._products.squared_norms(gradients.unsqueeze(1)).sqrt().to(self._dtype)

    def _reduced(self, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        assert self._wrt is not None
        if not self._wrt:
            return []
        if self._adds_up:
            pairs = zip(gradients, self._wrt, strict=True)
            return [dense(torch.zeros_like(parameter) if part is None else part) for part, parameter in pairs]
        some = [_in_parts(dense(gradient), self._dtype) for gradient in gradients if gradient is not None]
        if len(some) == 1:
            return [self._norm(some[0])]
        if not some:
            return [torch.zeros((), dtype=self._dtype, device=self._wrt[0].device)]
        wide = reduce(torch.promote_types, (gradient.dtype for gradient in some), self._dtype)
        return [self._norm(torch.stack(foreach_norm(some, wide)))]

    def _norm(self, tensor: Tensor) -> Tensor:
        wide = torch.promote_types(tensor.dtype, self._dtype)
        norm: Tensor = torch.linalg.vector_norm(_in_parts(tensor, self._dtype), dtype=wide)
        return norm.to(self._dtype)


def _products_of(layer: Linear) -> RowProducts:
    """Return what takes the place of the layer's inputs."""
    return way_for(layer.inputs, len(layer.inputs)).of(layer.inputs.unsqueeze(0), "bias" in layer.parts)


def _in_parts(tensor: Tensor, dtype: torch.dtype, first: int = 0) -> Tensor:
    """Return the norms of a large tensor's parts, beside its first dimension where ``first`` is 1; of others itself."""
    dims = range(first, tensor.ndim)
    if len(dims) < 2 or tensor.numel() <= MANY * (len(tensor) if first else 1) or not tensor.is_cpu:
        return tensor
    slowest = max(dims, key=tensor.stride)  # parts lie in memory one after another
    wide = torch.promote_types(tensor.dtype, dtype)
    parts: Tensor = torch.linalg.vector_norm(tensor, dim=[k for k in dims if k != slowest], dtype=wide)
    return parts


def _rows(gradients: Tensor, layer: Linear, dim: int) -> Tensor:
    """Return ``gradients`` with the dimensions from ``dim`` on as the layer has them, ``(N, out)``."""
    if gradients.ndim == dim + 2 and gradients.shape[dim] == len(layer.inputs):
        return gradients
    return gradients.reshape(*gradients.shape[:dim], len(layer.inputs), -1)


def _in_this_pass(late: "weakref.WeakMethod[Callable[[], None]]") -> Callable[[object], None]:
    """Return a hook that calls a method in the pass that is under way, while its object lives.

    A node that held the object would keep its graph for ever. Other passes, such as another fork's measurements, run
    the same node.
    """
    number = current_pass()

    def hook(_: object) -> None:
        if current_pass() == number and (call := late()) is not None:
            call()

    return hook


def row_norms(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """``(T,)``: the norm of each of T tensors stacked; one number for each of them is its norm already."""
    if rows.ndim == 1:
        return rows
    rows = _in_parts(rows, dtype, first=1)
    wide = torch.promote_types(rows.dtype, dtype)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=tuple(range(1, rows.ndim)), dtype=wide)
    return norms.to(dtype)


def joint_norms(columns: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """``(T,)``: each task's joint norm over columns of shape ``(T, ...)``."""
    return reduce(torch.hypot, [row_norms(column, dtype) for column in columns])
