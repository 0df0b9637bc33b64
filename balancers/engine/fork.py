"""The place where the trunk splits into heads.

A model hands its features through a `Fork`, which gives each head its own alias of them::

    def forward(self, x):
        return [head(z) for head, z in zip(self.heads, self.fork(self.trunk(x)))]

During the one ordinary backward pass the gradient of each task's features comes back through its alias, where a
balancer sees it before they are summed and go on into the trunk. `LinearHeads` are heads and fork in one.
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
"""Takes features ``z``, a task, the gradient of its loss with respect to ``z``, of the same shape, and 0. Where heads
are one product, the task is None and the gradients are all tasks', ``(T, *z.shape)``, the observer's to keep or lose;
the number is of entries that the heads will take next, and the observer can take before without more memory at peak.
"""


class Mark(NamedTuple):
    """What the recorded graph keeps, for `audit`, at a node through which a task's gradient comes back."""

    fork: "Fork"
    task: int | None
    """None where the node is that of all tasks' heads as one, whose output has the tasks as its last dimension but one.
    """


_KEY = "fork"
_SOON = 2**62
"""The engine runs what is ready and has the highest sequence number first."""


def mark_of(node: Node) -> Mark | None:
    """The mark that a fork left at a node of the recorded graph, if one did."""
    return cast("dict[str, Mark]", node.metadata).get(_KEY)


@dataclass(eq=False)
class Reading:
    """How a balancer reads a fork; apart from the module, whose attributes take longer to set."""

    recording: bool = False
    """Whether it does: whether the forward pass is to be recorded."""
    recorded: int = 0
    """How many tensors of features were, since the balancer set this to zero."""
    observer: Observer | None = None
    """Called with each gradient that comes back; set for one backward pass at a time."""
    combines: bool = False
    """Whether the balancer decides what goes on into the trunk; otherwise the tasks' gradients are summed."""
    combiner: Callable[[Tensor], Tensor] | None = None
    """Called with features once all tasks' gradients were observed: what goes on in their place. Set as observer is."""


class Fork(nn.Module):
    """Hands each of ``num_tasks`` heads its own alias of the features.

    Returns a tuple of ``num_tasks`` values equal to the input: a tensor, or any nested tuple, list or dict of tensors.
    A plain identity until a balancer reads it, and always in eval mode, without gradients, and inside
    ``torch.compile``. Heads must not change their alias in place. One balancer reads a fork at a time: the one that was
    made for it last.

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
        """Whether gradients of ``z`` are to be seen as they come back."""
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
            cast(Any, whole.grad_fn).register_prehook(partial(self._on, z))
        aliases = []
        for task, mark in enumerate(self._marks):
            alias = whole[...]
            node = cast(Any, alias.grad_fn)
            node.register_prehook(partial(self._back, z, task))
            node.metadata[_KEY] = mark
            if hasattr(node, "_set_sequence_nr"):  # so that a task's gradient is read before the next one's is computed
                node._set_sequence_nr(_SOON)
            aliases.append(alias)
        return tuple(aliases)

    def _back(self, z: Tensor, task: int, gradients: tuple[Tensor | None, ...]) -> None:
        [gradient] = gradients
        if gradient is not None:
            self.observe(z, task, gradient)

    def _on(self, z: Tensor, gradients: tuple[Tensor | None, ...]) -> tuple[Tensor] | None:
        # The engine comes here after all heads: their nodes are younger, and it runs the youngest that is ready.
        combiner = self.combiner()
        return None if combiner is None or gradients[0] is None else (combiner(z),)

    def combiner(self) -> Callable[[Tensor], Tensor] | None:
        """Who decides, in this backward pass, what goes on into the trunk."""
        return None if torch.is_grad_enabled() else self.reading.combiner

    def observe(self, z: Tensor, task: int | None, gradients: Tensor, spare: int = 0) -> None:
        """Hands what came back to whoever observes this backward pass, unless that pass is itself differentiated."""
        # With create_graph=True (a gradient penalty, say) the pass is being differentiated, not trained on.
        if self.reading.observer is not None and not torch.is_grad_enabled():
            self.reading.observer(z, task, gradients, spare)

    def mark(self, node: Any) -> None:
        """Marks the node, of the recorded graph, of all heads as one."""
        node.metadata[_KEY] = Mark(self, None)

    def extra_repr(self) -> str:
        return f"num_tasks={self.num_tasks}"
