"""Read the losses that a caller passes to a balancer, and raise clear errors for anything else."""

from collections.abc import Collection, Mapping, Sequence, Sized
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .torch_internals import STACK

Losses = Sequence[Tensor] | Mapping[str, Tensor] | Tensor
"""T scalar tensors, a dict of them by task, or one tensor of shape ``(T,)``."""

Entries = list[Tensor | None] | Tensor
"""Losses that were read: a list in task order, None for a task that a dict leaves out; or the same ``(T,)`` tensor."""


class LossReader:
    """Checks the losses of T tasks and puts them in task order.

    Args:
        tasks: the number of tasks, or their names. A reader without names takes them from the first dict of losses.

    Raises:
        TypeError: ``tasks`` is neither, or a name is not a string.
        ValueError: there is no task, or a name occurs twice.
    """

    def __init__(self, tasks: int | Sequence[str]) -> None:
        if isinstance(tasks, nn.Module):
            raise TypeError(
                f"tasks is of type {type(tasks).__name__}; this method takes no fork, but the number of tasks or a "
                f"list of names. create(name, fork) makes any method"
            )
        if not isinstance(tasks, int | Collection):
            raise TypeError(f"tasks is of type {type(tasks).__name__}; expected the number of tasks or a list of names")
        if isinstance(tasks, set | frozenset):
            raise TypeError("tasks is a set, whose order changes from run to run: give a list of names")
        self.names: tuple[str, ...] | None = None if isinstance(tasks, int) else tuple(tasks)
        self.num_tasks = tasks if isinstance(tasks, int) else len(tasks)
        if isinstance(tasks, str) or self.num_tasks < 1:
            raise ValueError(f"tasks is {tasks!r}; expected the number of tasks (1 or more) or a list of their names")
        if any(not isinstance(name, str) for name in self.names or ()):
            raise TypeError(f"tasks is {tasks!r}; expected their number, or a list of names, as strings")
        if self.names is not None and len(set(self.names)) < self.num_tasks:
            raise ValueError(f"tasks has a name twice: {', '.join(self.names)}")

    def label(self, i: int) -> str:
        """Return the name of task ``i`` for messages."""
        return f"task {i}" if self.names is None else f"task {self.names[i]!r}"

    def in_words(self) -> str:
        """Return the number of tasks and their names, for messages."""
        names = "" if self.names is None else f" ({', '.join(self.names)})"
        return f"{self.num_tasks} task{'s' if self.num_tasks > 1 else ''}{names}"

    def made_for(self) -> str:
        """Return a clause for messages that names the tasks this balancer expects."""
        return f"this balancer was made for {self.in_words()}"

    def read(self, losses: Losses, learning: bool) -> tuple[Entries, tuple[bool, ...] | None]:
        """Return the losses in task order, and for a dict whether each task has a loss.

        Args:
            losses: see `Losses`. If the tasks have no names yet, the first dict names them.
            learning: whether each loss must require grad.

        Raises:
            TypeError: a loss is not a tensor, or not of a floating-point type.
            ValueError: the number or shape is wrong, a task is unknown, or a loss must require grad and does not.
        """
        if isinstance(losses, Tensor):
            if losses.shape != (self.num_tasks,):
                raise ValueError(
                    f"losses is a tensor of shape {tuple(losses.shape)}, but {self.made_for()}: "
                    f"expected shape ({self.num_tasks},)"
                )
            _check("losses", losses, learning)
            node = losses.grad_fn
            if learning and node is not None and node.name() == STACK:
                for i, (source, _) in enumerate(node.next_functions):
                    if source is None:
                        raise ValueError(_no_grad(f"the loss of {self.label(i)}"))
            return losses, None
        if isinstance(losses, Mapping):
            return self._read_dict(losses, learning)
        if isinstance(losses, str) or not isinstance(losses, Sequence):
            raise TypeError(
                f"losses is of type {type(losses).__name__}; expected a list of scalar tensors, a dict of them by "
                f"task, or a tensor of shape ({self.num_tasks},)"
            )
        if len(losses) != self.num_tasks:
            raise ValueError(f"losses has {entries(losses)}, but {self.made_for()}")
        for i, loss in enumerate(losses):
            _check_scalar(f"the loss of {self.label(i)}", loss, learning)
        return list(losses), None

    def _read_dict(
        self, losses: Mapping[str, Tensor], learning: bool
    ) -> tuple[list[Tensor | None], tuple[bool, ...] | None]:
        if self.names is None and len(losses) != self.num_tasks:
            raise ValueError(
                f"losses has the tasks ({', '.join(map(str, losses))}), but {self.made_for()}: give a loss for "
                f"every task in the first dict, or name the tasks when making the balancer: tasks=[...]"
            )
        names = tuple(losses) if self.names is None else self.names
        unknown = [task for task in losses if task not in names]
        if unknown:
            raise ValueError(f"losses has an unknown task {unknown[0]!r}; {self.made_for()}")
        if not losses:
            raise ValueError(f"losses is empty, but {self.made_for()}")
        if any(not isinstance(task, str) for task in losses):
            raise TypeError(f"losses has the tasks ({', '.join(map(repr, losses))}); expected their names, as strings")
        for task in losses:
            _check_scalar(f"the loss of task {task!r}", losses[task], learning)
        self.names = names
        in_order = [losses.get(task) for task in names]
        return in_order, tuple(loss is not None for loss in in_order)


