"""Run a whole training step as one CUDA graph, which saves the time that launching many small kernels takes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from .classes.base import LossBalancer
from .torch_internals import tree_flatten, tree_unflatten
from .user_warnings import warn

WARM_UP = 11
"""Number of steps to run before one is captured: what PyTorch advises for models under DistributedDataParallel."""


class CapturedStep:
    """A training step that runs a few times as it is, is then captured in a CUDA graph, and is replayed from then on.

    Example::

        def step(x, y):
            optimizer.zero_grad()
            loss = balancer([criterion(out, t) for out, t in zip(net(x), y)])
            loss.backward()
            optimizer.step()
            return loss.detach()

        step = CapturedStep(step, [balancer])
        for x, y in loader:
            loss = step(x, y)

    Every call is one training step, the first calls included. The step must do the same work at every call: the same
    shapes, no waiting for the device, an optimiser with ``capturable=True``. The returned value, and the balancer's
    ``weights`` and ``statistics``, lie in memory that the next call overwrites. On the CPU there is nothing to capture,
    so the step runs as it is. It also does if its balancers are on a GPU and no tensor of the batch is, as the captured
    step would get the first batch again and again; a warning says so.

    Args:
        step: the function to capture. Its arguments are tensors, or nested structures of tensors. A number or a flag
            among them must be the same in each call; anything else that is no tensor keeps the value it had when the
            step was captured.
        balancers: all balancers that ``step`` calls.

    Raises:
        ValueError: a balancer does not do the same work at every step.
    """

    def __init__(self, step: Callable[..., object], balancers: Sequence[LossBalancer]) -> None:
        for balancer in balancers:
            if reason := balancer.not_capturable():
                raise ValueError(f"{type(balancer).__name__} can't be captured in a CUDA graph: {reason}")
        self._step = step
        self._balancers = list(balancers)
        self._has_warned = False
        self._layout: _Layout | None = None
        """The layout of the captured batch, which every later batch must have."""
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._output: object = None
        self._side: torch.cuda.Stream | None = None

    def __call__(self, *batch: object) -> object:
        """Run one training step on ``batch`` and return its output.

        Raises:
            ValueError: ``batch`` differs from the captured one in its structure, in a tensor's shape or type, or in a
                number or flag.
        """
        leaves, structure = tree_flatten(batch)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not any(tensor.is_cuda for tensor in tensors):
            if not self._has_warned and any(_is_on_gpu(balancer) for balancer in self._balancers):
                self._has_warned = True
                warn(
                    "CapturedStep captures nothing: its balancers are on a GPU, but no tensor of the batch is. Move "
                    "the batch to the GPU before you pass it to the step"
                )
            return self._step(*batch)
        layout = _Layout.of(leaves, structure)
        if self._graph is None:
            self._calls += 1
            if self._calls <= WARM_UP:
                return self._on_side_stream(batch)
            self._layout, self._inputs = layout, [tensor.clone() for tensor in tensors]
            static = iter(self._inputs)
            held = tree_unflatten([next(static) if isinstance(x, Tensor) else x for x in leaves], structure)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._output = self._step(*held)
            self._graph = graph
        assert self._layout is not None
        self._layout.check(layout)
        for static_input, tensor in zip(self._inputs, tensors, strict=True):
            static_input.copy_(tensor)
        self._graph.replay()
        return self._output

    def _on_side_stream(self, batch: tuple[object, ...]) -> object:
        """Run the step on a stream of its own, as PyTorch requires of the steps before a capture."""
        side = self._side = self._side or torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            output = self._step(*batch)
        torch.cuda.current_stream().wait_stream(side)
        return output


class _Layout(NamedTuple):
    """The layout that all batches of a captured step must share."""

    structure: object
    """How its tuples, lists and dicts are nested, and the keys of the dicts in their order."""
    tensors: list[tuple[torch.Size, torch.dtype]]
    numbers: list[object]
    """For each leaf its value if it is a number or a flag, else None."""

    @classmethod
    def of(cls, leaves: Sequence[object], structure: object) -> Self:
        """Return that of a batch which was flattened."""
        tensors = [(leaf.shape, leaf.dtype) for leaf in leaves if isinstance(leaf, Tensor)]
        return cls(structure, tensors, [leaf if isinstance(leaf, int | float | complex) else None for leaf in leaves])

    def check(self, other: "_Layout") -> None:
        """Raise ValueError if another batch differs from this one, with which the step was captured."""
        if other.tensors != self.tensors:
            raise ValueError(
                f"the batch has tensors of shapes and types {other.tensors}, but the step was captured with "
                f"{self.tensors}"
            )
        if other.structure != self.structure:
            raise ValueError(
                f"the batch is nested as {other.structure}, but the step was captured with {self.structure}: are the "
                f"keys of a dict in another order?"
            )
        if other.numbers != self.numbers:
            raise ValueError(
                f"the batch has the numbers {_only(other.numbers)}, but the step was captured with "
                f"{_only(self.numbers)}, which it keeps: pass a number that changes as a tensor"
            )


def _only(numbers: Sequence[object]) -> list[object]:
    return [number for number in numbers if number is not None]


def _is_on_gpu(balancer: LossBalancer) -> bool:
    return balancer.last_weights.is_cuda
