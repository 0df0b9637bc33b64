"""Checks what everything read at a fork rests on: task i's loss reaches shared parameters only through alias i.

A walk of the recorded graph finds swapped losses, a head that feeds another, ways around the fork, parameters that two
heads share. Where heads are computed as one product the graph can't tell their tasks apart; then each loss is
differentiated once, with respect to the aliases.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from .ddp import DDP_SINK
from .fork import Fork, mark_of
from .loss_input import Entries, Root, roots

Label = Callable[[int], str]


class ForkError(ValueError):
    """The losses depend on the network in a way that the fork's measurements would get wrong."""


@dataclass
class Reach:
    """What one loss reaches without passing the fork."""

    aliases: set[int] = field(default_factory=set)
    marked: set[Node] = field(default_factory=set)
    """Where it comes to the fork."""
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
    marked = set[Node]().union(*(reach.marked for reach in reaches.values()))
    if not marked:
        raise ForkError(
            "no loss depends on the fork's features. Run the model's forward pass with gradients and with the fork in "
            "training mode, and don't change an alias in place; the fork is a plain identity where the whole model is "
            "compiled as one graph: compile the trunk and the heads apart, or measure parameters instead (fork=None)"
        )
    trunk = set[nn.Parameter]().union(*(_walk(source, None).parameters for source in _features(marked)))
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
    for i, reach in reaches.items():
        if not reach.aliases:
            _check_aliases(i, reach.aliases, label)
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
            _check_aliases(i, _touched(start, marked) or {i}, label)  # a loss may be flat just now


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
            mark = None if fork is None else mark_of(source)
            if fork is not None and mark is not None and mark.fork is fork:
                reach.marked.add(source)
                reach.aliases |= set(range(fork.num_tasks)) if mark.task is None else {mark.task}
                continue
            place = (source, nr if source.name() == DDP_SINK else 0)
            if place not in seen:
                seen.add(place)
                waiting.append(place)
    return reach


def _features(marked: Iterable[Node]) -> list[GradientEdge]:
    """Where the features come from; a node of all heads as one has its parameters behind them."""
    firsts = [node.next_functions[0] for node in marked]
    return [GradientEdge(source, nr) for source, nr in firsts if source is not None]


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


def _touched(start: Root, marked: set[Node]) -> set[int]:
    """The aliases that a loss does depend on, by its gradient."""
    nodes = list(marked)
    edges = [GradientEdge(node, 0) for node in nodes]
    gradients = torch.autograd.grad(start.edge, edges, start.seed, retain_graph=True, allow_unused=True)
    touched = set[int]()
    for node, gradient in zip(nodes, gradients, strict=True):
        mark = mark_of(node)
        if mark is None or gradient is None:
            continue
        known = gradient.isfinite() & (gradient != 0)  # of one product, a task's nan is all tasks'
        if mark.task is None:
            touched |= set(known.movedim(-2, 0).flatten(1).any(1).nonzero().flatten().tolist())
        elif known.any():
            touched.add(mark.task)
    return touched


def _describe(parameters: set[nn.Parameter]) -> str:
    shapes = sorted(str(tuple(parameter.shape)) for parameter in parameters)
    more = f" and {len(shapes) - 1} more" if len(shapes) > 1 else ""
    return f"a parameter of shape {shapes[0]}{more}"
