"""A whole training step as one CUDA graph: where kernels are small, launching them is what takes time."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .base import LossBalancer

WARM_UP = 11
"""Steps that run as they are before one is captured, as PyTorch advises for models under DistributedDataParallel."""


class CapturedStep:
    """A training step that is captured in a CUDA graph once it has run a few times, and replayed from then on.

    ::

        def step(x, y):
            optimizer.zero_grad(set_to_none=False)
            loss = balancer([criterion(out, t) for out, t in zip(net(x), y)])
            loss.backward()
            optimizer.step()
            return loss.detach()

        step = CapturedStep(step, [balancer])
        for x, y in loader:
            loss = step(x, y)

    Every call is one training step, the first ones too. The step must do the same at every call: the same shapes, no
    wait for the device, an optimiser with ``capturable=True``. What it returns, and the balancer's ``weights`` and
    ``statistics``, lie in memory that the next call overwrites. On the CPU there is nothing to capture: the step runs
    as it is.

    Args:
        step: takes tensors, or nested structures of them.
        balancers: those that the step calls.

    Raises:
        ValueError: a balancer does not do the same at every step.
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
        """One training step.

        Raises:
            ValueError: the tensors of ``batch`` are not of the shapes and types that were captured.
        """
        leaves, structure = pytree.tree_flatten(batch)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not any(tensor.is_cuda for tensor in tensors):
            return self._step(*batch)
        if self._graph is None:
            self._calls += 1
            if self._calls <= WARM_UP:
                return self._on_side_stream(batch)
            self._inputs = [tensor.clone() for tensor in tensors]
            static = iter(self._inputs)
            held = pytree.tree_unflatten([next(static) if isinstance(x, Tensor) else x for x in leaves], structure)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._output = self._step(*held)
            self._graph = graph
        layout = [(tensor.shape, tensor.dtype) for tensor in tensors]
        expected = [(tensor.shape, tensor.dtype) for tensor in self._inputs]
        if layout != expected:
            raise ValueError(f"the batch has tensors of {layout}, but the step was captured with {expected}")
        for static_input, tensor in zip(self._inputs, tensors, strict=True):
            static_input.copy_(tensor)
        self._graph.replay()
        return self._output

    def _on_side_stream(self, batch: tuple[object, ...]) -> object:
        side = self._side = self._side or torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            output = self._step(*batch)
        torch.cuda.current_stream().wait_stream(side)
        return output
