"""`minimum_norm` agrees with SciPy's non-negative least squares, which works on gradients and not on their Gramian."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from torch import Tensor

from balancers.solvers.minimum_norm import minimum_norm

from .gramians import SIZES, calls, cases, gradients, no_waiting

GAP = {torch.float64: 1e-8, torch.float32: 1e-3}
SEEDS = {1: 1, 2: 8, 3: 8, 5: 5, 10: 3, 40: 1, 100: 1}


def shortest(G: Tensor) -> float:
    """Return the squared norm of the shortest convex combination over G's mean square (Lawson and Hanson)."""
    scaled = (G / G.square().sum(1).mean().sqrt().clamp_min(1e-300)).numpy()
    solution = nnls(np.vstack([scaled.T, np.ones(len(G))]), np.append(np.zeros(G.shape[1]), 1), maxiter=100_000)[0]
    return float(np.square(solution / solution.sum() @ scaled).sum())


def length(G: Tensor, weights: Tensor) -> float:
    return float((weights.double() @ G).square().sum() / G.square().sum(1).mean().clamp_min(1e-300))


def assert_on_simplex(weights: Tensor) -> None:
    assert weights.isfinite().all()
    assert (weights >= 0).all()
    tolerance = 1e-12 if weights.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), rtol=0, atol=tolerance)


@pytest.mark.parametrize("num_tasks", SIZES)
@pytest.mark.parametrize("dtype", GAP)
def test_is_as_short_as_the_shortest(num_tasks: int, dtype: torch.dtype) -> None:
    for seed in range(SEEDS[num_tasks]):
        for name, G in gradients(num_tasks, seed).items():
            G = G.to(dtype)
            weights = minimum_norm(G @ G.T)
            assert weights.dtype == dtype
            assert_on_simplex(weights)
            gap = length(G.double(), weights) - shortest(G.double())
            assert gap < GAP[dtype], (name, seed, gap)


