"""`project_on_half_spaces` agrees with Lawson and Hanson's least distance programming on the gradients themselves."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

from balancers.solvers.half_spaces import project_on_half_spaces

from .gramians import SIZES, cases, gradients, no_waiting

KINDS = ("random", "orthogonal", "aligned", "ill_conditioned", "duplicated", "opposed", "uneven", "zero_row")
"""Kinds of gradients whose half-spaces have a point in common, for bounds of zero or more."""


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def least_distance(G: Tensor, w: Tensor, b: Tensor) -> np.ndarray | None:
    """Return the vector nearest to ``w @ G`` with ``G d >= b``; None if there is none.

    Source: Lawson and Hanson, "Solving Least Squares Problems", 1974, ch. 23.
    """
    rows, start = G.numpy(), (w @ G).numpy()
    rest = b.numpy() - rows @ start
    norms = np.linalg.norm(rows, axis=1)
    kept = np.isfinite(rest) & (norms > 0)
    rows, rest = rows[kept] / norms[kept, None], rest[kept] / norms[kept]
    if (rest <= 0).all():
        return start
    size = np.abs(rest).max()
    target = np.append(np.zeros(rows.shape[1]), 1)
    matrix = np.vstack([rows.T, rest / size])
    residual = matrix @ nnls(matrix, target, maxiter=100_000)[0] - target
    if np.linalg.norm(residual) < 1e-6:
        return None
    return start - size * residual[:-1] / residual[-1]


def problems(num_tasks: int, seeds: int) -> list[tuple[str, Tensor, Tensor, Tensor]]:
    """Return gradients, weights, and bounds that are scaled to the gradients, some of which are off."""
    found = []
    for seed in range(seeds):
        for name, G in gradients(num_tasks, seed).items():
            if name not in KINDS or (name == "ill_conditioned" and num_tasks > 10):  # counts as linearly dependent
                continue
            squares = G.square().sum(1)
            first = torch.eye(num_tasks, dtype=torch.float64)[seed % num_tasks]
            found.append((name, G, first, torch.where(first > 0, -torch.inf, 0.02 * squares)))
            found.append((name, G, first, torch.where(first > 0, -torch.inf, squares)))
            found.append((name, G, randn(num_tasks, seed=seed), squares * randn(num_tasks, seed=seed + 10)))
    return found


@pytest.mark.parametrize("num_tasks", SIZES[:-1])
def test_is_the_projection(num_tasks: int) -> None:
    for name, G, w, b in problems(num_tasks, seeds=4 if num_tasks < 40 else 1):
        mu = project_on_half_spaces(G @ G.T, w, b)
        assert (mu >= 0).all()
        expected = least_distance(G, w, b)
        assert expected is not None, name
        direction = (w + mu) @ G
        error = (direction - torch.from_numpy(expected)).norm() / max(1e-12, np.linalg.norm(expected))
        assert error < (1e-3 if name == "ill_conditioned" else 1e-6), (name, error)


@pytest.mark.parametrize("num_tasks", SIZES[1:-1])
def test_meets_every_bound_and_pushes_no_further(num_tasks: int) -> None:
    for name, G, w, b in problems(num_tasks, seeds=2):
        mu = project_on_half_spaces(G @ G.T, w, b)
        norms = G.norm(dim=1)
        left = (G @ ((w + mu) @ G) - b) / (norms * norms.max()).clamp_min(1e-300)
        assert (left >= -1e-6).all(), name
        assert (mu * norms * left.clamp(max=1e6)).abs().max() < 1e-4 * (1 + mu * norms).max(), name


def test_a_bound_that_is_met_has_no_multiplier() -> None:
    for num_tasks in SIZES:
        M = cases(num_tasks)["aligned"]
        w = torch.ones(num_tasks, dtype=torch.float64)
        mu = project_on_half_spaces(M, w, torch.zeros_like(w))
        torch.testing.assert_close(mu, torch.zeros_like(w), rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_tasks", [2, 3, 5, 10])
def test_half_spaces_without_a_common_point_have_no_multipliers(num_tasks: int, dtype: torch.dtype) -> None:
    """The last two gradients are opposed, and each is to gain; or all add up to zero."""
    for seed in range(10):
        G = randn(num_tasks, 2 * num_tasks, seed=seed)
        G[-1] = -2 * G[-2]
        zero_sum = G - G.mean(0)
        for rows in (G.to(dtype), zero_sum.to(dtype)):
            M = rows @ rows.T
            w = torch.eye(num_tasks, dtype=dtype)[0]
            b = 0.1 * M.diagonal()
            assert least_distance(rows.double(), w.double(), b.double()) is None or dtype == torch.float32
            assert not project_on_half_spaces(M, w, b).any()


NARROW = [(torch.float32, 0.1), (torch.float32, 0.01), *((torch.float64, 0.1**k) for k in (1, 2, 3, 4))]


@pytest.mark.parametrize(("dtype", "angle"), NARROW)
def test_a_narrow_intersection(dtype: torch.dtype, angle: float) -> None:
    """Two gradients are almost opposed, so that the progress of both needs large multipliers."""
    G = torch.tensor([[0, 0, 1], [1, angle, 0], [-1, angle, 0]], dtype=dtype)
    b = torch.tensor([-torch.inf, 0.1, 0.1], dtype=dtype)
    mu = project_on_half_spaces(G @ G.T, torch.eye(3, dtype=dtype)[0], b)
    expected = torch.tensor([0, 0.05, 0.05], dtype=dtype) / angle**2
    torch.testing.assert_close(mu, expected, rtol=1e-4 if dtype == torch.float64 else 1e-3, atol=1e-8)


def test_a_bound_of_minus_infinity_is_off() -> None:
    for num_tasks in (2, 3, 10):
        M = cases(num_tasks)["opposed"]
        w = torch.ones(num_tasks, dtype=torch.float64)
        free = torch.full_like(w, -torch.inf)
        assert not project_on_half_spaces(M, w, free).any()
        some = torch.where(torch.arange(num_tasks) < num_tasks - 1, M.diagonal(), -torch.inf)
        mu = project_on_half_spaces(M, w, some)
        assert mu[-1] == 0
        few = project_on_half_spaces(M[:-1, :-1], w[:-1], some[:-1] - M[:-1, -1])
        torch.testing.assert_close(mu[:-1], few, rtol=1e-6, atol=1e-6)


def test_the_bound_of_a_zero_gradient_is_ignored() -> None:
    for num_tasks in (2, 3, 10):
        M = cases(num_tasks)["zero_row"]
        mu = project_on_half_spaces(M, torch.zeros(num_tasks), torch.ones(num_tasks))
        assert mu[num_tasks // 2] == 0
        assert mu.sum() > 0


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 10])
def test_batch_is_the_same_as_a_loop(num_tasks: int) -> None:
    M = torch.stack([cases(num_tasks, seed=seed)["random"] for seed in range(6)]).unflatten(0, (2, 3))
    w, b = randn(2, 3, num_tasks, seed=1), randn(2, 3, num_tasks, seed=2)
    together = project_on_half_spaces(M, w, b)
    for i, j in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        torch.testing.assert_close(together[i, j], project_on_half_spaces(M[i, j], w[i, j], b[i, j]))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_common_scales_are_of_no_consequence(scale: float) -> None:
    for num_tasks in (2, 3, 10):
        M, w, b = cases(num_tasks)["random"], randn(num_tasks, seed=1), randn(num_tasks, seed=2)
        mu = project_on_half_spaces(M, w, b)
        torch.testing.assert_close(project_on_half_spaces(scale * M, w, scale * b), mu, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(project_on_half_spaces(M, scale * w, scale * b) / scale, mu, rtol=1e-8, atol=1e-8)


def test_multipliers_have_the_gramians_type() -> None:
    for num_tasks in (1, 2, 3):
        M, b = cases(num_tasks, torch.float32)["random"], torch.ones(num_tasks)
        assert project_on_half_spaces(M, torch.zeros(num_tasks), b).dtype == torch.float32


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 10])
def test_waits_for_nothing(num_tasks: int) -> None:
    M, w, b = cases(num_tasks)["random"], randn(num_tasks, seed=1), randn(num_tasks, seed=2)
    with no_waiting():
        project_on_half_spaces(M, w, b)


def test_meta_tensors() -> None:
    M, w = torch.empty(4, 3, 3, device="meta"), torch.empty(4, 3, device="meta")
    assert project_on_half_spaces(M, w, w).shape == (4, 3)
