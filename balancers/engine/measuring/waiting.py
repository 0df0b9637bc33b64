"""The tasks' gradients of features that wait for each other, to be taken together."""

import weakref
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from ..torch_internals import current_pass


class TaskGradient(NamedTuple):
    """One task's gradient of some features."""

    features: Tensor
    task: int
    gradient: Tensor


class Waiting:
    """Gradients of features that have come in a backward pass, and have not been taken.

    The owner decides how many to take at once. Since a task may have no gradient, it is asked to take what waits when
    the features' node runs: all that come have come then.

    Args:
        on_last: the owner's method to call then, held weakly: the node may live on, and would keep owner and graph.
    """

    def __init__(self, on_last: Callable[[], None]) -> None:
        self._on_last = weakref.WeakMethod(on_last)
        self._entries: list[TaskGradient] = []
        self._hooks: dict[Node, RemovableHandle] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, features: Tensor, task: int, gradient: Tensor) -> None:
        """Let a gradient wait."""
        node = features.grad_fn
        assert node is not None
        if node not in self._hooks:
            self._hooks[node] = node.register_prehook(_in_this_pass(self._on_last))
        self._entries.append(TaskGradient(features, task, gradient))

    def take(self) -> list[TaskGradient]:
        """Return what waits, in the order of the tasks, and let go of it."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()
        entries, self._entries = self._entries, []
        return sorted(entries, key=lambda entry: entry.task)


def _in_this_pass(method: "weakref.WeakMethod[Callable[[], None]]") -> Callable[[object], None]:
    """Return a hook that calls a method in the pass under way: other forks' measurements run the same node."""
    number = current_pass()

    def hook(_: object) -> None:
        if current_pass() == number and (call := method()) is not None:
            call()

    return hook
