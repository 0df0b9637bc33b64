r"""All tasks' gradients of the trunk's parameters: their inner products, and the weighted sum once weights are known.

The tasks' gradients of the features are taken through the trunk one after another. At a linear layer, such a pass
yields the gradient of the layer's outputs, :math:`d_i`, and no weight gradient. Where that is less arithmetic (see
`row_products`), the inner products of two tasks are :math:`\langle R d_i, R d_j \rangle`, and the weighted sum is one
product, :math:`(\sum_i \lambda_i d_i)^\top x`. The same holds of a convolution. Elsewhere, weight gradients of a
linear layer are formed by one batched product where a method reads them or tasks are more than three; other gradients
are formed by autograd.
"""

from collections.abc import Collection, Sequence
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from ..graph_behind import GraphBehind
from ..torch_internals import LinearNode, flattened, recorded_nodes, unflattened, without_hooks
from .between import Between
from .ghost_norms import Layer, Use, layers_between
from .vector_jacobian import NodeGradients, in_one_pass, stacked

COPIED_FASTER = 2**16
"""Entries that are copied faster than operators are called."""
FEW = 3
"""Number of tasks up to which gradients are multiplied one by one, without a copy in which they lie side by side."""


def dense(gradient: Tensor) -> Tensor:
    """Return a gradient as real, dense numbers: inner products and norms of complex ones are those of their parts."""
    gradient = gradient.to_dense() if gradient.layout is not torch.strided else gradient
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient


def real_as(numbers: Tensor, like: Tensor) -> Tensor:
    """Return real numbers in the type of ``like``, which may be complex: see `dense`."""
    return torch.view_as_complex(numbers).to(like.dtype) if like.is_complex() else numbers.to(like.dtype)


def widened(rows: Tensor) -> Tensor:
    """Return ``rows`` in single precision, or in double if they are."""
    return rows if rows.dtype.itemsize >= torch.float32.itemsize else rows.float()


def weighted_sum(weights: Tensor, gradients: Tensor) -> Tensor:
    """``(...)``: of ``weights`` ``(T,)`` and ``gradients`` ``(T, ...)``."""
    # A weight may be larger than half precision holds, where a gradient is small.
    rows = widened(flat(gradients)) if gradients.dtype is torch.float16 else flat(gradients)
    return torch.mv(rows.t(), weights.to(rows.dtype)).to(gradients.dtype).view(gradients.shape[1:])


def flat(gradients: Tensor) -> Tensor:
    """Return the gradients of T tasks, ``(T, ...)``, which may be those of a scalar, as ``(T, n)``."""
    return gradients.flatten(1) if gradients.ndim > 1 else gradients.unsqueeze(1)


