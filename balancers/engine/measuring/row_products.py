r"""Norms and inner products of a linear map's weight gradients, without forming these gradients.

A linear map with inputs ``x``, ``(N, in)``, has the weight gradient ``d^T x`` for the gradients ``d``, ``(N, out)``, of
its outputs. Where there are fewer rows than inputs, something smaller than ``x`` can take its place, the same for all
tasks:

- With the triangular factor ``R``, ``(N, N)``, of the QR decomposition of ``x^T``,

  .. math:: \lVert d^\top x \rVert = \lVert R d \rVert

  since the other factor's columns are orthonormal. It is a sum of squares, to which single precision is enough. See
  `Factor`.

- With the kernel ``x x^T``,

  .. math:: \lVert d^\top x \rVert^2 = \sum_{nm} (x x^\top)_{nm} (d d^\top)_{nm}

  whose terms may be much larger than the sum: they are taken in double precision. GPUs multiply faster than they
  decompose, a few rows take as long in double precision as in single, and a convolution's kernel can be had without its
  patches. See `Kernel`.

Source: of the kernel Goodfellow, "Efficient per-example gradient computations", arXiv 2015; for sequences Li et al.,
"Large language models can be strong differentially private learners", ICLR 2022; the choice by shapes Bu, Mao and Xu,
"Scalable and efficient training of large convolutional neural networks with differential privacy", NeurIPS 2022. That a
triangular factor is accurate to rounding, column by column: Higham, "Accuracy and Stability of Numerical Algorithms",
2nd ed. 2002, theorem 19.4; that it may be made of those of parts: Demmel, Grigori, Hoemmen and Langou,
"Communication-optimal parallel and sequential QR and LU factorizations", SIAM J. Sci. Comput. 2012.
"""

from functools import cache, lru_cache, reduce
from itertools import pairwise
from typing import ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

Purpose = Literal["norms", "gramian", "sum"]
"""Whether norms of the tasks' gradients are needed, their inner products, or these and then a weighted sum."""

FULL_RATE = ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0))
"""Compute capabilities of the NVIDIA GPUs that multiply in double precision at half the rate of single or faster."""
DOUBLE_ELSEWHERE = 32
"""The multiplications in single precision that one in double precision takes on other GPUs, which is 32 to 64."""
FEW_ROWS = 8
"""Number of rows up to which the kernel is faster than the factor."""
WIDEST = 1024
"""Inputs that are decomposed at once: rounding errors grow with their number."""
BLOCK, MOST_BLOCKS = 48, 4
"""Rows of a triangular factor that are worth a product of their own, without the zeros before them; at most so many."""


class RowProducts(Protocol):
    """A matrix that replaces a linear map's inputs in norms and inner products of its weight's gradients."""

    copies: ClassVar[int]
    """The copies of the tasks' rows that `squared_norms` makes, in units of single precision."""

    @classmethod
    def of(cls, inputs: Tensor, has_bias: bool) -> Self:
        """Return that of the inputs of each group, ``(G, N, in)``; with a bias, of inputs that end in a one."""

    @staticmethod
    def multiplications(num_rows: int, inputs: int) -> float:
        """Return the number of multiplications that it takes to make, for one group."""

    @staticmethod
    def multiplications_of_each(num_rows: int, outputs: int) -> float:
        """Return the number of multiplications that each task's norm takes, for one group."""

    def squared_norms(self, gradients: Tensor) -> Tensor:
        """Return the squared norms, ``(T,)`` in double precision, of the weight's gradients.

        Args:
            gradients: of the outputs, ``(T, G, N, out)``.
        """

    def inner_products(self, gradients: Tensor) -> Tensor:
        """Return the inner products, ``(T, T)``, of the weight's gradients; for the argument see `squared_norms`."""


