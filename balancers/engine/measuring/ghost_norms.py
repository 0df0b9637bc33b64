"""The linear layers and convolutions behind some features, whose weight gradients need not be formed.

A convolution is a linear map of its inputs' patches. Since patches overlap, the product of two is summed from products
of single positions, which are fewer. Of a layer that is applied several times, the rows of all applications count
together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.nn import functional as F

from ..torch_internals import Convolution, LinearNode, convolution_gradients, layer_node
from .between import Between
from .row_products import Kernel, Purpose, RowProducts, cost_of_double, is_less, way_for
from .vector_jacobian import NodeGradients, stacked


class Shape(NamedTuple):
    """The shape of a linear map's weight gradient, and the number of rows it is summed over."""

    groups: int
    rows: int
    """The number of rows of each group; inputs and outputs are counted for each group too."""
    inputs: int
    outputs: int


@dataclass
class Use:
    """One application of a linear map or a convolution in this step's graph."""

    node: Node
    found: LinearNode | Convolution
    weight: nn.Parameter
    bias: nn.Parameter | None
    """None if it is not measured."""
    shape: Shape = field(init=False)

    def __post_init__(self) -> None:
        x, leaf = self.found.inputs().shape, self.weight.shape
        if isinstance(self.found, LinearNode):
            self.shape = Shape(1, x[0], x[1], leaf[0])
        else:
            groups = self.found.groups
            self.shape = Shape(groups, x[0] * prod(self._positions()), prod(leaf[1:]), leaf[0] // groups)

    def keep_inputs(self) -> None:
        """Keep the inputs, which the graph holds until it is freed."""
        x = self.found.inputs()
        self.found = self.found._replace(inputs=lambda: x)

    def inputs(self) -> Tensor:
        """Return the inputs of each group, ``(G, N, in)``: of a convolution, the patches that it sees.

        A patch's entries are in the order that is fastest to copy: inner products do not depend on it.
        """
        x = self.found.inputs()
        if isinstance(self.found, LinearNode):
            return x.unsqueeze(0)
        conv, sizes = self.found, self.weight.shape[2:]
        if any(conv.padding):
            x = F.pad(x, [width for padding in reversed(conv.padding) for width in (padding, padding)])
        x = x.movedim(1, -1).contiguous()
        for k, (size, stride, dilation) in enumerate(zip(sizes, conv.stride, conv.dilation, strict=True)):
            x = x.unfold(1 + k, dilation * (size - 1) + 1, stride)[..., ::dilation]
        x = x.unflatten(1 + len(sizes), (conv.groups, -1))  # (B, positions, G, in / G, patch)
        rows: Tensor = x.movedim(1 + len(sizes), 0).movedim(2 + len(sizes), -1)  # (G, B, positions, patch, in / G)
        return rows.reshape(conv.groups, -1, prod(self.weight.shape[1:]))

    def positions_products(self) -> int | None:
        """Return the number of multiplications in `kernel_of_positions` of a group; None where it does not apply.

        It does to a convolution, within the bound on memory that rows have: see `is_less`.
        """
        if isinstance(self.found, LinearNode):
            return None
        x, leaf = self.found.inputs(), self.weight.shape
        padded = (size + 2 * pad for size, pad in zip(x.shape[2:], self.found.padding, strict=True))
        if (len(x) * prod(padded)) ** 2 > self.shape.inputs * self.shape.outputs:
            return None
        return (len(x) * prod(x.shape[2:])) ** 2 * leaf[1]

    def kernel_of_positions(self) -> Tensor:
        """Return ``x x^T`` of a convolution's patches, ``(G, N, N)``, from inner products of the inputs' positions.

        Two patches' product is the sum of that of their first positions, of their second, and so on.
        """
        assert isinstance(self.found, Convolution)
        conv, x = self.found, self.found.inputs().double()
        spatial, batch = x.shape[2:], len(x)
        rows = x.unflatten(1, (conv.groups, -1)).movedim(1, 0).movedim(2, -1).flatten(1, -2)
        products = (rows @ rows.mT).view(conv.groups, batch, *spatial, batch, *spatial)
        if any(conv.padding):
            around = [width for padding in reversed(conv.padding) for width in (padding, padding)]
            products = F.pad(products, [*around, 0, 0, *around])
        steps, dims = products.stride(), len(spatial)
        first, second = steps[2 : 2 + dims], steps[3 + dims :]
        positions = self._positions()
        shape = [conv.groups, batch, *positions, batch, *positions, *self.weight.shape[2:]]
        strides = [
            *steps[:2],
            *(step * stride for step, stride in zip(first, conv.stride, strict=True)),
            steps[2 + dims],
            *(step * stride for step, stride in zip(second, conv.stride, strict=True)),
            *((a + b) * dilation for a, b, dilation in zip(first, second, conv.dilation, strict=True)),
        ]
        num_rows = batch * prod(positions)
        summed: Tensor = products.as_strided(shape, strides).sum(tuple(range(-dims, 0)))
        return summed.view(conv.groups, num_rows, num_rows)

    def outputs(self, gradients: Tensor) -> Tensor:
        """Return T gradients of the outputs as rows of each group, ``(T, G, N, out)``."""
        if isinstance(self.found, LinearNode):
            return gradients.reshape(len(gradients), 1, -1, gradients.shape[-1])
        rows: Tensor = gradients.unflatten(2, (self.found.groups, -1)).movedim((2, 3), (1, -1))
        return rows.flatten(2, -2)

    def gradients(self, raw: Tensor, has_bias: bool) -> list[Tensor]:
        """Return the gradients of the weight and, with ``has_bias``, of the bias, for that of the outputs.

        Of a linear map, ``raw`` may be several, ``(T, N, out)``.
        """
        x, leaf = self.found.inputs(), self.weight
        raw = raw.to(x.dtype)
        if isinstance(self.found, LinearNode):
            weight = raw.mT @ x if raw.ndim == 2 else torch.bmm(raw.mT, x.expand(len(raw), *x.shape))
            found = [weight, raw.sum(-2)] if has_bias else [weight]
        else:
            found = convolution_gradients(self.found, raw, leaf.to(x.dtype), has_bias)
        return [part.to(leaf.dtype) for part in found]

    def _positions(self) -> list[int]:
        assert isinstance(self.found, Convolution)
        conv, x = self.found, self.found.inputs()
        numbers = zip(x.shape[2:], self.weight.shape[2:], conv.stride, conv.padding, conv.dilation, strict=True)
        return [(size + 2 * pad - gap * (width - 1) - 1) // step + 1 for size, width, step, pad, gap in numbers]


@dataclass
class Layer:
    """The applications of one weight, with what takes the place of their inputs in norms."""

    uses: list[Use]
    bias: nn.Parameter | None
    """The bias that is measured with it: one that is added in these applications, and in no other."""
    shape: Shape = field(init=False)
    """The shape, with the rows of all applications."""
    _products: RowProducts | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.shape = self.uses[0].shape
        if len(self.uses) > 1:
            self.shape = self.shape._replace(rows=sum(use.shape.rows for use in self.uses))

    def products(self) -> RowProducts:
        """Return what takes the place of the inputs of all applications."""
        if self._products is None:
            has_bias = self.bias is not None
            if self._by_positions is not None:
                self._products = Kernel(self.uses[0].kernel_of_positions().add_(float(has_bias)))
            else:
                self._products = self.way.of(_joined([use.inputs() for use in self.uses]), has_bias)
        return self._products

    def keep_inputs(self) -> None:
        """See `Use.keep_inputs`."""
        for use in self.uses:
            use.keep_inputs()

    def release(self) -> None:
        """Let go of `products`, which are as large as the rows are many."""
        self._products = None

    @cached_property
    def way(self) -> type[RowProducts]:
        """The type of `products`."""
        return self._way_of_rows if self._by_positions is None else Kernel

    @cached_property
    def multiplications(self) -> float:
        """The number of multiplications that `products` take to make, of one group."""
        by_rows = self.way.multiplications(self.shape.rows, self.shape.inputs)
        return by_rows if self._by_positions is None else self._by_positions

    @cached_property
    def _way_of_rows(self) -> type[RowProducts]:
        return way_for(self.uses[0].found.inputs(), self.shape.rows)

    @cached_property
    def _by_positions(self) -> int | None:
        """The number of multiplications of the kernel by positions; None where rows take fewer."""
        products = self.uses[0].positions_products() if len(self.uses) == 1 else None
        by_rows = self._way_of_rows.multiplications(self.shape.rows, self.shape.inputs)
        return products if products is not None and products < by_rows else None

    def rows(self, of_node: Mapping[Node, Tensor | None], num_tasks: int) -> Tensor:
        """Return T gradients of the outputs of all applications, ``(T, G, N, out)``, from those of each node.

        They are zero for a node without one.
        """
        rows = []
        for use in self.uses:
            gradients = of_node.get(use.node)
            if gradients is None:
                shape = use.shape
                rows.append(use.weight.new_zeros(num_tasks, shape.groups, shape.rows, shape.outputs))
            else:
                rows.append(use.outputs(gradients))
        return _joined(rows)

    def is_less(self, num_tasks: int, purpose: Purpose) -> bool:
        """Return whether `products` are the cheaper way."""
        if self.shape.rows >= self.shape.inputs:  # whatever the way
            return False
        double = cost_of_double(self.uses[0].found.inputs())
        return is_less(self.way, *self.shape[1:], num_tasks, purpose, double, self.multiplications)


def _joined(rows: list[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(rows, -2)


class GhostNorms:
    """Measures the norms of tasks' gradients of parameters, some of them without forming these gradients."""

    def __init__(self, z: Tensor, layers: list[Layer], rest: list[Tensor]) -> None:
        self._z, self._entries, self._layers, self._rest = get_gradient_edge(z), z.numel(), layers, rest
        self.reached: set[Tensor] = {
            leaf for each in layers for leaf in (each.uses[0].weight, each.bias) if leaf is not None
        }
        """The parameters that were found to have a gradient."""
        self._nodes = list({use.node: None for layer in layers for use in layer.uses})

    @property
    def weight_entries(self) -> int:
        """The number of entries of one task's gradients of the weights, which are not formed."""
        return sum(layer.uses[0].weight.numel() for layer in self._layers)

    @property
    def entries_needed(self) -> int:
        """The number of entries, in units of single precision, that one task's norm needs.

        Its gradients of the outputs, and what becomes of them; or, before it goes through the graph, of the features.
        """
        needed = 0
        for layer in self._layers:
            side_by_side = 1 if isinstance(layer.uses[0].found, LinearNode) else 2  # a convolution's, and as rows
            entries = layer.shape.groups * layer.shape.rows * layer.shape.outputs
            needed += (side_by_side + layer.way.copies) * entries
        return max(self._entries, needed)

    def gains(self, num_tasks: int) -> bool:
        """Return whether so many tasks' norms are taken faster at once than one by one."""
        return num_tasks > 1

    def norms(self, gradients: list[Tensor], dtype: torch.dtype) -> Tensor:
        """Return the norms for some tasks, from the gradient of each with respect to the features.

        These are taken out of the list, so that they can be freed.
        """
        raw, others, num_tasks = [], [], len(gradients)
        with NodeGradients(self._nodes) as of_nodes:
            while gradients:
                found = of_nodes.take([self._z], self._rest, [gradients.pop(0)])
                raw.append(found[: len(self._nodes)])
                if self._rest:
                    others.append(self._others(found[len(self._nodes) :]))
        columns = [list(column) for column in zip(*raw, strict=True)]
        columns.reverse()  # each is popped, so that no gradient is held twice for longer than its node takes
        del raw, found
        of_node = {node: stacked(columns.pop()) for node in self._nodes}
        squares = [each.products().squared_norms(each.rows(of_node, num_tasks)) for each in self._layers]
        if others:
            squares.append(torch.stack(others))
        return reduce(torch.add, squares).sqrt_().to(dtype)

    def _others(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Return the sum of squares of one task's gradients of the other parameters."""
        self.reached.update(leaf for leaf, part in zip(self._rest, gradients, strict=True) if part is not None)
        parts = [part.to_dense().double().square().sum() for part in gradients if part is not None]
        return reduce(torch.add, parts, self._rest[0].new_zeros((), dtype=torch.float64))


def ghost_norms(z: Tensor, between: Between, num_tasks: int) -> GhostNorms | None:
    """Return what measures gradients of ``wrt`` behind features ``z``; None where products are less for each layer.

    Args:
        z: the features.
        between: the graph between them and ``wrt``.
        num_tasks: T.
    """
    layers, rest = layers_between(between, lambda layer: layer.is_less(num_tasks, "norms"))
    return GhostNorms(z, layers, rest) if layers else None


def layers_between(between: Between, is_chosen: Callable[[Layer], bool]) -> tuple[list[Layer], list[Tensor]]:
    """Return the chosen ones of the layers, and the rest of the parameters, which these layers don't hold."""
    parameters = between.parameters
    if any(parameter.is_complex() for parameter in parameters):
        return [], list(parameters)
    uses, elsewhere = _uses(between)
    of_weight: dict[nn.Parameter, list[Use]] = {}
    for use in uses:
        if use.weight not in elsewhere:
            of_weight.setdefault(use.weight, []).append(use)
    layers, held = list[Layer](), set[Tensor]()
    for weight, own in of_weight.items():
        bias = own[0].bias
        together = (
            bias is not None
            and bias not in elsewhere
            and {id(use) for use in uses if use.bias is bias} == {id(use) for use in own}
        )
        layer = Layer(own, bias if together else None)
        same = len({use.shape.groups for use in own}) == 1  # a convolution's weight may serve other numbers of groups
        if same and is_chosen(layer):
            layers.append(layer)
            held |= {weight} if bias is None or not together else {weight, bias}
    return layers, [each for each in parameters if each not in held]


def _uses(between: Between) -> tuple[list[Use], set[Tensor]]:
    """Return the layers that apply the parameters, and the parameters that are used otherwise too."""
    uses, elsewhere = list[Use](), set[Tensor]()
    waiting, seen = list(between.starts), set(between.starts)
    while waiting:
        node = waiting.pop()
        sources = [following for following, _ in node.next_functions]
        found = layer_node(node)
        if found is not None:
            weight, bias = (None if leaf is None else between.leaves.get(leaf) for leaf in (found.weight, found.bias))
            if isinstance(weight, nn.Parameter) and _is_plain(found.inputs()):
                vector = bias is not None and bias.shape == weight.shape[:1]  # `torch.addmm` takes other shapes too
                uses.append(Use(node, found, weight, bias if vector else None))
                sources = [found.source, *([] if vector else [found.bias])]
        for following in sources:
            if following in between.leaves:
                elsewhere.add(between.leaves[following])
            elif following in between.nodes and following not in seen:
                seen.add(following)
                waiting.append(following)
    return uses, elsewhere


def _is_plain(x: Tensor) -> bool:
    return x.layout is torch.strided and not x.is_complex()