def _check_scalar(what: str, loss: Tensor | None, learning: bool) -> None:
    if loss is None:
        raise TypeError(f"{what} is None; where a task has no loss in a step, leave it out of a {{task: loss}} dict")
    if not isinstance(loss, Tensor):
        raise TypeError(f"{what} is of type {type(loss).__name__}; expected a scalar tensor")
    if loss.ndim != 0:
        raise ValueError(
            f"{what} has shape {tuple(loss.shape)}; expected a scalar: reduce it, for example with .mean()"
        )
    _check(what, loss, learning)


def _check(what: str, loss: Tensor, learning: bool) -> None:
    if not loss.dtype.is_floating_point:
        raise TypeError(f"{what} is of dtype {loss.dtype}; expected a floating-point tensor")
    if learning and not loss.requires_grad:
        raise ValueError(_no_grad(what))


def _no_grad(what: str) -> str:
    return (
        f"{what} does not require grad, so there is nothing to learn from: was it detached, or computed under no_grad? "
        f"If this task has no loss to learn from in this step, leave it out of a {{task: loss}} dict. To weigh without "
        f"learning, call the balancer in eval mode or under no_grad"
    )


def entries(values: Sized) -> str:
    """Return the number of ``values`` in words, for messages."""
    return "1 entry" if len(values) == 1 else f"{len(values)} entries"


def stack(losses: Entries) -> Tensor:
    """Return one tensor ``(T,)`` of float32 or wider, zero for tasks left out, with memory and a node of its own.

    The caller may change a tensor of losses before the backward pass.
    """
    if isinstance(losses, Tensor):
        return losses.clone() if losses.dtype.itemsize >= torch.float32.itemsize else losses.float()
    some = next(loss for loss in losses if loss is not None)
    stacked = torch.stack([some.new_zeros(()) if loss is None else loss for loss in losses])
    return stacked if stacked.dtype.itemsize >= torch.float32.itemsize else stacked.float()


class Root(NamedTuple):
    """The edge at which one loss enters the autograd graph, and the gradient that selects this loss there."""

    edge: GradientEdge
    seed: Tensor


def roots(losses: Entries) -> list[Root | None]:
    """Return the root of each loss; None for a task that is left out.

    If a ``(T,)`` tensor was stacked from scalars, the roots are those scalars: differentiating the whole tensor row by
    row would send zeros through the heads of all other tasks.
    """
    if not isinstance(losses, Tensor):
        return [None if loss is None else Root(get_gradient_edge(loss), torch.ones_like(loss)) for loss in losses]
    whole = get_gradient_edge(losses)
    if whole.node.name() != STACK:
        return [Root(whole, row) for row in torch.eye(len(losses), dtype=losses.dtype, device=losses.device)]
    one = torch.ones_like(losses[0])
    parts = whole.node.next_functions
    return [None if node is None else Root(GradientEdge(node, output), one) for node, output in parts]
