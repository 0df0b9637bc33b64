"""`conflict_averse` attains a lower bound that follows from CAGrad's original maximisation problem.

For any ``|e| <= c |g_0|``, the smallest ``g_i (g_0 + e)`` is a lower bound on the minimum, which the weights should
attain. SciPy finds the best ``e`` from the gradients, not from their Gramian.
"""

from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from torch import Tensor

from balancers.solvers.conflict_averse import conflict_averse
from balancers.solvers.minimum_norm import minimum_norm

from ..slow_params import others_slow
from .gramians import SIZES, cases, gradients, no_waiting

RADII = (0.2, 0.5, 0.9, 1.5)
SEEDS = {1: 1, 2: 4, 3: 4, 5: 2, 10: 1, 40: 1, 100: 1}
NOT_UNIQUE = ("conflict", "stationary", "rank_deficient", "rank_one", "nearly_singular", "zeros")


def normalised(G: Tensor) -> np.ndarray:
    return (G.double() / G.double().square().sum(1).mean().sqrt().clamp_min(1e-300)).numpy()


def objective(G: Tensor, c: float, weights: Tensor) -> float:
    rows, shares = normalised(G), weights.double().numpy()
    mean, combined = rows.mean(0), shares @ rows
    return float(combined @ mean + c * np.linalg.norm(mean) * np.linalg.norm(combined))


def bound(G: Tensor, c: float) -> float:
    """Return the largest lower bound found, in units of the gradients' mean square.

    Let ``e = k g(k)``, where ``g(k)`` is the shortest convex combination of ``g_i + g_0 / k``. ``|e|`` grows with ``k``
    until it reaches the ball's radius, or it stays inside.
    """
    rows = normalised(G)
    mean = rows.mean(0)
    radius = c * np.linalg.norm(mean)
    best = float((rows @ mean).min())

    @lru_cache
    def distance(log_k: float) -> float:
        nonlocal best
        shifted = np.vstack([(rows + mean / np.exp(log_k)).T, np.ones(len(rows))])
        shares = nnls(shifted, np.append(np.zeros(rows.shape[1]), 1), maxiter=100_000)[0]
        e = np.exp(log_k) * (shares / shares.sum()) @ rows
        inside = e * min(1.0, radius / max(float(np.linalg.norm(e)), 1e-300))
        best = max(best, float((rows @ (mean + inside)).min()))
        return float(np.linalg.norm(e) - radius)

    low, high = np.log(1e-6), np.log(1e8)
    for _ in range(45):
        middle = (low + high) / 2
        low, high = (low, middle) if distance(middle) > 0 else (middle, high)
    return best


def assert_on_simplex(weights: Tensor) -> None:
    assert weights.isfinite().all()
    assert (weights >= 0).all()
    tolerance = 1e-12 if weights.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), rtol=0, atol=tolerance)


@pytest.mark.parametrize("num_tasks", others_slow(SIZES, 2, 5))
def test_attains_the_bound(num_tasks: int) -> None:
    for seed in range(SEEDS[num_tasks]):
        for name, G in gradients(num_tasks, seed).items():
            for c in RADII if num_tasks < 40 else RADII[1:3]:
                weights = conflict_averse(G @ G.T, c)
                assert_on_simplex(weights)
                gap = objective(G, c, weights) - bound(G, c)
                assert gap < 1e-6, (name, seed, c, gap)


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 10, 40])
def test_attains_the_bound_in_float32(num_tasks: int) -> None:
    for name, G in gradients(num_tasks).items():
        G = G.float()
        weights = conflict_averse(G @ G.T, 0.5)
        assert weights.dtype == torch.float32
        assert_on_simplex(weights)
        gap = objective(G, 0.5, weights) - bound(G, 0.5)
        assert gap < 1e-3, (name, gap)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(1, 8), st.integers(0, 10**6), st.floats(-4, 4), st.floats(0.01, 2))
