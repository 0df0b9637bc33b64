"""Checks what everything read at a fork rests on: task i's loss reaches shared parameters only through alias i.

A walk of the recorded graph finds swapped losses, a head that feeds another, ways around the fork, parameters that two
heads share. Where heads are computed as one product the graph can't tell their tasks apart; then each loss is
differentiated once, with respect to the aliases.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from .ddp import DDP_SINK
from .fork import AUDIT_KEY, Fork
from .losses import Entries, Root, roots

Label = Callable[[int], str]


class ForkError(ValueError):
    """The losses depend on the network in a way that the fork's measurements would get wrong."""


@dataclass
class Reach:
    """What one loss reaches without passing the fork."""

    aliases: set[int] = field(default_factory=set)
    unbinds: set[Node] = field(default_factory=set)
    parameters: set[nn.Parameter] = field(default_factory=set)


def audit(fork: Fork, losses: Entries, wrt: Sequence[nn.Parameter], label: Label) -> None:
    """Checks the graph that was recorded for this step's ``losses``.

    Args:
        fork: where the tasks' gradients are measured.
        losses: those of T tasks.
        wrt: parameters that must lie upstream of the fork.
        label: names task ``i`` in messages.

    Raises:
        ForkError: a task, and what is wrong with its way to the shared parameters.
    """
    starts = roots(losses)
    if isinstance(losses, Tensor) and None in starts:
        raise ForkError(f"in losses, that of {label(starts.index(None))} does not require grad; was it detached?")
    reaches = {i: _walk(start.edge, fork) for i, start in enumerate(starts) if start is not None}
    unbinds = set[Node]().union(*(reach.unbinds for reach in reaches.values()))
    if not unbinds:
        raise ForkError(
            "no loss depends on the fork's features. Run the model's forward pass with gradients and with the fork in "
            "training mode; the fork is a plain identity where the whole model is compiled as one graph: compile the "
            "trunk and the heads apart, or measure parameters instead (fork=None)"
        )
    trunk = set[nn.Parameter]().union(*(_walk(source, None).parameters for source in _sources(unbinds)))
    if elsewhere := set(wrt) - trunk:
        raise ForkError(
            f"wrt holds {_describe(elsewhere)} that the fork's features do not depend on: expected the last shared "
            f"layer, upstream of the fork"
        )
    for i, reach in reaches.items():
        if around := reach.parameters & trunk:
            raise ForkError(
                f"the loss of {label(i)} reaches {_describe(around)} of the trunk around the fork (a skip connection, "
                f"tied weights, a penalty on the trunk): pass such features through the fork too, and add penalties to "
                f"the loss that the balancer returns"
            )
    alike = {i: _alike(i, reaches) for i in reaches}
    for i, reach in reaches.items():
        _check_aliases(i, reach.aliases - alike[i], label)
    for i, first in reaches.items():
        for j, second in reaches.items():
            if i < j and j not in alike[i] and (shared := first.parameters & second.parameters):
                raise ForkError(
                    f"the losses of {label(i)} and {label(j)} share {_describe(shared)} after the fork: put what tasks "
                    f"share before it"
                )
    for i, start in enumerate(starts):
        if start is not None and alike[i]:
            _check_aliases(i, _touched(start, unbinds, fork.num_tasks) or {i}, label)  # a loss may be flat just now


def _alike(i: int, reaches: Mapping[int, Reach]) -> set[int]:
    """The other tasks that the graph can't tell from task ``i``: all reach each other's aliases and their own."""

    def both(reach: Reach, j: int) -> bool:
        return {i, j} <= reach.aliases

    return {j for j in reaches[i].aliases - {i} if both(reaches[i], j) and (j not in reaches or both(reaches[j], j))}


def _walk(start: GradientEdge, fork: Fork | None) -> Reach:
    """All that ``start`` depends on, as far as ``fork``; None walks to the leaves."""
    reach = Reach()
    waiting, seen = [(start.node, start.output_nr)], set[tuple[Node, int]]()
    while waiting:
        node, output = waiting.pop()
        variable = getattr(node, "variable", None)
        if isinstance(variable, nn.Parameter):
            reach.parameters.add(variable)
        sources = node.next_functions
        for source, nr in sources[output : output + 1] if node.name() == DDP_SINK else sources:
            if source is None:
                continue
            if fork is not None and cast("dict[str, Fork]", source.metadata).get(AUDIT_KEY) is fork:
                reach.unbinds.add(source)
                reach.aliases.add(nr)
                continue
            place = (source, nr if source.name() == DDP_SINK else 0)
            if place not in seen:
                seen.add(place)
                waiting.append(place)
    return reach


def _sources(nodes: Iterable[Node]) -> list[GradientEdge]:
    return [GradientEdge(source, nr) for node in nodes for source, nr in node.next_functions if source is not None]


def _check_aliases(i: int, aliases: set[int], label: Label) -> None:
    others = sorted(aliases - {i})
    if others:
        raise ForkError(
            f"the loss of {label(i)} depends on the features that the fork handed to {label(others[0])}: give the "
            f"losses in the order of the fork's aliases, and let no head read another's"
        )
    if not aliases:
        raise ForkError(
            f"the loss of {label(i)} does not depend on the features that the fork handed to it; leave a task out of a "
            f"step by leaving it out of a {{task: loss}} dict"
        )


def _touched(start: Root, unbinds: set[Node], num_tasks: int) -> set[int]:
    """The aliases that a loss does depend on, by its gradient."""
    aliases = [GradientEdge(node, j) for node in unbinds for j in range(num_tasks)]
    gradients = torch.autograd.grad(start.edge, aliases, start.seed, retain_graph=True, allow_unused=True)
    return {k % num_tasks for k, gradient in enumerate(gradients) if gradient is not None and gradient.any()}


def _describe(parameters: set[nn.Parameter]) -> str:
    shapes = sorted(str(tuple(parameter.shape)) for parameter in parameters)
    more = f" and {len(shapes) - 1} more" if len(shapes) > 1 else ""
    return f"a parameter of shape {shapes[0]}{more}"
