"""Check that task i's loss reaches shared parameters only through alias i, as all measurements at a fork assume.

A walk of the autograd graph finds swapped losses, a head that feeds another head, paths around the fork, and parameters
that two heads share. Where one product computes all heads, the graph can't tell their tasks apart. Each loss is then
differentiated once with respect to the aliases.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from ..fork_error import ForkError
from ..loss_input import Entries, Root, roots
from ..passes import as_measurements
from ..torch_internals import DDP_SINK, IN_PLACE, REENTRANT, has_static_sink, recorded_before, upstream
from .fork import Fork, Passage, mark_of

Label = Callable[[int], str]


@dataclass
class Reach:
    """The parts of the autograd graph that one loss reaches without passing the fork."""

    aliases: set[int] = field(default_factory=set)
    """Tasks on whose aliases the loss depends."""
    marked: set[Node] = field(default_factory=set)
    """Nodes at which the loss reaches the fork."""
    parameters: set[nn.Parameter] = field(default_factory=set)
    """Parameters on which the loss depends other than through the fork."""
    nodes: set[str] = field(default_factory=set)
    """Names of the nodes on which the loss depends other than through the fork."""


def audit(fork: Fork, losses: Entries, wrt: Sequence[nn.Parameter], are_listed: bool, label: Label) -> None:
    """Check the autograd graph of this step's ``losses``.

    Args:
        fork: the fork at which the tasks' gradients are measured.
        losses: the losses of T tasks.
        wrt: parameters that must lie upstream of the fork.
        are_listed: whether they were given one by one. All must then lie there; of a module, some may be left out of
            this step, such as those of a layer that is skipped at random.
        label: function that returns the name of task ``i`` for messages.

    Raises:
        ForkError: a loss reaches shared parameters other than through its own alias, or ``wrt`` is not upstream of the
            fork. The message names the task or the parameters, and the cause.
    """
    starts = roots(losses)
    if isinstance(losses, Tensor) and None in starts:
        raise ForkError(
            f"the loss of {label(starts.index(None))} does not require grad: was it detached? A task without a loss to "
            f"learn from can be left out of a {{task: loss}} dict"
        )
    reaches = {i: _walk(start.edge, fork) for i, start in enumerate(starts) if start is not None}
    marked = set[Node]().union(*(reach.marked for reach in reaches.values()))
    nodes = [start.edge.node for start in starts if start is not None]
    if not marked and any(recorded_before(node, fork.reading.since) for node in nodes):
        raise ForkError(
            "the balancer was made after the forward pass that these losses come from, in which the fork recorded no "
            "features: make the balancer first, then run the forward pass"
        )
    try:
        _check(fork, starts, reaches, marked, wrt, are_listed, label)
    except ForkError as error:
        if set(IN_PLACE).isdisjoint(set[str]().union(*(reach.nodes for reach in reaches.values()))):
            raise
        raise ForkError(
            "a head changes in place what it shares with others: does it begin with ReLU(inplace=True) or an operator "
            "such as mul_? Use the one that returns a new tensor"
            + (f". Seen from the losses, {error}" if marked else "")
        ) from None


def _check(
    fork: Fork,
    starts: Sequence[Root | None],
    reaches: Mapping[int, Reach],
    marked: set[Node],
    wrt: Sequence[nn.Parameter],
    are_listed: bool,
    label: Label,
) -> None:
    if not marked:
        raise ForkError(fork.reading.why_nothing())
    trunk = set[nn.Parameter]().union(*(_walk(source, None).parameters for source in _features(marked)))
    if elsewhere := set(wrt) - trunk:
        behind = set[str]().union(*(_walk(source, None).nodes for source in _features(marked)))
        if REENTRANT in behind:
            raise ForkError(
                f"wrt holds {_describe(elsewhere)} inside a checkpoint with use_reentrant=True, which hides it: pass "
                f"use_reentrant=False to torch.utils.checkpoint"
            )
        if not are_listed and len(elsewhere) < len(wrt):  # what no loss depends on is left out of this step
            elsewhere &= set[nn.Parameter]().union(*(reach.parameters for reach in reaches.values()))
    if elsewhere:
        raise ForkError(
            f"wrt holds {_describe(elsewhere)} that the fork's features do not depend on: pass the last shared layer, "
            f"or other parameters upstream of the fork. If these were replaced after the balancer was made, by "
            f"fully_shard or load_state_dict(assign=True), make it later, with the module itself as wrt"
        )
    if wrt and has_static_sink(_features(marked)):
        raise ForkError(
            "the trunk alone is in a DistributedDataParallel with static_graph=True, which takes a measurement in it "
            "for its first backward pass: wrap the whole model, or make it without static_graph"
        )
    for i, reach in reaches.items():
        if around := reach.parameters & trunk:
            raise ForkError(
                f"the loss of {label(i)} reaches {_describe(around)} of the trunk around the fork, for example by a "
                f"skip connection, tied weights or a penalty on the trunk: pass all shared features through the fork, "
                f"and add penalties to the loss that the balancer returns"
            )
    for i, reach in reaches.items():
        if not reach.aliases:
            _check_aliases(i, reach.aliases, label)
    alike = {i: _alike(i, reaches) for i in reaches}
    for i, reach in reaches.items():
        start = starts[i]
        if start is not None and start.seed.ndim and i not in reach.aliases:
            _check_aliases(i, set(), label)  # the losses were computed on as one tensor
    for i, reach in reaches.items():
        _check_aliases(i, reach.aliases - alike[i], label)
    for i, first in reaches.items():
        for j, second in reaches.items():
            if i < j and j not in alike[i] and (shared := first.parameters & second.parameters):
                raise ForkError(
                    f"the losses of {label(i)} and {label(j)} share {_describe(shared)} after the fork: move "
                    f"layers that tasks share before the fork"
                )
    for i, start in enumerate(starts):
        if start is not None and alike[i]:
            _check_aliases(i, _touched(start, marked) or {i}, label)  # a loss with a zero gradient passes


def _alike(i: int, reaches: Mapping[int, Reach]) -> set[int]:
    """Return the other tasks that the graph can't tell from task ``i``: each loss reaches both aliases."""

    def both(reach: Reach, j: int) -> bool:
        return {i, j} <= reach.aliases

    return {j for j in reaches[i].aliases - {i} if both(reaches[i], j) and (j not in reaches or both(reaches[j], j))}


