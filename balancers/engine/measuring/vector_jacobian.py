"""Vector-Jacobian products on a graph that is already recorded: gradients of parameters, for those at some edges."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node
from torch.overrides import TorchFunctionMode

from ..fork_error import ForkError
from ..torch_internals import gradients_at


def gradients(
    edges: Sequence[GradientEdge], wrt: Sequence[Tensor], seeds: Sequence[Tensor], retain_graph: bool = True
) -> tuple[Tensor | None, ...]:
    """Return the gradients of ``wrt`` for ``seeds`` at the edges; None for one that is not reached."""
    if not wrt:
        return ()
    try:
        return gradients_at(edges, wrt, seeds, retain_graph)
    except RuntimeError as error:
        reason = _why_refused(str(error))
        if reason is None:
            raise
        raise ForkError(reason) from error


def _why_refused(message: str) -> str | None:
    """Return why PyTorch refuses to differentiate a graph more than once; None for another reason."""
    if "use_reentrant" in message:
        return (
            "a checkpoint with use_reentrant=True hides parameters that are to be measured: pass use_reentrant=False "
            "to torch.utils.checkpoint"
        )
    if "differentiated Tensors does not require grad" in message:
        return (
            "a parameter of wrt was frozen (requires_grad_(False)) between the forward and the backward pass, so that "
            "its gradients can't be measured: freeze parameters before the forward pass, or after backward"
        )
    if "donated_buffer" in message:
        return (
            "the compiled trunk can be differentiated once, and the tasks' gradients are measured before the gradient "
            "is taken: set torch._functorch.config.donated_buffer = False before the model is compiled, or measure at "
            "the features (wrt=None)"
        )
    return None


class NodeGradients:
    """The gradients that come to some nodes, once hooks on the tensors that the nodes made have changed them.

    For a node that it runs, `torch.autograd.grad` returns the gradient from before these hooks.

    Args:
        nodes: each of them made one tensor.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes, self._seen = nodes, dict[int, Tensor | None]()
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        self._handles = [node.register_prehook(partial(self._see, k)) for k, node in enumerate(self._nodes)]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def take(
        self, edges: Sequence[GradientEdge], wrt: Sequence[Tensor], seeds: Sequence[Tensor], retain_graph: bool = True
    ) -> Sequence[Tensor | None]:
        """Return the gradients at the nodes, and then those of ``wrt``, as `gradients` does."""
        if not self._nodes:
            return gradients(edges, wrt, seeds, retain_graph)
        self._seen.clear()
        of_nodes = cast(list[Tensor], [GradientEdge(node, 0) for node in self._nodes])  # whatever the annotation says
        found = list(gradients(edges, [*of_nodes, *wrt], seeds, retain_graph))
        for k, gradient in self._seen.items():
            found[k] = gradient
        self._seen.clear()
        return found

    def _see(self, k: int, gradients: Sequence[Tensor | None]) -> None:
        self._seen[k] = gradients[0]


def stacked(rows: Sequence[Tensor | None]) -> Tensor | None:
    """Return tasks' gradients side by side, zero for a task without one; None if no task has one."""
    some = next((row for row in rows if row is not None), None)
    return None if some is None else torch.stack([torch.zeros_like(some) if row is None else row for row in rows])


def in_one_pass(
    edges: Sequence[GradientEdge], wrt: Sequence[Tensor], seeds: Sequence[Tensor], idle: int = 0
) -> list[list[Tensor | None]]:
    """Return each row's gradients for ``seeds``, ``(T, ...)`` at each edge, so that a checkpoint is recomputed once.

    Where that fails, each row has a pass of its own, and ``idle`` more passes are made: see `idle_passes`.
    """
    try:
        columns = torch.autograd.grad(edges, wrt, seeds, retain_graph=True, allow_unused=True, is_grads_batched=True)
    except RuntimeError:  # random numbers are drawn again, or an operator takes one gradient at a time
        return _with_random_numbers(edges, wrt, seeds, idle)
    return [[None if column is None else column[t] for column in columns] for t in range(len(seeds[0]))]


def _with_random_numbers(
    edges: Sequence[GradientEdge], wrt: Sequence[Tensor], seeds: Sequence[Tensor], idle: int
) -> list[list[Tensor | None]]:
    """Return the same, with the random numbers of the first forward pass; where that fails, in a pass for each."""
    reached: list[bool] = []

    def one(*row: Tensor) -> list[Tensor]:
        with _SameDropout():
            found = gradients_at(edges, wrt, row, retain_graph=True)
        reached[:] = [gradient is not None for gradient in found]
        return [gradient for gradient in found if gradient is not None]

    try:
        if not seeds[0].is_cpu:
            raise RuntimeError("on a GPU, torch.vmap draws numbers with other kernels than the forward pass")
        columns = iter(torch.func.vmap(one, randomness="same")(*seeds))
    except RuntimeError:
        rows = [list(gradients(edges, wrt, [seed[t] for seed in seeds])) for t in range(len(seeds[0]))]
        idle_passes(edges[0], wrt, seeds[0][0], idle)
        return rows
    of_all = [next(columns) if each else None for each in reached]
    return [[None if column is None else column[t] for column in of_all] for t in range(len(seeds[0]))]


class _SameDropout(TorchFunctionMode):
    """Refuse dropout of a tensor that is not contiguous: `torch.vmap` drops other entries than the forward pass did."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        drops = "drop" in getattr(func, "__name__", "")
        if drops and any(isinstance(x, Tensor) and not x.is_contiguous() for x in args):
            raise RuntimeError("torch.vmap would drop other entries than the forward pass did")
        return func(*args, **(kwargs or {}))


def idle_passes(edge: GradientEdge, wrt: Sequence[Tensor], like: Tensor, number: int) -> None:
    """Make passes that other ranks make too, in which FSDP gathers parameters from all of them."""
    for _ in range(number):
        gradients([edge], wrt, [torch.zeros_like(like)])