class TaskGradients:
    """The gradients of T' tasks behind some features.

    Args:
        features: z, one tensor or several.
        graph: what is behind them.
        of_features: for each of them the T' tasks' gradients, in its shape.
        leaves: parameters behind the features, and other leaves.
        counted: the number of leaves, from the first, that inner products are taken over.
        forms: whether all gradients are to be formed.
        recomputes: whether a checkpoint behind the features is known to run a forward pass again; None if it is not
            known.
        retain_graph: whether to keep the graph behind the features; a checkpoint's is always kept.
        by_autograd: whether it is known that no layer's gradients are better taken from those of its outputs, so that
            autograd forms them all. A wrong answer costs time, or memory.
    """

    def __init__(
        self,
        features: Sequence[Tensor],
        graph: GraphBehind,
        of_features: Sequence[Sequence[Tensor]],
        leaves: Sequence[Tensor],
        counted: int,
        forms: bool,
        recomputes: bool | None = None,
        retain_graph: bool = True,
        by_autograd: bool = False,
    ) -> None:
        self._tasks, self._forms = len(of_features[0]), forms
        self._leaves, self._counted = leaves, set(leaves[:counted])
        edges = [get_gradient_edge(z) for z in features]
        layers, rest = list[Layer](), list(leaves)
        if recomputes is None or not (recomputes or by_autograd):
            between = Between(graph, leaves)
            recomputes = between.recomputes if recomputes is None else False
            if not recomputes:
                layers, rest = layers_between(between, self._is_batched if forms else self._is_chosen)
        self.by_autograd = not (recomputes or layers)
        """Whether autograd formed all gradients one by one."""
        self.recomputes = bool(recomputes)
        """Whether a checkpoint ran a forward pass again; gradients are then taken in one pass the next time."""
        nodes = list({use.node: None for layer in layers for use in layer.uses})
        found = list[Sequence[Tensor | None]]()
        with without_hooks(leaves):
            if self.recomputes:
                found += in_one_pass(edges, rest, [torch.stack(list(each)) for each in of_features])
            else:
                before = recorded_nodes()
                *first, last = zip(*of_features, strict=True)
                with NodeGradients(nodes) as of_nodes:
                    found += [of_nodes.take(edges, rest, seeds) for seeds in first]
                    if not retain_graph:
                        for layer in layers:
                            layer.keep_inputs()
                    found.append(of_nodes.take(edges, rest, last, retain_graph))
                self.recomputes = recorded_nodes() > before
        columns = [list(column) for column in zip(*found, strict=True)]
        del found
        columns.reverse()  # each is popped, so that no gradient is held twice for longer than its layer takes
        of_node = {node: stacked(columns.pop()) for node in nodes}
        formed = {leaf: _Formed(leaf, columns.pop()) for leaf in rest}
        self._parts: list[_Part] = []
        while layers:
            layer = layers.pop(0)
            part = _ByRows(layer, [of_node.pop(use.node) for use in layer.uses])
            if forms or not layer.is_less(self._tasks, "sum"):
                rows_of = part.formed()
                formed |= {leaf: _Formed(leaf, rows_of.get(leaf, [None] * self._tasks)) for leaf in part.leaves}
            else:
                self._parts.append(part)
            del part, layer
        self._formed = {leaf: rows for leaf, rows in formed.items() if rows.given or forms}
        self.has_sparse = any(self._formed[leaf].is_sparse for leaf in self._counted if leaf in self._formed)
        """Whether gradients of a counted leaf are sparse."""
        little, other = list[_Formed](), list[_Formed]()
        for rows in self._formed.values():
            (little if not forms and rows.leaf in self._counted and rows.is_little else other).append(rows)
        self._parts += other
        self._parts += [_Joined(little)] if len(little) > 1 else little

    def _is_chosen(self, layer: Layer) -> bool:
        """Return whether a layer's gradients are taken from those of its outputs."""
        return self._is_batched(layer) or layer.is_less(self._tasks, "sum")

    def _is_batched(self, layer: Layer) -> bool:
        """Return whether a linear layer's weight gradients are formed for all tasks at once.

        That saves calls for several tasks, and memory as long as there are no more rows than inputs.
        """
        if not isinstance(layer.uses[0].found, LinearNode):
            return False
        return (self._forms or self._tasks > FEW) and layer.shape.rows <= layer.shape.inputs

    @property
    def reached(self) -> bool:
        """Whether a task has a gradient of a counted leaf."""
        return any(part.given and not self._counted.isdisjoint(part.leaves) for part in self._parts)

    @property
    def leaves_reached(self) -> set[Tensor]:
        """The counted leaves that a task has a gradient of."""
        return self._counted.intersection(leaf for part in self._parts if part.given for leaf in part.leaves)

    def gramian(self, dtype: torch.dtype) -> Tensor:
        """Return the inner products of the gradients, ``(T', T')``."""
        parts = [part.products() for part in self._parts if part.given and not self._counted.isdisjoint(part.leaves)]
        return reduce(torch.add, [part.to(dtype) for part in parts])

    def columns(self) -> list[Tensor]:
        """Return the tasks' gradients of each counted leaf, ``(T', ...)``, which were all to be formed."""
        return [self._formed[leaf].side_by_side() for leaf in self._leaves if leaf in self._counted]

    def combined(self, weights: Tensor, some: Collection[Tensor] | None = None) -> dict[Tensor, Tensor]:
        """Return the sums, weighted by ``(T',)``, of all leaves that a task has a gradient for, or of ``some``."""
        found: dict[Tensor, Tensor] = {}
        for part in self._parts:
            if part.given and (some is None or not set(some).isdisjoint(part.leaves)):
                found |= zip(part.leaves, part.combined(weights), strict=True)
        return found


class _Part(Protocol):
    """The tasks' gradients of some leaves."""

    leaves: Sequence[Tensor]
    given: bool
    """Whether a task has a gradient of them."""

    def products(self) -> Tensor:
        """Return the inner products, ``(T', T')``."""

    def combined(self, weights: Tensor) -> Sequence[Tensor]:
        """Return each leaf's weighted sum."""


