"""The gradients of a layer's parameters for one task after another, from those of the features that follow it.

In general a task's are a vector-Jacobian product on the graph already recorded. Where the features are a linear layer's
output, or its ReLU, they are a matrix product: the same arithmetic in a fraction of the operator calls, and that of all
tasks in one. Whether they are is read from the graph, each time: a layer that is applied twice, or whose input is not
kept (checkpointed, offloaded), takes the general way.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from ..torch_internals import VIEWS, has_hooks, is_relu, linear_node

Part = Literal["weight", "bias"]


class Linear(NamedTuple):
    """``z = x W^T + b``, or the ReLU of it, flattened to two dimensions."""

    inputs: Tensor
    """``x``, ``(N, in)``."""
    relu: Tensor | None
    """``z``, ``(N, out)``, where it is a ReLU's."""
    parts: tuple[Part, ...]
    """For each parameter in ``wrt``, whether it is the weight or the bias."""

    def before_relu(self, gradients: Tensor, overwrite: bool) -> Tensor:
        """Gradients of ``x W^T + b`` for those of ``z``, ``(..., N, out)``, in place where that is allowed."""
        before = gradients
        if self.relu is not None and overwrite:
            torch.ops.aten.threshold_backward.grad_input(gradients, self.relu, 0, grad_input=gradients)
        elif self.relu is not None:
            before = torch.ops.aten.threshold_backward(gradients, self.relu, 0)
        return before

    def gradient(self, gradient: Tensor) -> list[Tensor]:
        """Return each parameter's gradient for one task's gradient of ``x W^T + b``, ``(N, out)``."""
        return [gradient.sum(0) if part == "bias" else torch.mm(gradient.t(), self.inputs) for part in self.parts]

    def gradients(self, gradients: Tensor) -> list[Tensor]:
        """Return each parameter's gradients, ``(T, ...)``, for those of ``x W^T + b``, ``(T, N, out)``."""
        return [
            gradients.sum(1)
            if part == "bias"
            else torch.bmm(gradients.mT, self.inputs.expand(len(gradients), *self.inputs.shape))
            for part in self.parts
        ]


def linear(z: Tensor, wrt: Sequence[nn.Parameter]) -> Linear | None:
    """Return the linear layer that features ``z`` come from, where ``wrt`` are its parameters and it is applied once.

    Hooks that change a gradient on its way, behind the features or at a parameter, are not seen. With one at the
    features themselves, None is returned.
    """
    node, relu = z.grad_fn, False
    if node is None or z.is_complex() or has_hooks(z):
        return None
    while node.name() in VIEWS or (is_relu(node) and not relu):
        relu |= is_relu(node)
        before = node.next_functions[0][0]
        if before is None:
            return None
        node = before
    found = linear_node(node)
    if found is None:
        return None
    leaves: dict[object, tuple[Node | None, Part]] = {}
    leaves[getattr(found.bias, "variable", None)] = found.bias, "bias"
    leaves[getattr(found.weight, "variable", None)] = found.weight, "weight"
    if any(parameter not in leaves for parameter in wrt):
        return None
    wanted = {leaves[parameter][0] for parameter in wrt}
    if found.bias is found.weight or _reaches(found.source, wanted) or _reaches(found.bias, wanted - {found.bias}):
        return None
    inputs = found.inputs()
    if inputs.layout is not torch.strided:
        return None
    flat = z if z.ndim == 2 and len(z) == len(inputs) else z.reshape(len(inputs), -1)
    parts = tuple(leaves[parameter][1] for parameter in wrt)
    if any(part == "bias" and parameter.shape != flat.shape[1:] for parameter, part in zip(wrt, parts, strict=True)):
        return None
    return Linear(inputs, flat if relu else None, parts)


def _reaches(start: Node | None, leaves: set[Node | None]) -> bool:
    """Whether ``start`` depends on one of ``leaves``."""
    leaves, waiting, seen = leaves - {None}, [start], {start, None}
    while waiting:
        node = waiting.pop()
        for following, _ in () if node is None else node.next_functions:
            if following in leaves:
                return True
            if following not in seen:
                seen.add(following)
                waiting.append(following)
    return False
