r"""The spectrum of a Gramian, and the least-squares solution that its numerical rank allows.

On the CPU LAPACK's, where there is no device to wait for. Elsewhere ``torch.linalg.eigh`` waits, to see whether it
converged; there it is Jacobi's method with a fixed number of sweeps. Each round rotates T/2 disjoint pairs of rows and
columns at once; after T - 1 rounds each pair has met once, as in a round-robin tournament (Brent and Luk, "The Solution
of Singular-Value and Symmetric Eigenvalue Problems on Multiprocessor Arrays", SIAM Journal on Scientific and
Statistical Computing, 1985). The sweeps needed grow with log T; those done are the most that any spectrum tried needed.
"""

import torch
from torch import Tensor


def eigh(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    r"""Eigenvalues :math:`\lambda`, ascending, ``(..., T)``, and eigenvectors :math:`V`, ``(..., T, T)``, one a column:

    .. math:: A = V \operatorname{diag}(\lambda) V^\top, \qquad V^\top V = I.

    An eigenvector's sign, and the basis of an eigenvalue that occurs twice, are arbitrary and may differ between
    devices. The eigenvalues are exact to rounding of the largest. A matrix that rounding left unsymmetric counts as the
    mean of its triangles; one that is not finite has NaN for both.
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
    r""":math:`M^+ b`, ``(..., T)``, for a Gramian :math:`M`, ``(..., T, T)``, and :math:`b`, ``(..., T)``:

    .. math:: M^+ b = \sum_{\lambda_i > \tau} \frac{v_i^\top b}{\lambda_i} v_i, \qquad \tau = \lambda_T T \varepsilon,

    with the rounding :math:`\varepsilon` of M's own type: the rank is that of ``numpy.linalg.matrix_rank``, the
    solution that of ``torch.linalg.pinv(M, hermitian=True) @ b``. Where :math:`M w = b` has many solutions, it is the
    shortest; where it has none, the shortest of those that come nearest. Zero for a zero Gramian. The rank depends on
    the rows' relative norms: pass cosines where it should not.
    """
    values, vectors = eigh(gramian.double())
    threshold = values[..., -1:] * gramian.shape[-1] * torch.finfo(gramian.dtype).eps
    coefficients = (vectors.mT @ right.double().unsqueeze(-1)).squeeze(-1) / values
    # A value that is NaN is not below the threshold: its NaN stays.
    coefficients = coefficients.masked_fill(values <= threshold, 0)
    return (vectors @ coefficients.unsqueeze(-1)).squeeze(-1).to(gramian.dtype)


def _lapack(A: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(A)
    return values, vectors


def _jacobi(A: Tensor) -> tuple[Tensor, Tensor]:
    """`eigh` of finite float64 matrices ``(..., T, T)`` with entries up to 1."""
    T = A.shape[-1]
    A = torch.nn.functional.pad(A, (0, T % 2, 0, T % 2))  # an odd one's last row is zero, and no rotation changes that
    n, half = A.shape[-1], A.shape[-1] // 2
    identity = torch.eye(n, dtype=A.dtype, device=A.device)
    plus = torch.full((half,), 0.5, dtype=A.dtype, device=A.device)
    halves = torch.cat([plus, -plus])
    # Row i meets row i + half; then all but the first move on by one place around the circle. A rotation by theta, and
    # that move, is cos(theta) turn + sin(theta) swap.
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
        # Between nearly equal eigenvalues a rotation is large for however small an entry, and undoes what others have
        # made small: until all entries are, a gap counts as no less than a hundredth of the largest entry.
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
