"""The end of the trunk's graph, where a method combines the gradients of all shared parameters.

A gate's inputs are all leaves of the graph upstream of some features, and its outputs are these features. The gradients
that come to them go no further: a balancer's step makes of them the gradient of each leaf, and the gate returns these.
Their hooks, gradients that are there already, DistributedDataParallel, and an optimiser that steps in the backward pass
see what they see with any other loss.

What lies between a leaf and the features is no input of the gate. Hooks on it see each task's gradient by itself, and
`torch.autograd.grad` of a loss with respect to it finds no way there.
"""

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node, get_gradient_edge

from ..graph_behind import GraphBehind
from ..own_precision import own_precision
from ..torch_internals import (
    FORK_COMPILED,
    REENTRANT,
    frees_behind,
    in_transform,
    not_compiled,
    static_model,
    without_hooks,
)

if TYPE_CHECKING:
    from .fork import Passage

_KEY = "gate"
"""Key of a `_Trunk` in a node's metadata."""
_NONE = (None,) * 4
"""The gradients of what is given to `_Gate` besides leaves."""


class _Trunk:
    """The nodes behind a gate, which all have it in their metadata, but for those that another gate saw first."""

    is_shared = False
    """Whether some of them are behind another gate too."""

    def add(self, node: Node) -> None:
        other = cast(dict[str, _Trunk], node.metadata).setdefault(_KEY, self)
        if other is not self:
            other.is_shared = self.is_shared = True


def close(
    features: Sequence[Tensor],
    passages: Sequence["Passage"],
    shared: Collection[nn.Parameter],
    mark_of: Callable[[Node], object],
) -> tuple[Tensor, ...] | None:
    """Return the features as a gate's outputs; None where a parameter upstream of them is not one of ``shared``.

    Then, and where ``mark_of`` a node upstream tells of another fork, or where a DDP with a static graph counts passes
    through the trunk, the features' gradients have to go on through it.
    """
    trunk, graph = _Trunk(), GraphBehind(features)
    leaves = _leaves(features, graph, mark_of, trunk)
    parameters = {leaf for leaf in leaves if isinstance(leaf, nn.Parameter)}
    if in_transform() or not parameters or not parameters.issubset(shared):
        return None
    outputs: tuple[Tensor, ...] = _Gate.apply(trunk, graph, list(features), list(passages), *leaves)
    return outputs


def differentiate(
    features: Sequence[Tensor], gradients: Sequence[Tensor | None], leaves: Sequence[Tensor], retain_graph: bool
) -> tuple[Tensor | None, ...]:
    """Return the gradient of each leaf for those of the features; the leaves' hooks don't see it."""
    given = [(z, gradient) for z, gradient in zip(features, gradients, strict=True) if gradient is not None]
    if not given:
        return (None,) * len(leaves)
    with without_hooks(leaves):
        return torch.autograd.grad(
            [get_gradient_edge(z) for z, _ in given],
            leaves,
            [gradient for _, gradient in given],
            retain_graph=retain_graph,
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )


def _leaves(
    features: Sequence[Tensor], graph: GraphBehind, mark_of: Callable[[Node], object], trunk: _Trunk
) -> list[Tensor]:
    """Return the leaves of the graph upstream of the features; none where there is a fork on the way.

    The other nodes there are added to ``trunk``.
    """
    leaves = {z: None for z in features if z.grad_fn is None}
    for node in graph.users:
        variable = getattr(node, "variable", None) if node in graph.leaves else None
        if isinstance(variable, Tensor) and variable.is_leaf:
            leaves[variable] = None
            continue
        if mark_of(node) is not None or (
            isinstance(node, BackwardCFunction) and (node.name() == REENTRANT or static_model(node) is not None)
        ):
            return []
        trunk.add(node)
    return list(leaves)


class _Gate(torch.autograd.Function):
    """The identity of features; the leaves are inputs so that they get the gradients that ``backward`` returns."""

    @staticmethod
    def forward(
        ctx: Any, trunk: _Trunk, graph: GraphBehind, features: list[Tensor], passages: list["Passage"], *leaves: Tensor
    ) -> tuple[Tensor, ...]:
        # Saved, the features keep their graph until a backward pass frees it, and no longer.
        ctx.save_for_backward(*features)
        ctx.trunk, ctx.passages, ctx.leaves = trunk, passages, leaves
        ctx.graph = graph  # until the first backward pass: it holds nodes, and what these hold
        ctx.set_materialize_grads(False)
        return tuple(z.detach() for z in features)

    @staticmethod
    @not_compiled(FORK_COMPILED)
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        features, leaves, step = ctx.saved_tensors, ctx.leaves, ctx.passages[0].step()
        # The pass around this one ends at the gate, so the trunk's graph is freed here, before the leaves' hooks run. A
        # hook that differentiates the trunk needs retain_graph=True.
        graph, ctx.graph = ctx.graph or GraphBehind(features), None
        retain_graph = ctx.trunk.is_shared or not frees_behind(graph.users, graph.leaves)
        if step is None or not step.combines:
            return *_NONE, *differentiate(features, gradients, leaves, retain_graph)
        with own_precision(features[0]):
            if step.features == len(features):
                return *_NONE, *step.gradients_of(leaves, features, graph, ctx.passages, retain_graph)
            # Other features of this step went through the fork by themselves.
            combined = [step.combined(passage) for passage in ctx.passages]
        return *_NONE, *differentiate(features, combined, leaves, retain_graph)
