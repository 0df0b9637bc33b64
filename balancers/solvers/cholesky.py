"""Linear systems with positive definite matrices, one after the other, in the same memory."""

import torch
from torch import Tensor
from torch.linalg import cholesky_ex, solve_triangular


class Cholesky:
    """Solves systems with matrices of one shape, ``(..., T, T)``, by two triangular ones; `cholesky_solve` copies.

    Args:
        like: of that shape, type and device, contiguous.
    """

    failed: Tensor
    """``(...)``: not zero where the last matrix was not positive definite up to rounding, and the solution is none."""

    def __init__(self, like: Tensor) -> None:
        self.failed = torch.empty(like.shape[:-2], dtype=torch.int32, device=like.device)
        self._lower = torch.empty_like(like).mT  # by columns, as LAPACK has it
        self._upper = self._lower.mT

    def solve(self, matrix: Tensor, right: Tensor, half: Tensor, out: Tensor) -> None:
        """Puts the solution for ``right``, ``(..., T, K)``, into ``out``; ``half``, which may be ``out``, is lost."""
        cholesky_ex(matrix, out=(self._lower, self.failed))
        solve_triangular(self._lower, right, upper=False, out=half)
        solve_triangular(self._upper, half, upper=True, out=out)
