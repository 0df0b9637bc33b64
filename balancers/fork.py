"""The place where the trunk splits into heads.

A model hands its features through a `Fork`, which gives each head its own alias of them::

    def forward(self, x):
        return [head(z) for head, z in zip(self.heads, self.fork(self.trunk(x)))]

During the one ordinary backward pass the aliases bring the tasks' feature gradients back separately, and a balancer
that reads them sees all of them before they are summed and go on into the trunk.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Observer = Callable[[Tensor, Tensor], None]

AUDIT_KEY = "fork"
"""Where a recorded graph's unbind node keeps the fork that made it, for `audit`."""


class Fork(nn.Module):
    """Hands each of ``num_tasks`` heads its own alias of the features.

    Returns a tuple of ``num_tasks`` values equal to the input: a tensor, or any nested tuple, list or dict of tensors.
    A plain identity until a balancer reads it, and always in eval mode, without gradients, and inside
    ``torch.compile``. Heads must not change their alias in place.

    Raises:
        ValueError: ``num_tasks`` is less than 1.
    """

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        if num_tasks < 1:
            raise ValueError(f"num_tasks is {num_tasks}; a fork needs at least one task")
        self.num_tasks = num_tasks
        self.recording = False
        """Whether a balancer reads this fork: set by the balancer."""
        self.observer: Observer | None = None
        """Called with features ``z`` and gradients of shape ``(T, *z.shape)``; set for one backward pass at a time."""

    def forward(self, features: Any) -> tuple[Any, ...]:
        if not (self.recording and self.training and torch.is_grad_enabled()) or torch.compiler.is_compiling():
            return (features,) * self.num_tasks
        if isinstance(features, Tensor):
            return self._aliases(features)
        leaves, structure = pytree.tree_flatten(features)
        aliases = [self._aliases(leaf) for leaf in leaves]
        return tuple(pytree.tree_unflatten([a[i] for a in aliases], structure) for i in range(self.num_tasks))

    def _aliases(self, z: Any) -> tuple[Any, ...]:
        if not (isinstance(z, Tensor) and z.requires_grad):
            return (z,) * self.num_tasks
        # expand's backward sums over the tasks; unbind's stacks their gradients, which is what the hook sees.
        expanded = z.expand(self.num_tasks, *z.shape)
        expanded.register_hook(partial(self._observe, z))
        aliases = expanded.unbind(0)
        node = aliases[0].grad_fn
        assert node is not None
        cast("dict[str, Fork]", node.metadata)[AUDIT_KEY] = self
        return aliases

    def _observe(self, z: Tensor, gradients: Tensor) -> None:
        # With create_graph=True (a gradient penalty, say) this pass is being differentiated, not trained on.
        if self.observer is not None and not torch.is_grad_enabled():
            self.observer(z, gradients)

    def extra_repr(self) -> str:
        return f"num_tasks={self.num_tasks}"
