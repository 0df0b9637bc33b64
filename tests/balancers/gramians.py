"""Gramians for the solvers' tests, and a guard that refuses operators that would wait for a device."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SIZES = (1, 2, 3, 5, 10, 40, 100)


def gradients(num_tasks: int, seed: int = 0) -> dict[str, Tensor]:
    """Return T gradients as rows, ``(T, n)`` in float64, for each kind of difficulty.

    Kinds that need two tasks are included from T=2 on.
    """
    generator = torch.Generator().manual_seed(1000 * num_tasks + seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def spectrum(smallest: float) -> Tensor:
        """Return a matrix with singular values from 1 down to ``10 ** smallest``."""
        left, right = torch.linalg.qr(randn(T, T))[0], torch.linalg.qr(randn(T, T))[0]
        return left @ (torch.logspace(0, smallest, T, dtype=torch.float64)[:, None] * right)

    T = num_tasks
    cases = {
        "random": randn(T, 3 * T + 2),
        "orthogonal": torch.eye(T, dtype=torch.float64),
        "aligned": 1 + 0.1 * randn(T, 3 * T + 2),
        "ill_conditioned": spectrum(-4),  # condition number of the Gramian: 1e8
        "nearly_singular": spectrum(-7),  # condition number: 1e14
        "rank_deficient": randn(T, max(1, T // 2)),
        "rank_one": randn(T, 1) * randn(1, T + 1),
        "duplicated": randn((T + 1) // 2, 2 * T).repeat_interleave(2, 0)[:T],
        "uneven": randn(T, 2 * T + 3) * torch.logspace(-4, 4, T, dtype=torch.float64)[:, None],
        "zeros": torch.zeros(T, 3, dtype=torch.float64),
    }
    if T > 1:
        ones = randn(T, 3 * T + 2)
        cases["conflict"] = torch.cat([ones[:1], -ones[:1], ones[2:]])  # g_2 = -g_1
        cases["opposed"] = 0.1 * randn(T, 3 * T + 2) + randn(3 * T + 2) * (-1.0) ** torch.arange(T)[:, None]
        cases["stationary"] = ones - ones.mean(0)  # the mean gradient is zero
        cases["zero_row"] = randn(T, 2 * T).index_fill(0, torch.tensor([T // 2]), 0)
    return cases


def cases(num_tasks: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
    """Return the Gramians ``(T, T)`` of `gradients`, computed in ``dtype``. Rounding can make them indefinite."""
    return {name: G.to(dtype) @ G.to(dtype).T for name, G in gradients(num_tasks, seed).items()}


WAITS = {
    "_linalg_check_errors",
    "_linalg_eigh",
    "_linalg_svd",
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "item",
    "lift_fresh",  # torch.tensor(...): a copy from the host
    "linalg_eig",
    "linalg_eigh",
    "linalg_lstsq",
    "masked_select",
    "nonzero",
    "unique_dim",
    "_unique2",
}
"""Names of the ATen operators that wait for a CUDA device."""


class _NoWaiting(TorchDispatchMode):
    def __init__(self, but: Sequence[str]) -> None:
        super().__init__()
        self.refused = WAITS - set(but)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        masks = name in {"index", "index_put", "index_put_"} and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if name in self.refused or masks:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting(but: Sequence[str] = ()) -> Iterator[None]:
    """Refuse, on the CPU, all operators that would wait for a CUDA device, except those named in ``but``."""
    with _NoWaiting(but):
        yield


class _Counting(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def calls(function: Callable[[], object]) -> int:
    """Return the number of operators that ``function`` calls, views included."""
    with _Counting() as counting:
        function()
    return counting.count
