"""Run a whole training step as one CUDA graph, which saves the time that launching many small kernels takes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .classes.base import LossBalancer
from .torch_internals import tree_flatten, tree_unflatten

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
    so the step runs as it is.

    Args:
        step: the function to capture. Its arguments are tensors, or nested structures of tensors.
        balancers: all balancers that ``step`` calls.

    Raises:
        ValueError: a balancer does not do the same work at every step.
    """

    def __init__(self, step: Callable[..., object], balancers: Sequence[LossBalancer]) -> None:
        for balancer in balancers:
            if reason := balancer.not_capturable():
                raise ValueError(f"{type(balancer).__name__} can't be captured in a CUDA graph: {reason}")
        self._step = step
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._output: object = None
        self._side: torch.cuda.Stream | None = None

    def __call__(self, *batch: object) -> object:
        """Run one training step on ``batch`` and return its output.

        Raises:
            ValueError: the tensors of ``batch`` differ from the captured ones in number, shape or type.
        """
        leaves, structure = tree_flatten(batch)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not any(tensor.is_cuda for tensor in tensors):
            return self._step(*batch)
        if self._graph is None:
            self._calls += 1
            if self._calls <= WARM_UP:
                return self._on_side_stream(batch)
            self._inputs = [tensor.clone() for tensor in tensors]
            static = iter(self._inputs)
            held = tree_unflatten([next(static) if isinstance(x, Tensor) else x for x in leaves], structure)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._output = self._step(*held)
            self._graph = graph
        layout = [(tensor.shape, tensor.dtype) for tensor in tensors]
        expected = [(tensor.shape, tensor.dtype) for tensor in self._inputs]
        if layout != expected:
            raise ValueError(
                f"the batch has tensors of shapes and types {layout}, but the step was captured with {expected}"
            )
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
