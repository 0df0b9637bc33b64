"""The solution on the L-shaped domain agrees with finite differences; see ``test_physics.py``."""

import math

import numpy as np
import pytest
import scipy.sparse
import torch
from matplotlib.figure import Figure
from scipy.sparse.linalg import spsolve
from torch import Tensor

from tasks.poisson_l_shape import PoissonLShape, source


def solution(points: np.ndarray | list[list[float]]) -> np.ndarray:
    """Return the problem's solution at ``points``, shape ``(N, 2)``."""
    return PoissonLShape.solution(torch.as_tensor(np.asarray(points))).numpy()


def finite_differences(cells: int) -> float:
    """Return the relative L2 error between the solution and that of the five-point scheme.

    Only f and the values on the boundary are taken from the problem.

    Args:
        cells: number of cells along a side of length 1.
    """
    places = np.arange(-cells, cells + 1) / cells
    x, y = np.meshgrid(places, places, indexing="ij")
    inner = (np.abs(x) < 1) & (np.abs(y) < 1) & ((x < 0) | (y > 0))
    points = np.stack([x.ravel(), y.ravel()], 1)
    exact = solution(points)
    exact[(points[:, 0] >= 0) & (points[:, 1] <= 0)] = 0  # the sides at the corner, and outside of the domain

    line = scipy.sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(len(places),) * 2)
    one = scipy.sparse.eye_array(len(places))
    laplacian = (scipy.sparse.kron(line, one) + scipy.sparse.kron(one, line)).tocsr() * cells**2
    unknown, given = np.flatnonzero(inner), np.flatnonzero(~inner)
    right = source(torch.from_numpy(points[unknown])).numpy() - laplacian[unknown][:, given] @ exact[given]
    found = spsolve(laplacian[unknown][:, unknown].tocsc(), right)
    return float(np.linalg.norm(found - exact[unknown]) / np.linalg.norm(exact[unknown]))


def test_finite_differences_converge_to_the_solution():
    """The singularity lowers the order of the scheme from 2 to 4/3 (Strang and Fix, 1973, chapter 8)."""
    coarse, fine, finest = (finite_differences(cells) for cells in (16, 32, 64))
    assert finest < 2e-3
    for ratio in (coarse / fine, fine / finest):
        assert 4 / 3 - 0.15 < math.log2(ratio) < 2.1


@pytest.mark.parametrize(
    ("point", "value"),
    [
        ((-1.0, 1.0), 2 ** (1 / 3)),
        ((1.0, 1.0), 2 ** (1 / 3) / 2),
        ((-1.0, -1.0), 2 ** (1 / 3) / 2),
        ((0.0, 1.0), math.sqrt(3) / 2),
        ((-0.5, 0.0), 0.5 ** (2 / 3) * math.sqrt(3) / 2),
        ((0.0, 0.0), 0.0),
    ],
)
def test_known_values_of_the_singular_part(point, value):
    """The smooth part is zero there. The singular one is ``r^(2/3) sin(2 theta / 3)``."""
    assert solution([list(point)])[0] == pytest.approx(value, abs=1e-12)


def test_the_sum_of_both_parts_in_polar_coordinates():
    r, theta = np.meshgrid(np.linspace(0.05, 0.95, 10), np.linspace(0, 1.5 * np.pi, 13))
    x, y = r * np.cos(theta), r * np.sin(theta)
    expected = r ** (2 / 3) * np.sin(2 / 3 * theta) + 0.5 * np.sin(2 * np.pi * x) * np.sin(2 * np.pi * y)
    found = solution(np.stack([x.ravel(), y.ravel()], 1))
    np.testing.assert_allclose(found, expected.ravel(), atol=1e-12)


def test_the_gradient_grows_without_bound_towards_the_corner():
    """Its norm is ``2/3 r^(-1/3)``: twice as large at an eighth of the distance."""
    for r in (1e-3, 1e-6, 1e-9):
        points = r * torch.tensor([[-0.6, 0.8], [-0.8, -0.6], [0.6, 0.8]], dtype=torch.float64)
        points.requires_grad_()
        (gradient,) = torch.autograd.grad(PoissonLShape.solution(points).sum(), points)
        np.testing.assert_allclose(gradient.norm(dim=1).numpy(), 2 / 3 * r ** (-1 / 3), rtol=1e-2)


def outside(points: Tensor) -> Tensor:
    """Return which ``points`` lie in the quadrant that the domain lacks."""
    x, y = points.T
    return (x > 0) & (y < 0)


def test_points_lie_inside_and_on_the_sides_of_their_task():
    pools = PoissonLShape().pools(torch.Generator().manual_seed(4))
    assert not any(outside(pool).any() for pool in pools.values())

    inner = pools["residual"]
    assert inner.abs().max() <= 1
    x, y = inner.T
    for square in ((x < 0) & (y < 0), (x < 0) & (y > 0), (x > 0) & (y > 0)):
        assert abs(square.sum().item() - 10_000 / 3) < 5
        for column in inner[square].T:
            assert column.abs().mean().item() == pytest.approx(0.5, abs=0.02)

    x, y = pools["corner"].T
    for across, along, sign in ((y, x, 1), (x, y, -1)):
        side = sign * along[across == 0]
        assert len(side) == 500
        assert side.min() >= 0
        assert side.mean().item() == pytest.approx(0.5, abs=0.05)

    x, y = pools["outer"].T
    for side, middle, count in (
        (y[x == -1], 0, 333),
        (x[y == 1], 0, 333),
        (y[x == 1], 0.5, 167),
        (x[y == -1], -0.5, 167),
    ):
        assert len(side) == count
        assert side.mean().item() == pytest.approx(middle, abs=0.1)


def test_the_splits_are_disjoint_grids_over_the_domain():
    problem = PoissonLShape()
    data = problem.data(torch.Generator().manual_seed(1), "cpu")
    rows = []
    for grid, offset in ((data.validation, 0.25), (data.test, 0.75)):
        places = -1 + (np.arange(100) + offset) / 50
        expected = np.array([(x, y) for x in places for y in places if x < 0 or y > 0])
        np.testing.assert_allclose(grid.points.numpy(), expected, atol=1e-6)
        assert grid.solution.shape == (7_500,)
        rows.append(set(map(tuple, grid.points.tolist())))
    assert not rows[0] & rows[1]
    assert problem.sizes(data) == {"train": 12_000, "validation": 7_500, "test": 7_500}


@pytest.mark.parametrize("trained", [False, True])
def test_the_picture_leaves_out_what_lies_outside(trained):
    problem = PoissonLShape()
    data = problem.data(torch.Generator().manual_seed(1), "cpu")
    figure = Figure(figsize=(9, 5), layout="constrained")
    torch.manual_seed(0)
    problem.draw(figure, data, problem.model() if trained else None)
    images = [np.ma.filled(axes.images[0].get_array(), np.nan) for axes in figure.axes if axes.images]
    assert len(images) == (3 if trained else 1)
    for image in images:  # rows are y, upwards; columns are x
        assert np.isnan(image[:50, 50:]).all()
        assert np.isnan(image).sum() == 2_500
    x, y = -1 + (30 + 0.75) / 50, -1 + (80 + 0.75) / 50
    assert images[0][80, 30] == pytest.approx(solution([[x, y]])[0], abs=1e-5)


def test_the_problem_is_reserved():
    assert PoissonLShape.reserved
