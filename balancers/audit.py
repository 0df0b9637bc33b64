"""Checks what everything read at a fork rests on: task i's loss reaches shared parameters only through alias i.

A walk of the recorded graph finds swapped losses, a head that feeds another, ways around the fork, parameters that two
heads share. Where heads are computed as one product the graph can't tell their tasks apart; then each loss is
differentiated once, with respect to the aliases.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, Node

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
    reaches = {i: _walk(start.edge.node, fork) for i, start in enumerate(starts) if start is not None}
    unbinds = set[Node]().union(*(reach.unbinds for reach in reaches.values()))
    if not unbinds:
        raise ForkError(
            "no loss depends on the fork's features. Run the model's forward pass with gradients and with the fork in "
            "training mode; the fork is a plain identity where the whole model is compiled as one graph: compile the "
            "trunk and the heads apart, or measure parameters instead (fork=None)"
        )
    trunk = set[nn.Parameter]().union(*(_walk(node, None).parameters for node in _inputs(unbinds)))
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
    if len(reaches) > 1 and all(reach.aliases == set(range(fork.num_tasks)) for reach in reaches.values()):
        _differentiate(starts, unbinds, fork.num_tasks, label)
        return
    for i, reach in reaches.items():
        _check_aliases(i, reach.aliases, label)
    for i, first in reaches.items():
        for j, second in reaches.items():
            if i < j and (shared := first.parameters & second.parameters):
                raise ForkError(
                    f"the losses of {label(i)} and {label(j)} share {_describe(shared)} after the fork: put what tasks "
                    f"share before it"
                )


def _walk(start: Node, fork: Fork | None) -> Reach:
    """All that ``start`` depends on, as far as ``fork``; None walks to the leaves."""
    reach = Reach()
    waiting, seen = [start], {start}
    while waiting:
        node = waiting.pop()
        variable = getattr(node, "variable", None)
        if isinstance(variable, nn.Parameter):
            reach.parameters.add(variable)
        for following, output in node.next_functions:
            if following is None:
                continue
            if fork is not None and cast("dict[str, Fork]", following.metadata).get(AUDIT_KEY) is fork:
                reach.unbinds.add(following)
                reach.aliases.add(output)
            elif following not in seen:
                seen.add(following)
                waiting.append(following)
    return reach


def _inputs(nodes: Iterable[Node]) -> list[Node]:
    return [following for node in nodes for following, _ in node.next_functions if following is not None]


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


def _differentiate(starts: Sequence[Root | None], unbinds: set[Node], num_tasks: int, label: Label) -> None:
    """The same check by value, for losses whose graphs are one."""
    aliases = [GradientEdge(node, j) for node in unbinds for j in range(num_tasks)]
    for i, start in enumerate(starts):
        if start is None:
            continue
        gradients = torch.autograd.grad(start.edge, aliases, start.seed, retain_graph=True, allow_unused=True)
        touched = {k % num_tasks for k, gradient in enumerate(gradients) if gradient is not None and gradient.any()}
        if touched:  # a loss may be flat where it is just now
            _check_aliases(i, touched, label)


def _describe(parameters: set[nn.Parameter]) -> str:
    shapes = sorted(str(tuple(parameter.shape)) for parameter in parameters)
    more = f" and {len(shapes) - 1} more" if len(shapes) > 1 else ""
    return f"a parameter of shape {shapes[0]}{more}"
