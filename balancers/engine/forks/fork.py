"""Mark the place where the trunk splits into heads, so that a balancer sees each task's gradient of the features.

A model passes its features through a `Fork`, which gives each head its own alias of them::

    def forward(self, x):
        return [head(z) for head, z in zip(self.heads, self.fork(self.trunk(x)))]

During the one ordinary backward pass, each task's gradient of the features comes back through that task's alias. A
balancer sees these gradients one by one, before they are summed and go on into the trunk. `LinearHeads` is a module
that contains both the heads and the fork.
"""

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from ..fork_error import ForkError
from ..graph_behind import GraphBehind
from ..own_precision import own_precision
from ..torch_internals import (
    FORK_COMPILED,
    in_transform,
    not_compiled,
    recorded_nodes,
    run_early,
    tree_flatten,
    tree_unflatten,
)
from .attached_heads import AttachedHeads
from .gate import close


class Mark(NamedTuple):
    """A label, read by `audit`, on a node of the autograd graph through which a task's gradient returns to a fork."""

    fork: "Fork"
    task: int | None
    """Index of the task. None if the node computes all heads; the tasks are then the second to last dimension of its
    output.
    """
    passage: "Passage"
    """That of the features."""


_KEY = "fork"
"""Key of a mark in a node's metadata."""


def mark_of(node: Node) -> Mark | None:
    """Return the mark that a fork left on a node of the autograd graph; None if there is none."""
    return cast("dict[str, Mark]", node.metadata).get(_KEY)


def mark_all_heads(node: Any, fork: "Fork", passage: "Passage") -> None:
    """Mark the node of the autograd graph that computes all heads."""
    node.metadata[_KEY] = Mark(fork, None, passage)


class Observer(Protocol):
    """A balancer's step, to which a fork shows gradients."""

    combines: bool
    """Whether it computes the gradient that goes on into the trunk; otherwise the tasks' gradients are summed."""
    features: int
    """The number of tensors that went through the fork since the call before."""

    def is_current(self) -> bool:
        """Return whether the code runs in the backward pass that the step measures."""

    def is_late(self) -> bool:
        """Return whether the code runs in the backward pass of another call of the step's balancer."""

    def observe(self, passage: "Passage", z: Tensor, task: int | None, gradients: Tensor, free_entries: int) -> None:
        """Take the gradient of one task's loss with respect to features ``z``.

        Args:
            passage: that of ``z``.
            z: the features.
            task: index of the task; None where one product computes all heads.
            gradients: of the shape of ``z``. For all tasks ``(T, *z.shape)``, which the step may keep or overwrite.
            free_entries: the number of entries that the step may allocate for a while, without raising the peak memory:
                `LinearHeads` compute their weights' gradient next, and it takes as many. 0 from heads of their own.
        """

    def combined(self, passage: "Passage") -> Tensor | None:
        """Return the gradient that goes on from features into the trunk, after all were observed."""

    def gradients_of(
        self,
        leaves: Sequence[Tensor],
        features: Sequence[Tensor],
        graph: GraphBehind,
        passages: Sequence["Passage"],
        retain_graph: bool,
    ) -> Sequence[Tensor | None]:
        """Return the gradient of each of a gate's leaves, after all of the step's features were observed.

        Args:
            leaves: the gate's.
            features: all tensors of features, in the order of ``passages``.
            graph: what is behind them.
            passages: theirs.
            retain_graph: whether to keep the graph.
        """


class Recording:
    """The features that went through a fork between two calls of a balancer."""

    def __init__(self) -> None:
        self._passages: weakref.WeakSet[Passage] = weakref.WeakSet()
        self.step: Observer | None = None
        """The call of a balancer that came next."""
        self.shared: Sequence[nn.Parameter] | None = None
        """The parameters whose gradients a gate makes."""
        self._calls = 0

    def add(self, features: Sequence[Tensor]) -> "list[Passage]":
        """Record the features of one call of the fork."""
        self._calls += 1
        passages = [Passage(self, z, self._calls) for z in features]
        self._passages.update(passages)
        return passages

    @property
    def count(self) -> int:
        """The number of tensors whose part of the graph was not freed."""
        return len(self._passages)

    @property
    def has_several_calls(self) -> bool:
        """Whether these tensors come from several calls of the fork."""
        return len({passage.call for passage in self._passages}) > 1

    @property
    def has_one_twice(self) -> bool:
        """Whether one tensor went through the fork twice, and its parts of the graph were not freed."""
        if self.count < 2:
            return False
        features = [z for passage in self._passages if (z := passage.features()) is not None]
        return len({id(z) for z in features}) < len(features)


