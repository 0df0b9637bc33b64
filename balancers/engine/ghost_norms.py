r"""Norms of tasks' gradients of linear maps and convolutions, without forming these gradients.

A linear map with inputs ``x``, ``(N, in)``, has the weight gradient ``d^T x`` for the gradients ``d``, ``(N, out)``, of
its outputs, and

.. math:: \lVert d^\top x \rVert^2 = \sum_{nm} (x x^\top)_{nm} (d d^\top)_{nm}

With ``x x^T``, which is the same for all tasks, a task's norm takes N^2 out multiplications in place of N in out. A
convolution is a linear map of its inputs' patches. Of a layer that is applied several times, the rows of all
applications count together.

Rows are taken in double precision: the sum may be much smaller than its terms.

Source: Goodfellow, "Efficient per-example gradient computations", arXiv 2015; for sequences Li et al., "Large language
models can be strong differentially private learners", ICLR 2022; the choice by shapes Bu, Mao and Xu, "Scalable and
efficient training of large convolutional neural networks with differential privacy", NeurIPS 2022.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn import functional as F

from .torch_internals import Convolution, LinearNode, convolution_node, linear_node


def is_less(num_rows: int, inputs: int, outputs: int, num_tasks: int, gramian: bool = False) -> bool:
    """Return whether norms by ``x x^T`` take less arithmetic, and no more memory, than products of ``in * out``.

    With ``gramian``, whether the inner products of all tasks' gradients do.
    """
    by_rows = num_rows**2 * (inputs + num_tasks * outputs)
    by_products = num_tasks * num_rows * inputs * outputs
    if gramian:
        by_rows += num_tasks**2 * num_rows * outputs
        by_products += num_tasks**2 * inputs * outputs
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

    def inputs(self) -> Tensor:
        """Return the inputs of each group, ``(G, N, in)``: of a convolution, the patches that it sees."""
        x = self.found.inputs()
        if isinstance(self.found, LinearNode):
            return x.unsqueeze(0)
        conv, sizes = self.found, self.weight.shape[2:]
        x = F.pad(x, [width for padding in reversed(conv.padding) for width in (padding, padding)])
        x = x.movedim(1, -1).contiguous()  # patches are copied by whole pixels
        for k, (size, stride, dilation) in enumerate(zip(sizes, conv.stride, conv.dilation, strict=True)):
            x = x.unfold(1 + k, dilation * (size - 1) + 1, stride)[..., ::dilation]
        x = x.unflatten(1 + len(sizes), (conv.groups, -1))  # (B, positions, G, in / G, patch)
        rows: Tensor = x.movedim(1 + len(sizes), 0).movedim(2 + len(sizes), -1)
        return rows.reshape(conv.groups, -1, prod(self.weight.shape[1:]))

    def outputs(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the outputs as rows of each group, ``(G, N, out)``."""
        if isinstance(self.found, LinearNode):
            return gradient.reshape(1, -1, gradient.shape[-1])
        rows: Tensor = gradient.unflatten(1, (self.found.groups, -1)).movedim(1, 0).movedim(2, -1)
        return rows.reshape(self.found.groups, -1, rows.shape[-1])

    def _positions(self) -> list[int]:
        assert isinstance(self.found, Convolution)
        conv, x = self.found, self.found.inputs()
        numbers = zip(x.shape[2:], self.weight.shape[2:], conv.stride, conv.padding, conv.dilation, strict=True)
        return [(size + 2 * pad - gap * (width - 1) - 1) // step + 1 for size, width, step, pad, gap in numbers]


@dataclass
class _Weight:
    """The applications of one weight, with the kernel of their rows."""

    uses: list[Use]
    bias: nn.Parameter | None
    """The bias that is measured with it: one that is added in these applications, and in no other."""
    kernel: Tensor | None = None


class GhostNorms:
    """Measures the norms of tasks' gradients of parameters, some of them without forming these gradients.

    Made by `ghost_norms`.
    """

    def __init__(self, z: Tensor, weights: list[_Weight], rest: list[nn.Parameter]) -> None:
        self._z, self._weights, self._rest = get_gradient_edge(z), weights, rest
        self._nodes = list({use.node: None for weight in weights for use in weight.uses})

    def norm(self, gradient: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the norm for one task, of which ``gradient`` is that of the features."""
        of_node, of_rest = self._differentiated(gradient)
        squares = [
            squared_norms(self._kernel(each), self._rows(each, of_node).unsqueeze(0))[0] for each in self._weights
        ]
        squares += [part.square().sum() for part in of_rest if part is not None]
        return reduce(torch.add, squares).sqrt_().to(dtype)

    def gramian(self, gradients: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the inner products of all tasks' gradients, ``(T, T)``; ``gradients`` are those of the features."""
        found = [self._differentiated(gradient) for gradient in gradients]
        products = []
        for each in self._weights:
            rows = torch.stack([self._rows(each, of_node) for of_node, _ in found])
            products.append(inner_products(self._kernel(each), rows))
        for k, parameter in enumerate(self._rest):
            parts = [of_rest[k] for _, of_rest in found]
            zero = torch.zeros_like(parameter, dtype=torch.float64)
            rows = torch.stack([zero if part is None else part for part in parts]).flatten(1)
            products.append(rows @ rows.mT)
        return reduce(torch.add, products).to(dtype)

    def _differentiated(self, gradient: Tensor) -> tuple[dict[Node, Tensor | None], list[Tensor | None]]:
        """Return the gradients of the layers' outputs, and of the parameters whose gradients are formed."""
        edges = [GradientEdge(node, 0) for node in self._nodes]
        inputs = cast(list[Tensor], [*edges, *self._rest])  # they may be mixed, which the annotations don't say
        found = torch.autograd.grad([self._z], inputs, [gradient], retain_graph=True, allow_unused=True)
        rest: list[Tensor | None] = list(found[len(self._nodes) :])
        rest = [None if part is None else part.to_dense().double() for part in rest]
        return dict(zip(self._nodes, found, strict=False)), rest

    def _kernel(self, weight: _Weight) -> Tensor:
        if weight.kernel is None:
            weight.kernel = kernel(_joined([use.inputs() for use in weight.uses]), weight.bias is not None)
        return weight.kernel

    def _rows(self, weight: _Weight, of_node: Mapping[Node, Tensor | None]) -> Tensor:
        """Return the gradient of the outputs of all of a weight's applications, ``(G, N, out)``."""
        rows = []
        for use in weight.uses:
            gradient = of_node[use.node]
            if gradient is None:
                groups, num_rows, _, outputs = use.shape()
                rows.append(use.weight.new_zeros(groups, num_rows, outputs))
            else:
                rows.append(use.outputs(gradient))
        return _joined(rows)


def _joined(rows: list[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(rows, 1)


def ghost_norms(z: Tensor, wrt: Sequence[nn.Parameter], num_tasks: int, gramian: bool = False) -> GhostNorms | None:
    """Return what measures gradients of ``wrt`` behind features ``z``; None where products are less for each layer.

    With ``gramian``, their inner products are to be measured rather than their norms.
    """
    if any(parameter.is_complex() for parameter in wrt):
        return None
    uses, elsewhere = _uses(z, set(wrt))
    of_weight: dict[nn.Parameter, list[Use]] = {}
    for use in uses:
        if use.weight not in elsewhere:
            of_weight.setdefault(use.weight, []).append(use)
    chosen = {weight: own for weight, own in of_weight.items() if _is_chosen(own, num_tasks, gramian)}
    if not chosen:
        return None
    weights, biases = [], set[nn.Parameter]()
    for own in chosen.values():
        bias = own[0].bias
        together = (
            bias is not None
            and bias not in elsewhere
            and {id(use) for use in uses if use.bias is bias} == {id(use) for use in own}
        )
        weights.append(_Weight(own, bias if together else None))
        if together and bias is not None:
            biases.add(bias)
    return GhostNorms(z, weights, [each for each in wrt if each not in chosen and each not in biases])


def _is_chosen(uses: Sequence[Use], num_tasks: int, gramian: bool) -> bool:
    shapes = [use.shape() for use in uses]
    _, _, inputs, outputs = shapes[0]
    return is_less(sum(num_rows for _, num_rows, _, _ in shapes), inputs, outputs, num_tasks, gramian)


def _uses(z: Tensor, wanted: set[nn.Parameter]) -> tuple[list[Use], set[nn.Parameter]]:
    """Return the layers behind ``z`` that apply wanted parameters, and the parameters that are used otherwise too."""
    uses, elsewhere = list[Use](), set[nn.Parameter]()
    assert z.grad_fn is not None
    waiting, seen = [z.grad_fn], {z.grad_fn}
    while waiting:
        node = waiting.pop()
        sources = [following for following, _ in node.next_functions]
        found = linear_node(node) or convolution_node(node)
        if found is not None:
            weight, bias = (getattr(leaf, "variable", None) for leaf in (found.weight, found.bias))
            if weight in wanted:
                uses.append(Use(node, found, weight, bias if bias in wanted else None))
                sources = [found.source, *([] if bias in wanted or bias is None else [found.bias])]
        for following in sources:
            variable = getattr(following, "variable", None)
            if isinstance(variable, nn.Parameter) and variable in wanted:
                elsewhere.add(variable)
            elif following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return uses, elsewhere