@pytest.mark.slow
def test_norms_that_differ(num_tasks: int, size: int, seed: int, exponent: float, c: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    G = torch.randn(num_tasks, size, generator=generator, dtype=torch.float64)
    G *= 10 ** (exponent * torch.rand(num_tasks, 1, generator=generator, dtype=torch.float64))
    weights = conflict_averse(G @ G.T, c)
    assert_on_simplex(weights)
    assert objective(G, c, weights) - bound(G, c) < 1e-6


def duality_gap(G: Tensor, c: float, weights: Tensor) -> float:
    """Return how far the weights may be from the minimum at most, in units of the shortest gradient.

    The worst-off task's gain from the direction that the weights give is a lower bound on the minimum.
    """
    rows, shares = G.double(), weights.double()
    mean, combined = rows.mean(0), shares @ rows
    radius = c * mean.norm()
    value = combined @ mean + radius * combined.norm()
    gain = (rows @ (mean + radius * combined / combined.norm())).min()
    return float((value - gain) / (mean.norm() * rows.norm(dim=1).min()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("ratio", [1.0, 1e-2, 1e-4, 1e-6])
def test_short_gradients(ratio: float, dtype: torch.dtype) -> None:
    """Two of them, between which the solver has to choose."""
    generator = torch.Generator().manual_seed(3)
    inside = 0
    for case in range(40):
        G = torch.nn.functional.normalize(torch.randn(3, 20, generator=generator, dtype=torch.float64), dim=1)
        if case % 2:
            G[1] -= 0.5 * G[0]
        G[:2] *= ratio
        G = G.to(dtype)
        weights = conflict_averse(G @ G.T, 0.4)
        assert_on_simplex(weights)
        inside += int(((weights > 0.02) & (weights < 0.98)).any())
        assert duality_gap(G, 0.4, weights) < (1e-8 if dtype == torch.float64 else 1e-4)
    assert inside > 10


def test_two_tasks() -> None:
    """The closed form is at least as good as a fine grid."""
    first = np.linspace(0, 1, 2001)
    for seed in range(10):
        for name, G in gradients(2, seed).items():
            rows = normalised(G)
            mean, combined = rows.mean(0), np.stack([first, 1 - first], 1) @ rows
            for c in (0.0, *RADII, 1.0):
                values = combined @ mean + c * np.linalg.norm(mean) * np.linalg.norm(combined, axis=1)
                assert objective(G, c, conflict_averse(G @ G.T, c)) <= values.min() + 1e-7, (name, seed, c)


def test_limits() -> None:
    """Radius 0 gives all weight to the gradient with the least product with the mean; a large one, the shortest sum."""
    for num_tasks in (2, 3, 10):
        M = cases(num_tasks)["random"]
        least = torch.nn.functional.one_hot(M.mean(1).argmin(), num_tasks).double()
        torch.testing.assert_close(conflict_averse(M, 0.0), least, rtol=0, atol=1e-6)
        torch.testing.assert_close(conflict_averse(M, 1e6), minimum_norm(M), rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("num_tasks", [2, 5, 40])
def test_common_scale_is_of_no_consequence(num_tasks: int, scale: float) -> None:
    for name in ("random", "opposed", "uneven", "zero_row"):
        M = cases(num_tasks)[name]
        torch.testing.assert_close(conflict_averse(M * scale**2, 0.5), conflict_averse(M, 0.5), rtol=0, atol=1e-8)


def test_common_scale_in_float32() -> None:
    for num_tasks in (2, 5):
        M = cases(num_tasks, torch.float32)["random"]
        for scale in (1e-30, 1e30):
            torch.testing.assert_close(conflict_averse(M * scale, 0.5), conflict_averse(M, 0.5), rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_tasks", SIZES)
def test_order_of_tasks_is_of_no_consequence(num_tasks: int) -> None:
    order = torch.randperm(num_tasks)
    for name, M in cases(num_tasks).items():
        if name not in NOT_UNIQUE:
            permuted = conflict_averse(M[order][:, order], 0.5)
            torch.testing.assert_close(permuted, conflict_averse(M, 0.5)[order], rtol=0, atol=1e-8)


@pytest.mark.parametrize("num_tasks", [2, 4, 10, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_tasks_get_equal_weights(num_tasks: int, dtype: torch.dtype) -> None:
    weights = conflict_averse(cases(num_tasks, dtype)["duplicated"], 0.5)
    torch.testing.assert_close(weights[::2], weights[1::2], rtol=0, atol=1e-8)
    zero = torch.zeros(num_tasks, num_tasks, dtype=dtype)
    torch.testing.assert_close(conflict_averse(zero, 0.5), torch.full_like(zero[0], 1 / num_tasks))


@pytest.mark.parametrize("num_tasks", SIZES[:-1])
def test_batch_is_the_same_as_a_loop(num_tasks: int) -> None:
    batch = torch.stack([M for name, M in cases(num_tasks).items() if name not in NOT_UNIQUE][:4]).unflatten(0, (2, 2))
    loop = torch.stack([conflict_averse(M, 0.5) for M in batch.flatten(0, 1)]).unflatten(0, (2, 2))
    torch.testing.assert_close(conflict_averse(batch, 0.5), loop, rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_tasks", SIZES[1:])
def test_pareto_stationary(num_tasks: int) -> None:
    """If the mean gradient is zero, the solver finds a combination that is zero."""
    M = cases(num_tasks)["stationary"]
    weights = conflict_averse(M, 0.5)
    assert weights @ M @ weights < 1e-10 * M.diagonal().mean()


@pytest.mark.parametrize("num_tasks", [1, 2, 10])
def test_waits_for_nothing(num_tasks: int) -> None:
    M = cases(num_tasks, torch.float32)["random"]
    with no_waiting():
        conflict_averse(M, 0.5)