class Passage:
    """One tensor of features that went through a fork, held by the nodes of the graph that come after it."""

    def __init__(self, recording: Recording, z: Tensor, call: int) -> None:
        self._recording = recording
        self.call = call
        """The number of the fork's call, of those between two calls of a balancer."""
        self.features = weakref.ref(z)
        """Returns the features as the trunk made them; None when they were freed."""
        self.gated = False
        """Whether a gate makes the gradients of the trunk's parameters."""

    def step(self) -> Observer | None:
        """Return the step that measures the backward pass in which this is called, if there is one.

        Raises:
            ForkError: it is a step of the same balancer, from a later call.
        """
        step = self._recording.step
        if step is None or step.is_current():
            return step
        if step.is_late():
            raise ForkError(
                "a loss depends on features that went through the fork before an earlier call of the balancer, which "
                "measures what went through since: call it once for each step, after all forward passes of the step"
            )
        return None


class Reader:
    """A balancer that reads a fork.

    Args:
        combines: whether it combines gradients.
        shared: returns a function that returns the parameters whose gradients it combines; either may return None.
    """

    def __init__(
        self, combines: bool, shared: Callable[[], Callable[[], Sequence[nn.Parameter] | None] | None] = lambda: None
    ) -> None:
        self.combines = combines
        self.shared = shared
        self.wants = True
        """Whether it measures its next step."""


class Reading:
    """How balancers read a fork. Kept outside the module because a module's attributes take longer to set."""

    def __init__(self) -> None:
        self.recording = False
        """True if a balancer measures the next step, so that features are recorded."""
        self.combines = False
        """True if a balancer that reads the fork combines gradients."""
        self._readers: list[Reader] = []
        self._now = Recording()
        self._no_grad = self._transformed = False
        self.since = 0
        """The number of nodes of the autograd graph when the last balancer was made: see `recorded_before`."""
        self.on_claim: Callable[[], None] | None = None
        """Called when a balancer's call ends the forward passes of a step."""

    def __reduce__(self) -> tuple[type["Reading"], tuple[()]]:
        return Reading, ()  # a copied fork has no readers: a balancer that is copied with it attaches itself

    def attach(self, reader: Reader) -> None:
        """Add a balancer."""
        self._readers.append(reader)
        self.since = recorded_nodes()
        self._update()

    def detach(self, reader: Reader) -> None:
        """Remove a balancer."""
        self._readers = [other for other in self._readers if other is not reader]
        self._update()

    def want(self, reader: Reader, wants: bool) -> None:
        """Say whether a balancer measures its next step."""
        if reader.wants != wants:
            reader.wants = wants
            self._update()

    def _update(self) -> None:
        self.recording = any(reader.wants for reader in self._readers)
        self.combines = any(reader.combines for reader in self._readers)

    def records(self, z: object) -> bool:
        """Return whether the gradients of ``z`` are to be observed in the backward pass."""
        if not self.recording or not torch.is_grad_enabled() or not isinstance(z, Tensor):
            return False
        self._no_grad, self._transformed = not z.requires_grad, in_transform()
        return z.requires_grad

    def record(self, features: Sequence[Tensor]) -> list[tuple[Tensor, Passage]]:
        """Record features of one call; return each as the heads are to get it, with its passage."""
        passages = self._now.add(features)
        ends, shared = None, self._shared() if self.combines else None
        if shared and (ends := close(features, passages, shared, mark_of)) is not None:
            self._now.shared = shared
        for passage in passages:
            passage.gated = ends is not None
        return list(zip(features if ends is None else ends, passages, strict=True))

    def now(self) -> object:
        """Return an object that is another one after the next call of a balancer that reads the fork."""
        return self._now

    def _shared(self) -> Sequence[nn.Parameter] | None:
        """Return the parameters that the only balancer which reads the fork combines the gradients of."""
        combine = self._readers[0].shared() if len(self._readers) == 1 else None
        return None if combine is None else combine()

    def claim(self, step: Observer) -> Recording:
        """Give a balancer's call the features recorded since the last call, and return their recording."""
        recording, self._now = self._now, Recording()
        recording.step = step
        if self.on_claim is not None:
            self.on_claim()
        return recording

    def why_nothing(self) -> str:
        """Return why a call of a balancer found no features."""
        if self._no_grad and self._transformed:
            return (
                "the forward pass ran in a transform of torch.func, such as torch.vmap, which shows the fork features "
                "without a graph: keep the fork and what comes before it outside of the transform, or measure the "
                "shared parameters, with fork=None"
            )
        if self._no_grad:
            return (
                "the features that went through the fork don't require grad, so that nothing reaches the trunk: is the "
                "whole trunk frozen, detached, or run under no_grad? Then use a method that reads losses alone"
            )
        return (
            "no features of this step went through this balancer's fork. Run the model's forward pass before each call "
            "of the balancer, with gradients enabled. A copied model has another fork: make another balancer for it. "
            "Two balancers can't measure the same forward pass, and neither can two calls of one: call it once, with "
            "all losses. A checkpoint with use_reentrant=True around the fork hides the features from it"
        )


