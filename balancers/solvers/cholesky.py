"""Solve linear systems with positive definite matrices, one after the other, in the same memory."""

import torch
from torch import Tensor
from torch.linalg import cholesky_ex, solve_triangular


class Cholesky:
    """Solver for systems with matrices of one shape, ``(..., T, T)``.

    It solves two triangular systems, because ``torch.cholesky_solve`` makes copies.

    Args:
        like: a contiguous tensor of the matrices' shape, type and device.
    """

    failed: Tensor
    """``(...)``: not zero where the last matrix was not positive definite up to rounding. Its solution is invalid."""

    def __init__(self, like: Tensor) -> None:
        self.failed = torch.empty(like.shape[:-2], dtype=torch.int32, device=like.device)
        self._lower = torch.empty_like(like).mT  # column-major, as in LAPACK
        self._upper = self._lower.mT

    def solve(self, matrix: Tensor, right: Tensor, half: Tensor, out: Tensor) -> None:
        """Solve ``matrix @ out = right``.

        ``right`` and ``out`` have shape ``(..., T, K)``; ``half`` is scratch space of that shape, and may be ``out``.
        """
        self.factor(matrix)
        self.substitute(right, half, out)

    def factor(self, matrix: Tensor) -> None:
        """Prepare `substitute` for this matrix."""
        cholesky_ex(matrix, out=(self._lower, self.failed))

    def substitute(self, right: Tensor, half: Tensor, out: Tensor) -> None:
        """Solve as `solve` does, with the matrix that was factored last."""
        solve_triangular(self._lower, right, upper=False, out=half)
        solve_triangular(self._upper, half, upper=True, out=out)
