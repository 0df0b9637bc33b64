r"""Norms of tasks' gradients of linear maps and convolutions, without forming these gradients.

A linear map with inputs ``x``, ``(N, in)``, has the weight gradient ``d^T x`` for the gradients ``d``, ``(N, out)``, of
its outputs, and

.. math:: \lVert d^\top x \rVert^2 = \sum_{nm} (x x^\top)_{nm} (d d^\top)_{nm}

With ``x x^T``, which is the same for all tasks, a task's norm takes N^2 out multiplications in place of N in out. A
convolution is a linear map of its inputs' patches; since patches overlap, the product of two is summed from products of
single positions, which are fewer. Of a layer that is applied several times, the rows of all applications count
together.

Rows are taken in double precision: the sum may be much smaller than its terms. Many GPUs are slow in double precision:
there, such a multiplication counts for 32 in the choice of the cheaper way.

Source: Goodfellow, "Efficient per-example gradient computations", arXiv 2015; for sequences Li et al., "Large language
models can be strong differentially private learners", ICLR 2022; the choice by shapes Bu, Mao and Xu, "Scalable and
efficient training of large convolutional neural networks with differential privacy", NeurIPS 2022.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.nn import functional as F

from ..torch_internals import Convolution, LinearNode, convolution_gradients, layer_node
from .vector_jacobian import NodeGradients, stacked

Purpose = Literal["norms", "gramian", "sum"]
"""Whether norms of the tasks' gradients are needed, their inner products, or these and then a weighted sum."""

FULL_RATE = ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0))
"""Compute capabilities of the NVIDIA GPUs that multiply in double precision at half the rate of single or faster."""
DOUBLE_ELSEWHERE = 32
"""The multiplications in single precision that one in double precision takes on other GPUs, which is 32 to 64."""


@cache
def _cost_of_double(device: torch.device) -> int:
    capability = torch.cuda.get_device_capability(device)
    is_full = capability[0] == 9 if torch.version.hip else capability in FULL_RATE
    return 1 if is_full else DOUBLE_ELSEWHERE


def cost_of_double(x: Tensor) -> int:
    """Return how many multiplications one in double precision counts for, beside those of tensors like ``x``."""
    return _cost_of_double(x.device) if x.is_cuda and x.dtype is not torch.float64 else 1


def is_less(
    num_rows: int,
    inputs: int,
    outputs: int,
    num_tasks: int,
    purpose: Purpose = "norms",
    kernel_products: int | None = None,
    double: int = 1,
) -> bool:
    """Return whether ``x x^T`` takes less arithmetic, and no more memory, than products of ``in * out``.

    Args:
        num_rows, inputs, outputs: the shapes, of one group.
        num_tasks: T.
        purpose: what is needed.
        kernel_products: the number of multiplications in ``x x^T``; by default that of rows with rows.
        double: how many multiplications one in double precision counts for: see `cost_of_double`.
    """
    by_rows = num_rows**2 * inputs if kernel_products is None else kernel_products
    by_rows += num_rows**2 * num_tasks * outputs
    by_products = num_tasks * num_rows * inputs * outputs
    if purpose != "norms":
        by_rows += num_tasks**2 * num_rows * outputs
        by_products += num_tasks**2 * inputs * outputs
    by_rows *= double
    if purpose == "sum":
        by_rows += num_tasks * num_rows * outputs + num_rows * inputs * outputs
        by_products += num_tasks * inputs * outputs
    return by_rows < by_products and num_rows**2 <= inputs * outputs


def kernel(inputs: Tensor, has_bias: bool) -> Tensor:
    """Return ``x x^T``, ``(..., N, N)``, of inputs ``(..., N, in)``; with a bias, of inputs that end in a one."""
    rows = inputs.double()
    return torch.baddbmm(rows.new_ones(()), rows, rows.mT, beta=float(has_bias))


def squared_norms(kernel: Tensor, gradients: Tensor) -> Tensor:
    """Return the squared norms, ``(T,)``, of weight gradients.

    Args:
        kernel: ``x x^T`` of each group, ``(G, N, N)``.
        gradients: of the outputs, ``(T, G, N, out)``.
    """
    rows = gradients.double()
    return (kernel @ rows).mul_(rows).sum((1, 2, 3)).clamp_(min=0)