def _walk(start: GradientEdge, fork: Fork | None) -> Reach:
    """Collect what ``start`` depends on, up to ``fork``; if it is None, up to the leaves of the graph."""
    reach = Reach()
    waiting, seen = [(start.node, start.output_nr)], set[tuple[Node, int]]()
    while waiting:
        node, output = waiting.pop()
        reach.nodes.add(node.name())
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


def feature_gradients(fork: Fork, losses: Entries, factors: Tensor) -> list[Tensor]:
    """Return the gradients of each tensor that went through the fork, ``(T, *z.shape)``, zero for an absent loss.

    They are those of the losses times ``factors``, ``(T,)``.
    """
    starts = roots(losses)
    marked = set[Node]().union(*(_walk(start.edge, fork).marked for start in starts if start is not None))
    edges = list({(edge.node, edge.output_nr): edge for edge in _features(marked)}.values())
    rows = [
        torch.autograd.grad(start.edge, edges, start.seed * factor, retain_graph=True, allow_unused=True)
        if start is not None
        else (None,) * len(edges)
        for start, factor in zip(starts, factors, strict=True)
    ]
    columns = []
    for column in zip(*rows, strict=True):
        some = next((part for part in column if part is not None), None)
        if some is not None:
            columns.append(torch.stack([torch.zeros_like(some) if part is None else part for part in column]))
    return columns


def passages_to(fork: Fork, losses: Entries) -> set[Passage]:
    """Return the passages of the features through the fork that the losses depend on."""
    nodes = upstream(*(root.edge.node for root in roots(losses) if root is not None))
    return {mark.passage for node in nodes if (mark := mark_of(node)) is not None and mark.fork is fork}


def _features(marked: Iterable[Node]) -> list[GradientEdge]:
    """Return the edges that the features come from: each node's first input, as further inputs are parameters."""
    firsts = [node.next_functions[0] for node in marked]
    return [GradientEdge(source, nr) for source, nr in firsts if source is not None]


def _check_aliases(i: int, aliases: set[int], label: Label) -> None:
    """Raise `ForkError` unless the loss of task ``i`` depends on alias ``i`` and on no other.

    ``aliases`` are those that it depends on.
    """
    others = sorted(aliases - {i})
    if others:
        raise ForkError(
            f"the loss of {label(i)} depends on the features that the fork handed to {label(others[0])}: pass the "
            f"losses in the order of the fork's aliases, and let no head read another head's features"
        )
    if not aliases:
        raise ForkError(
            f"the loss of {label(i)} does not depend on the features that the fork handed to it: was it detached? "
            f"Compute the loss from this task's alias; if the task has no loss in this step, leave it out of a "
            f"{{task: loss}} dict"
        )


def _touched(start: Root, marked: set[Node]) -> set[int]:
    """Return the tasks for whose aliases the loss has a gradient that is finite and not zero.

    This waits for the device. Tensors without values (on meta, or fake) show nothing.
    """
    if start.seed.untyped_storage().device.type == "meta":
        return set()
    nodes = list(marked)
    edges = [GradientEdge(node, 0) for node in nodes]
    with as_measurements([start.edge.node]):
        gradients = torch.autograd.grad(start.edge, edges, start.seed, retain_graph=True, allow_unused=True)
    touched = set[int]()
    for node, gradient in zip(nodes, gradients, strict=True):
        mark = mark_of(node)
        if mark is None or gradient is None:
            continue
        known = gradient.isfinite() & (gradient != 0)  # one product spreads a task's nan to all tasks
        if mark.task is None:
            touched |= set(known.movedim(-2, 0).flatten(1).any(1).nonzero().flatten().tolist())
        elif known.any():
            touched.add(mark.task)
    return touched


def _describe(parameters: set[nn.Parameter]) -> str:
    """Return the shape of one parameter and the number of the others, for messages."""
    shapes = sorted(str(tuple(parameter.shape)) for parameter in parameters)
    more = f" and {len(shapes) - 1} more" if len(shapes) > 1 else ""
    return f"a parameter of shape {shapes[0]}{more}"
