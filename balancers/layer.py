"""The gradients of a layer's parameters for one task after another, from those of the features that follow it.

In general a task's are a vector-Jacobian product on the graph already recorded. Where the features are a linear layer's
output, or its ReLU, they are a matrix product: the same arithmetic in a fraction of the operator calls, and that of all
tasks in one. Whether they are is read from the graph, each time: a layer that is applied twice, or whose input is not
kept (checkpointed, offloaded), takes the general way.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

Part = Literal["weight", "bias"]


class Linear(NamedTuple):
    """``z = x W^T + b``, or the ReLU of it, flattened to two dimensions."""

    inputs: Tensor
    """``x``, ``(N, in)``."""
    relu: Tensor | None
    """``z``, ``(N, out)``, where it is a ReLU's."""
    parts: tuple[Part, ...]
    """What each parameter asked for is."""

    def gradients(self, gradients: Tensor) -> list[Tensor]:
        """Of each parameter, for gradients of ``z``: ``(N, out)``, or those of T tasks, ``(T, N, out)``, overwritten."""
        stacked = gradients.ndim == 3
        if self.relu is not None:
            out = gradients if stacked else torch.empty_like(gradients)
            gradients = torch.ops.aten.threshold_backward.grad_input(gradients, self.relu, 0, grad_input=out)
        of: list[Tensor] = []
        for part in self.parts:
            if part == "bias":
                of.append(gradients.sum(-2))
            elif stacked:
                of.append(torch.bmm(gradients.mT, self.inputs.expand(len(gradients), -1, -1)))
            else:
                of.append(torch.mm(gradients.mT, self.inputs))
        return of


def linear(z: Tensor, wrt: Sequence[nn.Parameter]) -> Linear | None:
    """The linear layer that ``z`` comes from, where ``wrt`` are its parameters and it is applied once.

    A hook that changes a gradient between the layer and its ReLU is not seen.
    """
    node = z.grad_fn
    relu = node is not None and node.name() == "ReluBackward0"
    if relu:
        node = _before(node)
    if node is not None and node.name() in ("ViewBackward0", "UnsafeViewBackward0"):
        node = _before(node)
    if node is None:
        return None
    bias: Node | None = None
    match node.name(), [following for following, _ in node.next_functions]:
        case "AddmmBackward0", [bias, source, weight] if _attribute(node, "_saved_alpha", "_saved_beta") == [1, 1]:
            saved = "mat1"
        case "MmBackward0", [source, weight]:
            saved = "self"
        case _:
            return None
    if weight is None or weight.name() != "TBackward0":
        return None
    leaves: dict[nn.Parameter | None, tuple[Node | None, Part]] = {}
    for leaf, part in ((_leaf(bias), "bias"), (_leaf(_before(weight)), "weight")):
        leaves[getattr(leaf, "variable", None)] = leaf, part
    if any(parameter not in leaves for parameter in wrt) or _reaches(source, {leaves[p][0] for p in wrt}):
        return None
    [kept] = _attribute(node, f"_raw_saved_{saved}")
    if getattr(kept, "unpack_hook", True) is not None:  # a checkpoint's input can be unpacked but once
        return None
    [inputs] = _attribute(node, f"_saved_{saved}")
    return Linear(inputs, z.reshape(len(inputs), -1) if relu else None, tuple(leaves[p][1] for p in wrt))


def _attribute(node: Node, *names: str) -> list[Any]:
    return [getattr(node, name) for name in names]


def _before(node: Node | None) -> Node | None:
    return None if node is None else node.next_functions[0][0]


def _leaf(node: Node | None) -> Node | None:
    """The parameter behind a node, through autocast's conversion of it."""
    return _before(node) if node is not None and node.name() == "ToCopyBackward0" else node


def _reaches(start: Node | None, leaves: set[Node | None]) -> bool:
    """Whether ``start`` depends on one of ``leaves``."""
    waiting, seen = [start], {start, None}
    while waiting:
        node = waiting.pop()
        for following, _ in () if node is None else node.next_functions:
            if following in leaves:
                return True
            if following not in seen:
                seen.add(following)
                waiting.append(following)
    return False