def inner_products(kernel: Tensor, gradients: Tensor) -> Tensor:
    """Return the inner products, ``(T, T)``, of weight gradients; for the arguments see `squared_norms`."""
    rows = gradients.double()
    return (kernel @ rows).flatten(1) @ rows.flatten(1).mT


@dataclass
class Use:
    """One application of a linear map or a convolution in this step's graph."""

    node: Node
    found: LinearNode | Convolution
    weight: nn.Parameter
    bias: nn.Parameter | None
    """None if it is not measured."""

    def shape(self) -> tuple[int, int, int, int]:
        """Return the number of groups, and for each group those of rows, inputs and outputs."""
        x, leaf = self.found.inputs(), self.weight.shape
        if isinstance(self.found, LinearNode):
            return 1, x.shape[0], x.shape[1], leaf[0]
        return self.found.groups, len(x) * prod(self._positions()), prod(leaf[1:]), leaf[0] // self.found.groups

    def keep_inputs(self) -> None:
        """Keep the inputs, which the graph holds until it is freed."""
        x = self.found.inputs()
        self.found = self.found._replace(inputs=lambda: x)

    def inputs(self) -> Tensor:
        """Return the inputs of each group, ``(G, N, in)``: of a convolution, the patches that it sees.

        A patch's entries are in the order that is fastest to copy, which `kernel` does not depend on.
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
        x, leaf, (_, _, inputs, outputs) = self.found.inputs(), self.weight.shape, self.shape()
        padded = (size + 2 * pad for size, pad in zip(x.shape[2:], self.found.padding, strict=True))
        if (len(x) * prod(padded)) ** 2 > inputs * outputs:
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
    """The applications of one weight, with the kernel of their rows."""

    uses: list[Use]
    bias: nn.Parameter | None
    """The bias that is measured with it: one that is added in these applications, and in no other."""
    _kernel: Tensor | None = None

    def kernel(self) -> Tensor:
        """Return ``x x^T`` of the rows of all applications, ``(G, N, N)``."""
        if self._kernel is None:
            if self._by_positions() is not None:
                self._kernel = self.uses[0].kernel_of_positions()
                self._kernel += float(self.bias is not None)
            else:
                self._kernel = kernel(_joined([use.inputs() for use in self.uses]), self.bias is not None)
        return self._kernel

    def keep_inputs(self) -> None:
        """See `Use.keep_inputs`."""
        for use in self.uses:
            use.keep_inputs()

    def release(self) -> None:
        """Let go of the kernel, which is as large as the rows are many."""
        self._kernel = None

    def _by_positions(self) -> int | None:
        """Return the number of multiplications of the kernel by positions; None where rows take fewer."""
        products = self.uses[0].positions_products() if len(self.uses) == 1 else None
        _, num_rows, inputs, _ = self.uses[0].shape()
        return products if products is not None and products < num_rows**2 * inputs else None

    def kernel_products(self) -> int:
        """Return the number of multiplications in `kernel`, of one group."""
        products = self._by_positions()
        return self.num_rows() ** 2 * self.uses[0].shape()[2] if products is None else products

    def num_rows(self) -> int:
        """Return the number of rows of a group, of all applications."""
        return sum(num_rows for _, num_rows, _, _ in (use.shape() for use in self.uses))

    def rows(self, of_node: Mapping[Node, Tensor | None], num_tasks: int) -> Tensor:
        """Return T gradients of the outputs of all applications, ``(T, G, N, out)``, from those of each node.

        They are zero for a node without one.
        """
        rows = []
        for use in self.uses:
            gradients = of_node.get(use.node)
            if gradients is None:
                groups, num_rows, _, outputs = use.shape()
                rows.append(use.weight.new_zeros(num_tasks, groups, num_rows, outputs))
            else:
                rows.append(use.outputs(gradients))
        return _joined(rows)

    def is_less(self, num_tasks: int, purpose: Purpose) -> bool:
        """Return whether `kernel` is the cheaper way."""
        _, _, inputs, outputs = self.uses[0].shape()
        double = cost_of_double(self.uses[0].found.inputs())
        return is_less(self.num_rows(), inputs, outputs, num_tasks, purpose, self.kernel_products(), double)


def _joined(rows: list[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(rows, -2)


class GhostNorms:
    """Measures the norms of tasks' gradients of parameters, some of them without forming these gradients."""

    def __init__(self, z: Tensor, layers: list[Layer], rest: list[Tensor]) -> None:
        self._z, self._layers, self._rest = get_gradient_edge(z), layers, rest
        self.reached: set[Tensor] = {
            leaf for each in layers for leaf in (each.uses[0].weight, each.bias) if leaf is not None
        }
        """The parameters that were found to have a gradient."""
        self._nodes = list({use.node: None for layer in layers for use in layer.uses})

    def num_not_formed(self) -> int:
        """Return the number of entries of one task's gradients of the weights, which are not formed."""
        return sum(layer.uses[0].weight.numel() for layer in self._layers)

    def num_entries(self) -> int:
        """Return the number of entries of one task's gradients of the layers' outputs."""
        return sum(prod(layer.uses[0].shape()[::3]) * layer.num_rows() for layer in self._layers)

    def norms(self, gradients: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Return the norms for some tasks, from the gradient of each with respect to the features."""
        raw, others = [], []
        with NodeGradients(self._nodes) as of_nodes:
            for gradient in gradients:
                found = of_nodes.take([self._z], self._rest, [gradient])
                raw.append(found[: len(self._nodes)])
                if self._rest:
                    others.append(self._others(found[len(self._nodes) :]))
        of_node = {node: stacked(rows) for node, rows in zip(self._nodes, zip(*raw, strict=True), strict=True)}
        squares = [squared_norms(each.kernel(), each.rows(of_node, len(gradients))) for each in self._layers]
        if others:
            squares.append(torch.stack(others))
        return reduce(torch.add, squares).sqrt_().to(dtype)

    def _others(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Return the sum of squares of one task's gradients of the other parameters."""
        self.reached.update(leaf for leaf, part in zip(self._rest, gradients, strict=True) if part is not None)
        parts = [part.to_dense().double().square().sum() for part in gradients if part is not None]
        return reduce(torch.add, parts, self._rest[0].new_zeros((), dtype=torch.float64))


def ghost_norms(z: Tensor, wrt: Sequence[nn.Parameter], num_tasks: int) -> GhostNorms | None:
    """Return what measures gradients of ``wrt`` behind features ``z``; None where products are less for each layer."""
    layers, rest = layers_behind([z], wrt, lambda layer: layer.is_less(num_tasks, "norms"))
    return GhostNorms(z, layers, rest) if layers else None


def layers_behind(
    features: Sequence[Tensor], wrt: Sequence[Tensor], is_chosen: Callable[[Layer], bool]
) -> tuple[list[Layer], list[Tensor]]:
    """Return the chosen ones of the layers behind ``features``, and the rest of ``wrt``, which they don't hold."""
    if any(parameter.is_complex() for parameter in wrt):
        return [], list(wrt)
    uses, elsewhere = _uses(features, set(wrt))
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
        same = len({use.shape()[0] for use in own}) == 1  # a convolution's weight may serve other numbers of groups
        if same and is_chosen(layer):
            layers.append(layer)
            held |= {weight} if bias is None or not together else {weight, bias}
    return layers, [each for each in wrt if each not in held]


def _uses(features: Sequence[Tensor], wanted: set[Tensor]) -> tuple[list[Use], set[Tensor]]:
    """Return the layers that apply wanted parameters, and the parameters that are used otherwise too."""
    uses, elsewhere = list[Use](), set[Tensor]()
    seen = {z.grad_fn for z in features if z.grad_fn is not None}
    waiting = list(seen)
    while waiting:
        node = waiting.pop()
        sources = [following for following, _ in node.next_functions]
        found = layer_node(node)
        if found is not None:
            weight, bias = (getattr(leaf, "variable", None) for leaf in (found.weight, found.bias))
            if isinstance(weight, nn.Parameter) and weight in wanted and _is_plain(found.inputs()):
                vector = bias in wanted and bias.shape == weight.shape[:1]  # `torch.addmm` takes other shapes too
                uses.append(Use(node, found, weight, bias if vector else None))
                sources = [found.source, *([] if vector else [found.bias])]
        for following in sources:
            variable = getattr(following, "variable", None)
            if isinstance(variable, Tensor) and variable in wanted:
                elsewhere.add(variable)
            elif following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return uses, elsewhere


def _is_plain(x: Tensor) -> bool:
    return x.layout is torch.strided and not x.is_complex()
