r"""Compute the spectrum of a Gramian, and the least-squares solution that its numerical rank allows.

On the CPU this uses LAPACK, because there is no device to wait for. On other devices ``torch.linalg.eigh`` waits to see
whether it converged. They get Jacobi's method with a fixed number of sweeps instead. Each round rotates T/2 disjoint
pairs of rows and columns at once. After T - 1 rounds, which make one sweep, each pair has met once, as in a round-robin
tournament (Brent and Luk, "The Solution of Singular-Value and Symmetric Eigenvalue Problems on Multiprocessor Arrays",
SIAM Journal on Scientific and Statistical Computing, 1985). The number of sweeps needed grows with log T; the fixed
number is the largest that any tested spectrum needed.
"""

import torch
from torch import Tensor


def eigh(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the eigenvalues :math:`\lambda` and the eigenvectors :math:`V` of symmetric matrices ``(..., T, T)``.

    .. math:: A = V \operatorname{diag}(\lambda) V^\top, \qquad V^\top V = I.

    An eigenvector's sign, and the basis of an eigenvalue that occurs twice, are arbitrary and may differ between
    devices. The eigenvalues are exact to rounding of the largest one. If rounding made a matrix unsymmetric, the mean
    of its two triangles is used. If a matrix is not finite, both results are NaN.

    Returns:
        The eigenvalues, ascending, ``(..., T)``; and the eigenvectors as columns, ``(..., T, T)``.
    """
    A = symmetric.double()
    A = (A + A.mT) / 2
    scale = A.abs().amax((-2, -1), keepdim=True)
    finite = scale.isfinite()
    A = torch.where(finite, A / scale.masked_fill(scale == 0, 1), 0)
    values, vectors = _lapack(A) if A.device.type == "cpu" else _jacobi(A)
    values = torch.where(finite.squeeze(-1), values * scale.squeeze(-1), torch.nan)
    return values.to(symmetric.dtype), torch.where(finite, vectors, torch.nan).to(symmetric.dtype)


def pseudo_solve(gramian: Tensor, right: Tensor) -> Tensor:
    r"""Return :math:`M^+ b`, ``(..., T)``, for a Gramian :math:`M`, ``(..., T, T)``, and :math:`b`, ``(..., T)``.

    .. math:: M^+ b = \sum_{\lambda_i > \tau} \frac{v_i^\top b}{\lambda_i} v_i, \qquad \tau = \lambda_T T \varepsilon,

    where :math:`\varepsilon` is the rounding of :math:`M`'s own type. So the rank is that of
    ``numpy.linalg.matrix_rank``, and the solution that of ``torch.linalg.pinv(M, hermitian=True) @ b``. If
    :math:`M w = b` has many solutions, the result is the shortest; if it has none, the result is the shortest vector
    that comes nearest. A zero Gramian gives zero. The rank depends on the rows' relative norms: pass cosines if it
    should not.
    """
    values, vectors = eigh(gramian.double())
    threshold = values[..., -1:] * gramian.shape[-1] * torch.finfo(gramian.dtype).eps
    coefficients = (vectors.mT @ right.double().unsqueeze(-1)).squeeze(-1) / values
    # NaN is not below the threshold, so that a NaN stays in the result.
    coefficients = coefficients.masked_fill(values <= threshold, 0)
    return (vectors @ coefficients.unsqueeze(-1)).squeeze(-1).to(gramian.dtype)


def _lapack(A: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(A)
    return values, vectors


def _jacobi(A: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `eigh` of finite float64 matrices ``(..., T, T)`` with entries up to 1 by Jacobi's method."""
    T = A.shape[-1]
    A = torch.nn.functional.pad(A, (0, T % 2, 0, T % 2))  # a zero row for odd T, which no rotation changes
    n, half = A.shape[-1], A.shape[-1] // 2
    identity = torch.eye(n, dtype=A.dtype, device=A.device)
    plus = torch.full((half,), 0.5, dtype=A.dtype, device=A.device)
    halves = torch.cat([plus, -plus])
    # Row i meets row i + half; then all rows but the first move on by one place around the circle. Together, a rotation
    # by theta and this move are cos(theta) turn + sin(theta) swap.
    turn = identity
    if n > 2:
        columns = identity.split([1, half - 2, 1, 1, half - 1], -1)
        turn = torch.cat([columns[i] for i in (0, 3, 1, 4, 2)], -1)
    swap = turn.roll(half, 0)
    V, A = identity.expand_as(A), A.clone()
    diagonal, pairs = A.diagonal(dim1=-2, dim2=-1), A.diagonal(half, -2, -1)
    upper, lower = diagonal[..., :half], diagonal[..., half:]
    sweeps, nearly = (3 * T.bit_length() - 1, 0.01) if n > 2 else (1, 0.0)
    for _ in range(sweeps):
        # Between nearly equal eigenvalues even a tiny entry causes a large rotation, which undoes what other rotations
        # have made small. A gap therefore counts as at least a hundredth of the largest off-diagonal entry.
        least = (A - torch.diag_embed(diagonal)).abs().amax((-2, -1)).mul_(nearly).clamp_(min=1e-300).unsqueeze(-1)
        for _ in range(n - 1):
            # tan 2 theta = 2 a_pq / (a_qq - a_pp), |theta| <= pi/4
            gaps = lower - upper
            angles = (2 * pairs / torch.maximum(gaps.abs(), least).copysign_(gaps)).atan_()
            angles = torch.cat([angles, angles], -1).mul_(halves).unsqueeze(-1)
            rotation = torch.addcmul(angles.cos() * turn, angles.sin(), swap)
            V = V @ rotation
            torch.matmul(rotation.mT @ A, rotation, out=A)
    values, order = diagonal[..., :T].sort(-1)
    return values, V[..., :T, :T].gather(-1, order.unsqueeze(-2).expand_as(V[..., :T, :T]))