class Fork(nn.Module):
    """Give each of ``num_tasks`` heads its own alias of the features.

    The input is a tensor, or any nested tuple, list or dict of tensors. The output is a tuple of ``num_tasks`` values
    that equal the input. A fork is a plain identity until a balancer reads it, and without gradients. Heads must not
    change their alias in place. A model whose fork is read can be compiled, but not with ``fullgraph=True``.

    Raises:
        ValueError: ``num_tasks`` is less than 1.

    Example::

        fork = Fork(num_tasks=2)
        class_features, box_features = fork(trunk(x))
        scores, boxes = class_head(class_features), box_head(box_features)
    """

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        if num_tasks < 1:
            raise ValueError(f"num_tasks is {num_tasks}; a fork needs at least one task")
        self.num_tasks = num_tasks
        self.reading = Reading()
        self._attached: AttachedHeads | None = None

    @classmethod
    def attach(cls, heads: Sequence[nn.Module], *, apart: bool = False) -> "Fork":
        """Return a fork for a model whose code has none: hooks hand each head its own alias of what it is called with.

        The result is that of a fork written into the model just before its heads::

            fork = Fork.attach([model.cls_head, model.box_head])
            balancer = GradNorm(fork, wrt=model.trunk[-1], tasks=["class", "box"])

        A head is a module that gets the features, in any nested form, and serves one task. All heads must get the same
        tensors. A copy of the model has hooks that no balancer reads: attach to it anew.

        Args:
            heads: the module of each task, in the order of the tasks.
            apart: whether heads may be called with other tensors than each other in a step, such as each with a batch
                of its own.

        Raises:
            TypeError: a head is not a module.
            ValueError: there is no head, or two heads are one module or share one.
            ForkError: in a step, heads get different tensors, or one runs twice on the same: before the others ran, or
                where gradients of features are measured.
        """
        fork = cls(len(heads))
        fork._attached = AttachedHeads(fork, heads, apart)
        fork.reading.on_claim = fork._attached.end
        return fork

    def detach(self) -> None:
        """Remove the hooks of `attach` from the heads; a fork in a model's code has none."""
        if self._attached is not None:
            self._attached.remove()
            self._attached, self.reading.on_claim = None, None

    def forward(self, features: Any) -> tuple[Any, ...]:
        if not (self.reading.recording and torch.is_grad_enabled()):
            return (features,) * self.num_tasks
        return self._recorded(features)

    @not_compiled(FORK_COMPILED)
    def _recorded(self, features: Any) -> tuple[Any, ...]:
        whole = isinstance(features, Tensor)
        leaves, structure = ([features], None) if whole else tree_flatten(features)
        if not any(isinstance(leaf, Tensor) for leaf in leaves):
            raise TypeError(
                f"the fork was given features of type {type(features).__name__}, in which it finds no tensor: pass "
                f"them as a tensor, or as nested tuples, lists and dicts of tensors"
            )
        # A tensor that stands in several places is one variable, with one alias for each head.
        features = {id(leaf): leaf for leaf in leaves if self.reading.records(leaf)}
        if any(z.is_nested or z.layout is not torch.strided for z in features.values()):
            raise TypeError(
                "features are a nested or a sparse tensor, which has no aliases: measure the shared parameters, with "
                "fork=None, or let padded or dense tensors go through the fork"
            )
        recorded = zip(features, self.reading.record(list(features.values())), strict=True)
        of_features = {key: self._aliases(z, passage) for key, (z, passage) in recorded}
        aliases = [of_features.get(id(leaf), (leaf,) * self.num_tasks) for leaf in leaves]
        if structure is None:
            return aliases[0]
        return tuple(tree_unflatten([a[i] for a in aliases], structure) for i in range(self.num_tasks))

    def _aliases(self, z: Tensor, passage: Passage) -> tuple[Tensor, ...]:
        whole = z
        if self.reading.combines and not passage.gated:
            whole = z[...]
            cast(Any, whole.grad_fn).register_prehook(partial(_combine, passage))
        aliases = []
        for task in range(self.num_tasks):
            alias = whole[...]
            node = cast(Any, alias.grad_fn)
            node.register_prehook(partial(_observe, passage, z, task))
            node.metadata[_KEY] = Mark(self, task, passage)
            run_early(node)
            aliases.append(alias)
        return tuple(aliases)

    def extra_repr(self) -> str:
        return f"num_tasks={self.num_tasks}"


@not_compiled(FORK_COMPILED)
def _observe(passage: Passage, z: Tensor, task: int, gradients: tuple[Tensor | None, ...]) -> None:
    """Show a step the gradient that arrives at the alias of one task."""
    [gradient] = gradients
    step = passage.step()
    if step is not None and gradient is not None:
        with own_precision(z):
            step.observe(passage, z, task, gradient, 0)


@not_compiled(FORK_COMPILED)
def _combine(passage: Passage, gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None] | None:
    """Replace the sum of the tasks' gradients by the step's combination, if it combines."""
    # Autograd gets here after all heads: it runs the youngest node that is ready, and the heads' are younger.
    step, [gradient] = passage.step(), gradients
    if step is None or not step.combines or gradient is None:
        return None
    with own_precision(gradient):
        return (step.combined(passage),)
