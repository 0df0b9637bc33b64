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

Part = Literal["weight", "bias"]


class Linear(NamedTuple):
    """``z = x W^T + b``, or the ReLU of it, flattened to two dimensions."""

    inputs: Tensor
    """``x``, ``(N, in)``."""
    relu: Tensor | None
    """``z``, ``(N, out)``, where it is a ReLU's."""
    parts: tuple[Part, ...]
    """What each parameter asked for is."""

    def gradients(self, gradients: Tensor, overwrite: bool) -> list[Tensor]:
        """Of each parameter, ``(T, ...)``, for T tasks' gradients of ``z``, ``(T, N, out)``."""
        if self.relu is not None:
            out = gradients if overwrite else torch.empty_like(gradients)
            gradients = torch.ops.aten.threshold_backward.grad_input(gradients, self.relu, 0, grad_input=out)
        return [
            gradients.sum(1)
            if part == "bias"
            else torch.bmm(gradients.mT, self.inputs.expand(len(gradients), *self.inputs.shape))
            for part in self.parts
        ]


class LinearFinder:
    """Finds the linear layer that features come from, where ``wrt`` are its parameters and it is applied once.

    A hook that changes a gradient between the layer and its ReLU is not seen.

    The graph is searched again whenever the number of nodes recorded from one step to the next has changed. In between,
    the layer is where it was.
    """

    def __init__(self, wrt: Sequence[nn.Parameter]) -> None:
        self._wrt = wrt
        self._place: Place | None = None
        self._number = 0
        self._between = 0

    def find(self, z: Tensor) -> Linear | None:
        """The layer behind features ``z``; None for anything else, and for an input that was not kept as it is."""
        if z.grad_fn is None:
            return None
        number: int = z.grad_fn._sequence_nr()
        between, self._number = number - self._number, number
        if between != self._between:
            self._between = between
            self._place = _search(z.grad_fn, self._wrt)
        return None if self._place is None else self._place.linear(z)


class Place(NamedTuple):
    """Where in the graph behind features a linear layer is."""

    relu: bool
    hops: int
    """So many nodes before that of the features."""
    saved: str
    """What the node calls the layer's input."""
    parts: tuple[Part, ...]

    def linear(self, z: Tensor) -> Linear | None:
        """The layer that was recorded there in this step."""
        node = z.grad_fn
        for _ in range(self.hops):
            node = _before(node)
        kept = getattr(node, f"_raw_saved_{self.saved}")
        if getattr(kept, "unpack_hook", kept) is not None:  # a checkpoint's input can be unpacked but once
            return None
        inputs: Tensor = getattr(node, f"_saved_{self.saved}")
        return Linear(inputs, z.reshape(len(inputs), -1) if self.relu else None, self.parts)


def _search(start: Node, wrt: Sequence[nn.Parameter]) -> Place | None:
    node, hops, relu = start, 0, False
    for passed in ("ViewBackward0", "ReluBackward0", "ViewBackward0", "UnsafeViewBackward0"):
        following = _before(node)
        if node.name() == passed and following is not None:
            node, hops, relu = following, hops + 1, relu or passed == "ReluBackward0"
    bias: Node | None = None
    match node.name(), [following for following, _ in node.next_functions]:
        case "AddmmBackward0", [bias, source, weight] if _get(node, "_saved_alpha") == _get(node, "_saved_beta") == 1:
            saved = "mat1"
        case "MmBackward0", [source, weight]:
            saved = "self"
        case _:
            return None
    if weight is None or weight.name() != "TBackward0":
        return None
    parts: dict[Node | None, Part] = {_leaf(bias): "bias", _leaf(_before(weight)): "weight"}
    leaves = {getattr(leaf, "variable", None): leaf for leaf in parts}
    if any(parameter not in leaves for parameter in wrt) or _reaches(source, {leaves[p] for p in wrt}):
        return None
    return Place(relu, hops, saved, tuple(parts[leaves[p]] for p in wrt))


def _get(node: Node, name: str) -> object:
    return getattr(node, name)


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