@pytest.mark.parametrize("num_tasks", SIZES)
def test_duality_gap_is_small(num_tasks: int) -> None:
    """``f - f* <= 2 (f - min_i (M lambda)_i)`` holds by convexity for any ``lambda``, so no reference is needed."""
    for name, M in cases(num_tasks).items():
        product = M @ minimum_norm(M)
        gap = 2 * (minimum_norm(M) @ product - product.min()) / M.diagonal().mean().clamp_min(1e-300)
        assert gap < 1e-7, (name, gap)


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 6), st.integers(1, 8), st.integers(0, 10**6), st.floats(-4, 4))
def test_norms_that_differ(num_tasks: int, size: int, seed: int, exponent: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    G = torch.randn(num_tasks, size, generator=generator, dtype=torch.float64)
    G *= 10 ** (exponent * torch.rand(num_tasks, 1, generator=generator, dtype=torch.float64))
    weights = minimum_norm(G @ G.T)
    assert_on_simplex(weights)
    # Measure the gap in units of the shortest gradient: in units of the mean square, a wrong answer could pass.
    smallest = G.square().sum(1).min() / G.square().sum(1).mean()
    assert length(G, weights) - shortest(G) < 1e-8 * smallest + 1e-15


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 6), st.integers(1, 8), st.integers(0, 10**6), st.floats(-4.5, 4.5))
def test_norms_that_differ_in_float32(num_tasks: int, size: int, seed: int, exponent: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    G = torch.randn(num_tasks, size, generator=generator)
    G *= 10 ** (exponent * torch.rand(num_tasks, 1, generator=generator))
    weights = minimum_norm(G @ G.T)
    assert_on_simplex(weights)
    G = G.double()
    smallest = G.square().sum(1).min() / G.square().sum(1).mean()
    assert length(G, weights) - shortest(G) < 1e-4 * smallest + 1e-15


@pytest.mark.parametrize("ratio", [1e-1, 1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("cosine", [-0.9, -0.1, 0.0])
def test_two_tasks_in_float32(cosine: float, ratio: float) -> None:
    """The foot of the perpendicular is at the share of the longer gradient, r (r - cos) / (1 + r^2 - 2 r cos)."""
    products = [[1.0, cosine * ratio], [cosine * ratio, ratio**2]]
    share = ratio * (ratio - cosine) / (1 + ratio**2 - 2 * ratio * cosine)
    expected = torch.tensor([share, 1 - share])
    torch.testing.assert_close(minimum_norm(torch.tensor(products)), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("num_tasks", [2, 5, 40])
def test_common_scale_is_of_no_consequence(num_tasks: int, scale: float) -> None:
    for name in ("random", "ill_conditioned", "uneven", "zero_row"):
        M = cases(num_tasks)[name]
        torch.testing.assert_close(minimum_norm(M * scale**2), minimum_norm(M), rtol=0, atol=1e-8)


def test_common_scale_in_float32() -> None:
    M = cases(5, torch.float32)["random"]
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(minimum_norm(M * scale), minimum_norm(M), rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_tasks", SIZES)
def test_order_of_tasks_is_of_no_consequence(num_tasks: int) -> None:
    order = torch.randperm(num_tasks)
    for name, M in cases(num_tasks).items():
        if name not in ("rank_deficient", "rank_one", "nearly_singular"):  # their solutions are not unique
            torch.testing.assert_close(minimum_norm(M[order][:, order]), minimum_norm(M)[order], rtol=0, atol=1e-8)


@pytest.mark.parametrize("num_tasks", [2, 4, 10, 40])
@pytest.mark.parametrize("dtype", GAP)
def test_equal_tasks_get_equal_weights(num_tasks: int, dtype: torch.dtype) -> None:
    weights = minimum_norm(cases(num_tasks, dtype)["duplicated"])
    torch.testing.assert_close(weights[::2], weights[1::2], rtol=0, atol=1e-8)
    zero = torch.zeros(num_tasks, num_tasks, dtype=dtype)
    torch.testing.assert_close(minimum_norm(zero), torch.full_like(zero[0], 1 / num_tasks))


@pytest.mark.parametrize("num_tasks", SIZES[:-1])
def test_batch_is_the_same_as_a_loop(num_tasks: int) -> None:
    unique = [
        M for name, M in cases(num_tasks).items() if name not in ("rank_deficient", "rank_one", "nearly_singular")
    ]
    batch = torch.stack(unique[:6]).unflatten(0, (2, 3))
    loop = torch.stack([minimum_norm(M) for M in batch.flatten(0, 1)]).unflatten(0, (2, 3))
    torch.testing.assert_close(minimum_norm(batch), loop, rtol=0, atol=1e-10)


def test_two_tasks() -> None:
    """The closed form has three cases: the first gradient, the second, and the foot of the perpendicular."""
    for G, expected in (
        ([[1.0, 0], [2, 1]], [1.0, 0.0]),
        ([[2.0, 1], [1, 0]], [0.0, 1.0]),
        ([[1.0, 0], [0, 2]], [0.8, 0.2]),
        ([[1.0, 0], [-3, 0]], [0.75, 0.25]),
    ):
        rows = torch.tensor(G, dtype=torch.float64)
        torch.testing.assert_close(minimum_norm(rows @ rows.T), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("dtype", GAP)
def test_zero_gradient_takes_all(dtype: torch.dtype) -> None:
    for num_tasks in (2, 3, 10):
        weights = minimum_norm(cases(num_tasks, dtype)["zero_row"])
        expected = torch.zeros_like(weights).index_fill(0, torch.tensor([num_tasks // 2]), 1)
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_tasks", [1, 2, 10])
def test_waits_for_nothing(num_tasks: int) -> None:
    M = cases(num_tasks, torch.float32)["random"]
    with no_waiting():
        minimum_norm(M)


def test_few_calls_for_two_tasks() -> None:
    M = cases(2)["random"]
    assert calls(lambda: minimum_norm(M)) <= 12
