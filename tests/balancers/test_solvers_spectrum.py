"""Spectra agree with LAPACK's, also by Jacobi's method; least-squares solutions agree with the pseudoinverse."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from balancers.solvers import spectrum
from balancers.solvers.spectrum import eigh, pseudo_solve

from ..slow_params import others_slow
from .gramians import SIZES, cases, no_waiting

METHODS = pytest.mark.parametrize("method", ["lapack", "jacobi"], indirect=True)


@pytest.fixture
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test on the CPU, with LAPACK or with the Jacobi method that other devices use."""
    if request.param == "jacobi":
        monkeypatch.setattr(spectrum, "_lapack", spectrum._jacobi)
    return request.param


def matrices(num_tasks: int) -> dict[str, Tensor]:
    """Return Gramians and matrices that are hard for Jacobi's method: equal or close eigenvalues, or of both signs."""
    T = num_tasks
    Q = torch.linalg.qr(torch.randn(T, T, dtype=torch.float64))[0]
    few = 1.0 + torch.arange(T, dtype=torch.float64) % 2
    close = 1 + torch.logspace(0, -16, T, dtype=torch.float64)
    symmetric = torch.randn(T, T, dtype=torch.float64)
    return cases(T) | {
        "two_eigenvalues": Q * few @ Q.T,
        "both_signs": Q * (2 * few - 3) @ Q.T,
        "cluster": Q * close @ Q.T,
        "geometric": Q * (close - 1) @ Q.T,
        "ones": torch.ones(T, T, dtype=torch.float64),
        "symmetric": symmetric + symmetric.T,
    }


def scale(A: Tensor) -> Tensor:
    return A.abs().amax((-2, -1)).clamp(min=1e-300)


@METHODS
@pytest.mark.parametrize("num_tasks", others_slow(SIZES, *[size for size in SIZES if size < 40]))
def test_values_and_vectors(num_tasks: int, method: str) -> None:
    A = torch.stack(list(matrices(num_tasks).values()))
    if num_tasks == 100 and method == "jacobi":
        A = A[[3, 5, -1]]
    values, V = eigh(A)
    A, values = A / scale(A)[:, None, None], values / scale(A)[:, None]
    close = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(values, torch.linalg.eigvalsh(A), **close)
    torch.testing.assert_close(V * values.unsqueeze(-2) @ V.mT, A, **close)
    torch.testing.assert_close(V.mT @ V, torch.eye(num_tasks).double().expand_as(A), **close)
    assert (values.diff() >= 0).all()


@METHODS
def test_a_diagonal_matrix_keeps_its_axes(method: str) -> None:
    values, V = eigh(torch.diag(torch.tensor([3.0, 1.0, 2.0])))
    torch.testing.assert_close(values, torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(V.abs(), torch.eye(3)[:, [1, 2, 0]])


@METHODS
@pytest.mark.parametrize(("dtype", "norm"), [(torch.float64, 1e30), (torch.float32, 1e15)])
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 10])
def test_scale(num_tasks: int, dtype: torch.dtype, norm: float, method: str) -> None:
    M, right = cases(num_tasks, dtype)["random"], torch.randn(num_tasks, dtype=dtype)
    values, solution = eigh(M)[0], pseudo_solve(M, right)
    rtol = 1e-9 if dtype == torch.float64 else 1e-4
    for factor in (norm**2, norm**-2):
        torch.testing.assert_close(eigh(M * factor)[0] / factor, values, rtol=rtol, atol=0)
        torch.testing.assert_close(pseudo_solve(M * factor, right) * factor, solution, rtol=rtol, atol=0)


@METHODS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("num_tasks", others_slow([1, 2, 3, 5, 10, 40], 1, 2, 3, 5, 10))
def test_pseudo_solve_is_the_pseudoinverse(num_tasks: int, dtype: torch.dtype, method: str) -> None:
    right = torch.randn(num_tasks, dtype=dtype)
    for name, M in cases(num_tasks, dtype).items():
        w = pseudo_solve(M, right)
        assert w.dtype == dtype
        rtol = num_tasks * torch.finfo(dtype).eps
        M = (M.double() + M.T.double()) / 2
        values = torch.linalg.eigvalsh(M) / scale(M)
        least = values[values > rtol * values[-1]].min().item() if M.any() else 1.0
        if least < 2 * rtol * values[-1] or least < 1e-10:
            continue  # rounding decides the rank or the solution
        expected = torch.linalg.pinv(M, hermitian=True, rtol=rtol) @ right.double()
        largest = expected.abs().max().item()
        torch.testing.assert_close(w.double(), expected, rtol=0, atol=(1e-6 + 1e-14 / least) * largest, msg=name)


