"""Mark the place where the trunk splits into heads, so that a balancer sees each task's gradient of the features.

A model passes its features through a `Fork`, which gives each head its own alias of them::

    def forward(self, x):
        return [head(z) for head, z in zip(self.heads, self.fork(self.trunk(x)))]

During the one ordinary backward pass, each task's gradient of the features comes back through that task's alias. A
balancer sees these gradients one by one, before they are summed and go on into the trunk. `LinearHeads` is a module
that contains both the heads and the fork.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils import _pytree as pytree

Observer = Callable[[Tensor, int | None, Tensor, int], None]
"""Callback that receives ``(z, task, gradient, spare)``: features, a task and the gradient of its loss there.

``gradient`` has the shape of ``z``, and ``spare`` is 0. Where one product computes all heads, ``task`` is None and
``gradient`` holds the gradients of all tasks, ``(T, *z.shape)``, which the observer may keep or overwrite. ``spare`` is
then the number of entries that the heads allocate next: the observer may use that much before them without raising the
peak memory.
"""


class Mark(NamedTuple):
    """A label, read by `audit`, on a node of the autograd graph through which a task's gradient returns to a fork."""

    fork: "Fork"
    task: int | None
    """Index of the task. None if the node computes all heads; the tasks are then the second to last dimension of its
    output.
    """


_KEY = "fork"
"""Key of a mark in a node's metadata."""
_SOON = 2**62
"""A sequence number above all usual ones: autograd runs the ready node with the highest number first."""


def mark_of(node: Node) -> Mark | None:
    """Return the mark that a fork left on a node of the autograd graph; None if there is none."""
    return cast("dict[str, Mark]", node.metadata).get(_KEY)


@dataclass(eq=False)
class Reading:
    """How a balancer reads a fork. Kept outside the module because a module's attributes take longer to set."""

    recording: bool = False
    """True if a balancer reads the fork, so that forward passes are recorded."""
    recorded: int = 0
    """Number of feature tensors recorded since the balancer last set this to zero."""
    observer: Observer | None = None
    """Called with each gradient that comes back. Set for one backward pass at a time."""
    combines: bool = False
    """True if the balancer computes the trunk's gradient; otherwise the tasks' gradients are summed."""
    combiner: Callable[[Tensor], Tensor] | None = None
    """Called with features after all their gradients were observed; returns the gradient that goes on into the trunk.
    Set for one backward pass at a time.
    """


class Fork(nn.Module):
    """Give each of ``num_tasks`` heads its own alias of the features.

    The input is a tensor, or any nested tuple, list or dict of tensors. The output is a tuple of ``num_tasks`` values
    that equal the input. A fork is a plain identity until a balancer reads it, and always in eval mode, without
    gradients, and inside ``torch.compile``. Heads must not change their alias in place. Only one balancer reads a fork:
    the one that was made for it last.

    Raises:
        ValueError: ``num_tasks`` is less than 1.
    """

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        if num_tasks < 1:
            raise ValueError(f"num_tasks is {num_tasks}; a fork needs at least one task")
        self.num_tasks = num_tasks
        self.reading = Reading()
        self._marks = [Mark(self, task) for task in range(num_tasks)]

    def records(self, z: object) -> bool:
        """Return whether the gradients of ``z`` are to be observed in the backward pass."""
        return (
            self.reading.recording
            and self.training
            and torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and isinstance(z, Tensor)
            and z.requires_grad
        )

    def forward(self, features: Any) -> tuple[Any, ...]:
        if isinstance(features, Tensor) or not self.reading.recording:
            return self._aliases(features)
        leaves, structure = pytree.tree_flatten(features)
        aliases = [self._aliases(leaf) for leaf in leaves]
        return tuple(pytree.tree_unflatten([a[i] for a in aliases], structure) for i in range(self.num_tasks))

    def _aliases(self, z: Any) -> tuple[Any, ...]:
        if not self.records(z):
            return (z,) * self.num_tasks
        self.reading.recorded += 1
        whole = z
        if self.reading.combines:
            whole = z[...]
            cast(Any, whole.grad_fn).register_prehook(partial(self._combine, z))
        aliases = []
        for task, mark in enumerate(self._marks):
            alias = whole[...]
            node = cast(Any, alias.grad_fn)
            node.register_prehook(partial(self._observe_alias, z, task))
            node.metadata[_KEY] = mark
            if hasattr(node, "_set_sequence_nr"):  # so that a task's gradient is read before the next one's is computed
                node._set_sequence_nr(_SOON)
            aliases.append(alias)
        return tuple(aliases)

    def _observe_alias(self, z: Tensor, task: int, gradients: tuple[Tensor | None, ...]) -> None:
        """Observe the gradient that arrives at the alias of one task."""
        [gradient] = gradients
        if gradient is not None:
            self.observe(z, task, gradient)

    def _combine(self, z: Tensor, gradients: tuple[Tensor | None, ...]) -> tuple[Tensor] | None:
        """Replace the sum of the tasks' gradients by the balancer's combination, if it computes one."""
        # Autograd gets here after all heads: it runs the youngest node that is ready, and the heads' are younger.
        combiner = self.combiner()
        return None if combiner is None or gradients[0] is None else (combiner(z),)

    def combiner(self) -> Callable[[Tensor], Tensor] | None:
        """Return the callback that computes the trunk's gradient in this pass; None sums the tasks' gradients."""
        return None if torch.is_grad_enabled() else self.reading.combiner

    def observe(self, z: Tensor, task: int | None, gradients: Tensor, spare: int = 0) -> None:
        """Pass gradients to the observer of this backward pass, unless the pass is itself being differentiated."""
        # With create_graph=True (a gradient penalty, say) the pass is being differentiated, not trained on.
        if self.reading.observer is not None and not torch.is_grad_enabled():
            self.reading.observer(z, task, gradients, spare)

    def mark(self, node: Any) -> None:
        """Mark the node of the autograd graph that computes all heads."""
        node.metadata[_KEY] = Mark(self, None)

    def extra_repr(self) -> str:
        return f"num_tasks={self.num_tasks}"