class _ByRows:
    """A layer, and the gradients of each application's outputs, ``(T', ...)``; None if no task has one."""

    def __init__(self, layer: Layer, raw: Sequence[Tensor | None]) -> None:
        self._layer = layer
        self._raw = [(use, each) for use, each in zip(layer.uses, raw, strict=True) if each is not None]
        self.leaves: Sequence[Tensor] = [layer.uses[0].weight, *([] if layer.bias is None else [layer.bias])]
        self.given = bool(self._raw)

    def products(self) -> Tensor:
        rows = self._layer.rows({use.node: raw for use, raw in self._raw}, len(self._raw[0][1]))
        found = self._layer.products().inner_products(rows)
        self._layer.release()
        return found

    def combined(self, weights: Tensor) -> Sequence[Tensor]:
        return self._gradients([(use, weighted_sum(weights, raw)) for use, raw in self._raw])

    def formed(self) -> dict[Tensor, Tensor]:
        """Return each leaf's gradients, ``(T', ...)``."""
        return dict(zip(self.leaves, self._gradients(self._raw), strict=True)) if self.given else {}

    def _gradients(self, raw: Sequence[tuple[Use, Tensor]]) -> list[Tensor]:
        of_uses = [use.gradients(each, self._layer.bias is not None) for use, each in raw]
        return [reduce(torch.add, parts) for parts in zip(*of_uses, strict=True)]


class _Formed:
    """The tasks' gradients of one leaf, ``(T', ...)``; or one by one, with None for a task without one."""

    def __init__(self, leaf: Tensor, rows: Tensor | Sequence[Tensor | None]) -> None:
        self.leaf, self._rows = leaf, rows
        self.leaves: Sequence[Tensor] = [leaf]
        self._some = leaf if isinstance(rows, Tensor) else next((row for row in rows if row is not None), None)
        self.given = self._some is not None

    @property
    def is_sparse(self) -> bool:
        return self._some is not None and self._some.is_sparse

    @property
    def is_little(self) -> bool:
        """Whether it costs more to call operators on it than to copy it."""
        some = self._some
        if some is None or some.is_complex() or some.layout is not torch.strided:
            return False
        return len(self._rows) * some.numel() <= COPIED_FASTER and some.dtype is torch.get_default_dtype()

    def products(self) -> Tensor:
        if isinstance(self._rows, Tensor) or len(self._rows) > FEW:
            return _products(self.side_by_side())
        wide = [widened(dense(row)).flatten() for row in self.one_by_one()]
        upper = {(i, j): torch.dot(a, wide[j]) for i, a in enumerate(wide) for j in range(i, len(wide))}
        tasks = range(len(wide))
        return torch.stack([upper[min(i, j), max(i, j)] for i in tasks for j in tasks]).view(len(wide), -1)

    def combined(self, weights: Tensor) -> Sequence[Tensor]:
        some = self._or_zero(self._some)
        if isinstance(self._rows, Tensor):
            total = real_as(weighted_sum(weights, self._rows), some)
            return [total.to_sparse(some.sparse_dim()) if self.is_sparse else total]
        # A weight may be larger than half precision holds, where a gradient is small.
        wide = torch.float32 if some.dtype is torch.float16 else some.dtype
        shares = weights.to(wide.to_real()).unbind()
        given = [(share, row.to(wide)) for share, row in zip(shares, self._rows, strict=True) if row is not None]
        total = given[0][1] * given[0][0]
        for share, row in given[1:]:
            total = total + row * share if row.is_sparse or total.is_sparse else total.addcmul_(row, share)
        return [total.to(some.dtype)]

    def one_by_one(self) -> Sequence[Tensor]:
        """Return the gradients, zero for a task without one."""
        return [self._or_zero(row) for row in self._rows]

    def side_by_side(self) -> Tensor:
        """Return the gradients as real, dense numbers, ``(T', ...)``."""
        if not isinstance(self._rows, Tensor):
            self._rows = torch.stack([dense(row) for row in self.one_by_one()])
        return self._rows

    def _or_zero(self, row: Tensor | None) -> Tensor:
        return torch.zeros_like(self.leaf if self._some is None else self._some) if row is None else row


class _Joined:
    """The tasks' gradients of leaves that are little, as of one leaf that holds them all, ``(P,)``."""

    def __init__(self, parts: Sequence[_Formed]) -> None:
        self.leaves: Sequence[Tensor] = [part.leaf for part in parts]
        self.given = True
        one_by_one = [part.one_by_one() for part in parts]
        if len(one_by_one[0]) < len(parts):
            rows = [flattened(gradients) for gradients in zip(*one_by_one, strict=True)]
            self._whole = _Formed(rows[0], rows)
        else:
            columns = torch.cat([flat(part.side_by_side()) for part in parts], 1)
            self._whole = _Formed(columns[0], columns)

    def products(self) -> Tensor:
        return self._whole.products()

    def combined(self, weights: Tensor) -> Sequence[Tensor]:
        [total] = self._whole.combined(weights)
        return unflattened(total, self.leaves)


def _products(rows: Tensor) -> Tensor:
    wide = flat(widened(rows))
    return wide @ wide.mT
