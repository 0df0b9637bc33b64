"""Helmholtz's solution agrees with a spectral one, and its points lie where they should; see ``test_physics.py``."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import solve_sylvester

from tasks.helmholtz import Helmholtz, source


def chebyshev(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the n + 1 Chebyshev points on [-1, 1], descending, and their polynomials' differentiation matrix."""
    x = np.cos(np.pi * np.arange(n + 1) / n)
    c = np.r_[2, np.ones(n - 1), 2] * (-1) ** np.arange(n + 1)
    between = x[:, None] - x + np.eye(n + 1)
    D = np.outer(c, 1 / c) / between
    return x, D - np.diag(D.sum(1))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_spectral_solution_of_the_equation_agrees(split):
    """Collocation with zero boundary values solves ``(D2 + k^2) U + U D2^T = Q`` at the inner points."""
    x, D = chebyshev(40)
    second = (D @ D)[1:-1, 1:-1]
    inner = torch.from_numpy(x[1:-1].copy())
    Q = source(torch.cartesian_prod(inner, inner)).view(len(inner), len(inner)).numpy()
    U = np.zeros((41, 41))
    U[1:-1, 1:-1] = solve_sylvester(second + np.eye(len(inner)), second.T, Q)

    grid = getattr(Helmholtz().data(torch.Generator(), "cpu"), split)
    points = grid.points.double().numpy()
    coefficients = np.linalg.solve(np.polynomial.chebyshev.chebvander2d(*_mesh(x), [40, 40]), U.ravel())
    spectral = np.polynomial.chebyshev.chebval2d(*points.T, coefficients.reshape(41, 41))
    solution = Helmholtz.solution(grid.points.double()).numpy()
    assert np.linalg.norm(spectral - solution) < 1e-6 * np.linalg.norm(solution)


def _mesh(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.meshgrid(x, x, indexing="ij")
    return first.ravel(), second.ravel()


def test_the_solution_is_that_of_the_paper():
    points = torch.tensor([[0.5, 0.125], [-0.5, 0.125], [0.25, -0.375], [1.0, 0.3]], dtype=torch.float64)
    expected = [1.0, -1.0, math.sqrt(0.5), 0.0]
    np.testing.assert_allclose(Helmholtz.solution(points).numpy(), expected, atol=1e-12)


def test_points_lie_inside_and_on_all_four_sides():
    pools = Helmholtz().pools(torch.Generator().manual_seed(4))
    for axis in (0, 1):  # a Latin hypercube: one point in every strip
        strips = ((pools["residual"][:, axis].double() + 1) / 2 * 10_000).floor().clamp(0, 9_999)
        assert len(strips.unique()) > 9_990  # all, up to rounding
    boundary = pools["boundary"]
    sides = [boundary[boundary[:, axis] == side] for axis in (0, 1) for side in (-1, 1)]
    assert [len(side) for side in sides] == [250] * 4
    for side, along in zip(sides, (1, 1, 0, 0), strict=True):
        assert side[:, along].min() < -0.9
        assert side[:, along].max() > 0.9
        assert abs(side[:, along].mean()) < 0.15
