"""Find out from the graph of a step's losses whether a model without a fork could have one.

A `Fork` hands each head its own alias of the features, and two tasks may share nothing after it. This module looks for
the first results that all losses share on their way back, and for the parameters that losses share before these.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.autograd.graph import Node

from balancers import Losses
from balancers.engine.loss_input import Entries, roots

from .subject import in_order


class SharedParts(NamedTuple):
    """The parameters that the losses of a step share.

    Attributes:
        parameters: the parameters that every loss depends on.
        apart: whether losses share a parameter other than through results that all of them share, such as that of a
            head that is called for each task.
        own_heads: whether some loss depends on a parameter that the others do not share.
    """

    parameters: frozenset[nn.Parameter]
    apart: bool
    own_heads: bool


def shared_parts(losses: Losses) -> SharedParts:
    """Return what ``losses`` share, by their autograd graph."""
    entries: Entries = losses if isinstance(losses, Tensor) else [*in_order(losses)]
    starts = [root.edge.node for root in roots(entries) if root is not None]
    common = set.intersection(*(_reached(start, lambda node: False) for start in starts))
    before = [_reached(start, common.__contains__) for start in starts]
    own = [_parameters(nodes - common) for nodes in before]
    first_shared = _parameters(set[Node]().union(*before) & common)
    twice = any(a & b for i, a in enumerate(own) for b in own[:i])
    return SharedParts(frozenset(_parameters(common)), bool(first_shared) or twice, any(own))


def advice(model: nn.Module, losses: Losses, wrt_is_given: bool) -> str | None:
    """Return what to do where a fork at the end of the trunk would be refused; None where a fork fits.

    Args:
        model: the model, which has no fork.
        losses: the losses of a step, with their graph.
        wrt_is_given: whether the shared parameters are named already.
    """
    shared = shared_parts(losses)
    names = [name for name, parameter in model.named_parameters() if parameter in shared.parameters]
    if not names or (shared.own_heads and not shared.apart):
        return None
    if shared.apart:
        why = (
            "Losses share more than features that all of them come from, such as one head for several tasks or a "
            "forward pass for each, so a fork would be refused."
        )
    else:
        why = (
            "All losses come out of one head, and a fork before it would be refused. If that head is a linear layer "
            "with outputs for each task, balancers.LinearHeads can take its place, which has a fork."
        )
    what = (
        f"What fits is fork=None, with the shared parameters as wrt: GradNorm(None, wrt=[...], tasks={len(losses)}). "
        f"It takes one backward pass for each task. The shared parameters are {_listed(names)}."
    )
    return f"{why} {what}" if wrt_is_given else f"{why} {what} To time it, return them as a third entry."


def _reached(start: Node, stop: Callable[[Node], bool]) -> set[Node]:
    """Return the nodes that ``start`` depends on, itself among them; at a node where ``stop`` is true, no further."""
    waiting, seen = [start], {start}
    while waiting:
        node = waiting.pop()
        if stop(node):
            continue
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return seen


def _parameters(nodes: set[Node]) -> set[nn.Parameter]:
    variables = (getattr(node, "variable", None) for node in nodes)
    return {variable for variable in variables if isinstance(variable, nn.Parameter)}


def _listed(names: Sequence[str]) -> str:
    return (
        ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]} and so on to {names[-1]}, {len(names)} in all"
    )