@pytest.mark.parametrize("num_tasks", [3, 10])
def test_the_rank_is_that_of_numpy(num_tasks: int) -> None:
    """The trace of the projector M^+ M is the rank of M."""
    for name in ("random", "rank_deficient", "rank_one", "duplicated", "zeros", "zero_row"):
        M = cases(num_tasks)[name]
        projector = pseudo_solve(M.expand(num_tasks, -1, -1), M)
        assert round(projector.trace().item()) == np.linalg.matrix_rank(M.numpy(), hermitian=True), name


@METHODS
def test_least_squares_solution_of_least_norm(method: str) -> None:
    M = cases(10)["rank_deficient"]
    right = torch.randn(10, dtype=torch.float64)
    w = pseudo_solve(M, right)
    torch.testing.assert_close(M @ (M @ w - right), torch.zeros(10).double(), rtol=0, atol=1e-9)
    expected = torch.from_numpy(np.linalg.lstsq(M.numpy(), right.numpy(), rcond=1e-12)[0])
    torch.testing.assert_close(w, expected, rtol=1e-6, atol=1e-9)


@METHODS
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 10])
def test_batch_equals_loop(num_tasks: int, method: str) -> None:
    batch = torch.stack([cases(num_tasks, seed=seed)["random"] for seed in range(6)])
    right = torch.randn(6, num_tasks, dtype=torch.float64)
    functions: list[Callable[[Tensor, Tensor], Tensor]] = [pseudo_solve, lambda M, _: eigh(M)[0]]
    for function in functions:
        expected = torch.stack([function(M, b) for M, b in zip(batch, right, strict=True)])
        torch.testing.assert_close(function(batch, right), expected, rtol=1e-10, atol=1e-13)
        shaped = function(batch.unflatten(0, (2, 3)), right.unflatten(0, (2, 3)))
        torch.testing.assert_close(shaped, expected.unflatten(0, (2, 3)), rtol=1e-10, atol=1e-13)


@METHODS
@pytest.mark.parametrize("num_tasks", [2, 3, 10])
def test_order_of_tasks_does_not_matter(num_tasks: int, method: str) -> None:
    order, right = torch.randperm(num_tasks), torch.randn(num_tasks, dtype=torch.float64)
    for name in ("random", "rank_deficient", "duplicated"):
        M = cases(num_tasks)[name]
        w = pseudo_solve(M, right)
        permuted = pseudo_solve(M[order][:, order], right[order])
        torch.testing.assert_close(permuted, w[order], rtol=0, atol=1e-8 * w.abs().max().item(), msg=name)


@METHODS
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 10])
def test_what_is_not_finite_gives_nan(num_tasks: int, value: float, method: str) -> None:
    batch = torch.stack([cases(num_tasks)["random"]] * 2)
    batch[0, 0, -1] = value
    right = torch.ones(2, num_tasks, dtype=torch.float64)
    for result in (*eigh(batch), pseudo_solve(batch, right)):
        assert result[0].isnan().all()
        assert result[1].isfinite().all()


@METHODS
@pytest.mark.parametrize("num_tasks", SIZES[:-2])
def test_degenerate_gramians_are_finite(num_tasks: int, method: str) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        M = torch.stack([*cases(num_tasks, dtype).values(), torch.full((num_tasks, num_tasks), 1e-38, dtype=dtype)])
        for result in (*eigh(M), pseudo_solve(M, torch.ones_like(M[..., 0]))):
            assert result.dtype == dtype
            assert result.isfinite().all()


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 10])
def test_does_not_wait_for_the_device(num_tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jacobi's method, which all devices but the CPU use, does not wait. On the CPU LAPACK has nothing to wait for."""
    monkeypatch.setattr(spectrum, "_lapack", spectrum._jacobi)
    for M in cases(num_tasks).values():
        right = torch.ones(num_tasks, dtype=torch.float64)
        with no_waiting():
            eigh(M)
            pseudo_solve(M, right)