class Factor:
    """The triangular factor ``R``, ``(G, N, N)``, with ``x x^T = R^T R``; for inputs in single precision, in single."""

    copies: ClassVar[int] = 1

    def __init__(self, factor: Tensor) -> None:
        blocks = _blocks(factor.shape[-1])
        self._blocks = [(factor[:, start:end, start:] if len(blocks) > 1 else factor, start) for start, end in blocks]

    @classmethod
    def of(cls, inputs: Tensor, has_bias: bool) -> "Factor":
        rows = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        if has_bias:
            rows = F.pad(rows, (0, 1), value=1.0)
        if rows.shape[-1] > WIDEST:
            parts = rows.tensor_split(-(-rows.shape[-1] // WIDEST), -1)
            rows = torch.cat([_triangle(part) for part in parts], -2).mT
        return cls(_triangle(rows))

    @staticmethod
    def multiplications(num_rows: int, inputs: int) -> float:
        less, more = sorted((num_rows, inputs))
        return less**2 * (more - less / 3)

    @staticmethod
    def multiplications_of_each(num_rows: int, outputs: int) -> float:
        return sum((end - start) * (num_rows - start) for start, end in _blocks(num_rows)) * outputs

    def _reduced(self, gradients: Tensor) -> list[Tensor]:
        """Return ``R d``, ``(T, G, N, out)``, in parts."""
        rows = gradients.to(self._blocks[0][0].dtype)
        return [block @ (rows[:, :, start:] if start else rows) for block, start in self._blocks]

    def squared_norms(self, gradients: Tensor) -> Tensor:
        # Norms are taken row by row: one sum of so many squares in single precision would lose digits.
        rows = [torch.linalg.vector_norm(part, dim=-1) for part in self._reduced(gradients)]
        of_all = rows[0] if len(rows) == 1 else torch.cat(rows, -1)
        return of_all.double().square().sum((1, 2))

    def inner_products(self, gradients: Tensor) -> Tensor:
        parts = [part.flatten(1) for part in self._reduced(gradients)]
        return reduce(torch.add, [part @ part.mT for part in parts])


def _triangle(rows: Tensor) -> Tensor:
    """Return R, ``(..., min(N, n), N)``, of rows ``(..., N, n)``."""
    factor: Tensor = torch.linalg.qr(rows.mT, mode="r").R
    return factor


def _blocks(num_rows: int) -> list[tuple[int, int]]:
    """Return where each block of a triangular factor's rows starts and ends."""
    number = min(MOST_BLOCKS, max(1, num_rows // BLOCK))
    ends = [num_rows * k // number for k in range(number + 1)]
    return list(pairwise(ends))


class Kernel:
    """The kernel ``x x^T``, ``(G, N, N)``, in double precision."""

    copies: ClassVar[int] = 4

    def __init__(self, kernel: Tensor) -> None:
        self._kernel = kernel

    @classmethod
    def of(cls, inputs: Tensor, has_bias: bool) -> "Kernel":
        rows = inputs.double()
        return cls(torch.baddbmm(rows.new_ones(()), rows, rows.mT, beta=float(has_bias)))

    @staticmethod
    def multiplications(num_rows: int, inputs: int) -> float:
        return num_rows**2 * inputs

    @staticmethod
    def multiplications_of_each(num_rows: int, outputs: int) -> float:
        return num_rows**2 * outputs

    def squared_norms(self, gradients: Tensor) -> Tensor:
        rows = gradients.double()
        return (self._kernel @ rows).mul_(rows).sum((1, 2, 3)).clamp_(min=0)

    def inner_products(self, gradients: Tensor) -> Tensor:
        rows = gradients.double()
        return (self._kernel @ rows).flatten(1) @ rows.flatten(1).mT


def way_for(x: Tensor, num_rows: int) -> type[RowProducts]:
    """Return which takes the place of inputs like ``x``: on a CPU, where decompositions are fast, the factor."""
    return Factor if num_rows > FEW_ROWS and x.device.type in ("cpu", "meta") else Kernel


@cache
def _cost_of_double(device: torch.device) -> int:
    capability = torch.cuda.get_device_capability(device)
    is_full = capability[0] == 9 if torch.version.hip else capability in FULL_RATE
    return 1 if is_full else DOUBLE_ELSEWHERE


def cost_of_double(x: Tensor) -> int:
    """Return how many multiplications one in double precision counts for, beside those of tensors like ``x``."""
    return _cost_of_double(x.device) if x.is_cuda and x.dtype is not torch.float64 else 1


@lru_cache(1024)  # a step asks for each layer, mostly of the same shapes
def is_less(
    way: type[RowProducts],
    num_rows: int,
    inputs: int,
    outputs: int,
    num_tasks: int,
    purpose: Purpose = "norms",
    double: int = 1,
    multiplications: float | None = None,
) -> bool:
    """Return whether a way without weight gradients takes less arithmetic, and no more memory, than forming them.

    Args:
        way: what takes the place of the inputs.
        num_rows, inputs, outputs: the shapes, of one group.
        num_tasks: T.
        purpose: what is needed.
        double: how many multiplications each counts for: see `cost_of_double`.
        multiplications: that its making takes, if they are not those of rows.
    """
    by_rows = way.multiplications(num_rows, inputs) if multiplications is None else multiplications
    by_rows += num_tasks * num_rows**2 * outputs  # zeros of a factor save less time than arithmetic: not counted
    by_products = num_tasks * num_rows * inputs * outputs
    if purpose != "norms":
        by_rows += num_tasks**2 * num_rows * outputs
        by_products += num_tasks**2 * inputs * outputs
    by_rows *= double
    if purpose == "sum":
        by_rows += num_tasks * num_rows * outputs + num_rows * inputs * outputs
        by_products += num_tasks * inputs * outputs
    return by_rows < by_products and num_rows**2 <= inputs * outputs
