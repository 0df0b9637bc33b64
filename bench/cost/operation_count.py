"""Count what a step does, rather than time it: the counts are the same on every machine, however busy."""

import gc
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Counts:
    """The counts of one call.

    Attributes:
        flops: floating-point operations of its matrix products, convolutions, attentions and QR decompositions; a
            multiply-add counts two.
        operator_calls: number of calls of PyTorch operators, including views and backward passes.
        peak_bytes: largest amount of memory that the call's own allocations held at one time. On CUDA the allocator
            reports it. On the CPU it is the memory of the tensors that operators returned, without the scratch memory
            inside an operator.
    """

    flops: int
    operator_calls: int
    peak_bytes: int


MOST_COUNTED = 50
"""The longest cycle of which every call is counted."""


def count(call: Callable[[], object], device: torch.device) -> Counts:
    """Make the call twice: count floating-point operations in the first, everything else in the second."""
    return count_cycle(call, device, 1)


def count_cycle(call: Callable[[], object], device: torch.device, cycle: int) -> Counts:
    """Count a call that repeats itself after ``cycle`` calls, in two cycles.

    Returns:
        Means over a cycle, rounded, and the largest ``peak_bytes``. Of a cycle of more than `MOST_COUNTED` calls, two
        are counted: its first, and the second for all others, which a method that measures in the first makes alike.
    """
    counted = cycle if cycle <= MOST_COUNTED else 2
    shares = [1 / cycle] * counted if counted == cycle else [1 / cycle, 1 - 1 / cycle]
    flops = [_flops(call) for _ in range(counted)]
    for _ in range(cycle - counted):
        call()
    calls, peaks = zip(*(_calls_and_peak(call, device) for _ in range(counted)), strict=True)
    for _ in range(cycle - counted):
        call()
    mean_flops, mean_calls = (
        round(sum(share * value for share, value in zip(shares, values, strict=True))) for values in (flops, calls)
    )
    return Counts(mean_flops, mean_calls, max(peaks))


def _flops(call: Callable[[], object]) -> int:
    counted = {torch.ops.aten.linalg_qr: _of_qr}
    with FlopCounterMode(display=False, custom_mapping=counted) as flops:  # a call of its own: it keeps outputs alive
        call()
    total: int = flops.get_total_flops()
    return total


def _of_qr(shape: torch.Size, *_: object, **__: object) -> int:
    """Return the operations of a QR decomposition whose orthogonal factor is not formed, by Householder reflections.

    Source: Golub and Van Loan, "Matrix Computations", section 5.2.
    """
    less, more = sorted(shape[-2:])
    return int(2 * less**2 * (more - less / 3) * prod(shape[:-2]))


def _calls_and_peak(call: Callable[[], object], device: torch.device) -> tuple[int, int]:
    """Return the operator calls and the peak memory of a call, in bytes."""
    if device.type == "cuda":
        gc.collect()  # garbage in reference cycles holds memory that another collection would free during the call
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    with _Operators() as operators:
        call()
    peak = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else operators.peak_bytes
    return operators.calls, peak


class _Operators(TorchDispatchMode):
    """Counts operator calls, including those of backward passes, and tracks the memory of the tensors they return."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.peak_bytes = 0
        self._bytes = 0
        self._alive: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {_storage(tensor)._cdata for tensor in _tensors((args, kwargs))}
        result = operator(*args, **(kwargs or {}))
        self.calls += operator.namespace != "profiler"  # the optimiser's marks for profilers do nothing
        for tensor in _tensors(result):
            storage = _storage(tensor)
            if storage._cdata not in given and storage not in self._alive:
                self._alive.add(storage)
                self._bytes += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        return result

    def _free(self, size: int) -> None:
        self._bytes -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()
