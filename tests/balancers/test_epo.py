"""EPO solves its linear programs, which are written out here with SciPy, and reaches the point it is made for.

The peers, the official code and libmoon, need a solver that is not among the tests' requirements: see tests/peers.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from balancers import Fork, Read
from balancers.epo import EPO

from .planted import Planted, draw, matrix, random_losses
from .test_gramian_methods import matrices

double = torch.float64
CASES = 200


def update(balancer: EPO, losses: Tensor, gramian: Tensor) -> tuple[Tensor, float]:
    """Return the weights of a step, ``(T,)``, and the non-uniformity."""
    balancer.fit(losses)
    result = balancer.update(Read(losses, torch.ones_like(losses), gramian=gramian), balancer.state())
    assert result.weights is not None
    return result.weights, result.statistics["non_uniformity"].item()


class Program(NamedTuple):
    """A linear program as the paper and the official code have it: maximise ``objective``, ``rows @ x >= bounds``."""

    balances: bool
    objective: np.ndarray
    rows: np.ndarray
    bounds: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """The largest coefficient of each constraint."""
        return np.abs(self.rows).max(1)

    @property
    def optimum(self) -> float:
        """The largest value; NaN if there is no solution."""
        kept, size = (self.bounds > -np.inf) & (self.sizes > 0), np.abs(self.objective).max()
        rows, bounds, sizes = self.rows[kept], self.bounds[kept], self.sizes[kept]
        solved = linprog(
            -self.objective / size,
            A_ub=-rows / sizes[:, None],
            b_ub=-bounds / sizes,
            A_eq=np.ones((1, len(self.objective))),
            b_eq=[1],
            options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
        )
        assert solved.status in (0, 2)
        return -solved.fun * size if solved.success else np.nan


def program(losses: np.ndarray, gramian: np.ndarray, r: np.ndarray, eps: float = 1e-4) -> Program:
    weighted = r * losses
    shares = weighted / weighted.sum()
    if np.allclose(shares, 1 / len(r), rtol=1e-14, atol=0):
        shares[:] = 1 / len(r)
    mu = (shares * np.log(len(r) * shares)).sum()
    c = gramian @ (r * (np.log(len(r) * shares) - mu))
    if mu <= eps:
        bounds = np.append(np.zeros(len(r)), min(0.0, c.max()))
        return Program(False, gramian.sum(1), np.vstack([gramian, c]), bounds)
    bounds = np.zeros(len(r))
    if (c > 0).any():
        bounds = np.where(c > 0, -np.inf, c)
        bounds[weighted == weighted.max()] = 0
    return Program(True, c, gramian, bounds)


def cases(seed: int, balanced: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield losses and preferences, each ``(T,)``, and Gramians; a case is balanced if the losses are in proportion."""
    generator = torch.Generator().manual_seed(seed)
    for rows in matrices(seed, most_tasks=8, cases=CASES):
        rows = rows[:, : 1 + len(rows) // 2] if torch.rand((), generator=generator) < 0.3 else rows
        losses, r = random_losses(len(rows), generator), random_losses(len(rows), generator)
        yield losses, (1 / losses if balanced else r), rows @ rows.T


@pytest.mark.slow
@pytest.mark.parametrize(("balanced", "eps"), [(False, 1e-4), (True, 1e-4), (False, 100.0)])
def test_solves_its_program(balanced: bool, eps: float) -> None:
    """Of losses out of balance, in balance, and near enough to balance."""
    solved = []
    for losses, r, gramian in cases(60, balanced):
        weights, mu = update(EPO(Fork(len(r)), preferences=r.tolist(), eps=eps), losses, gramian)
        expected = program(losses.numpy(), gramian.numpy(), r.numpy(), eps)
        assert (mu > eps) == expected.balances == (not balanced and eps < 1)
        solved.append(not np.isnan(expected.optimum))
        if not solved[-1]:
            torch.testing.assert_close(weights, r / r.sum())
            continue
        shares = weights.numpy()
        assert (shares >= 0).all()
        assert shares.sum() == pytest.approx(1)
        assert (expected.rows @ shares - expected.bounds >= -1e-7 * expected.sizes).all()
        tolerance = 1e-8 * np.abs(expected.objective).max()
        assert expected.objective @ shares == pytest.approx(expected.optimum, rel=0, abs=tolerance)
    assert sum(solved) > CASES / 2
    assert eps < 1 or not all(solved)


@pytest.mark.slow
def test_the_task_with_the_largest_weighted_loss_gets_no_worse() -> None:
    for losses, r, gramian in cases(61, balanced=False):
        weights, _ = update(EPO(Fork(len(r)), preferences=r.tolist()), losses, gramian)
        largest = (r * losses).argmax()
        assert gramian[largest] @ weights >= -1e-7 * gramian[largest].abs().max()


@pytest.mark.slow
def test_a_step_in_balance_lowers_all_losses() -> None:
    for losses, r, gramian in cases(62, balanced=True):
        balancer = EPO(Fork(len(r)), preferences=r.tolist())
        weights, mu = update(balancer, losses, gramian)
        assert mu == pytest.approx(0, abs=1e-12)
        assert (gramian @ weights >= -1e-6 * gramian.abs().max()).all()


def test_the_threshold_of_balance() -> None:
    losses = torch.tensor([1.0, 1.2], dtype=double)
    gramian = torch.diag(torch.tensor([4.0, 1.0], dtype=double))
    weights, mu = update(EPO(Fork(2), eps=0.0), losses, gramian)
    assert weights.tolist() == [0, 1]  # lowers the larger loss
    weights, _ = update(EPO(Fork(2), eps=2 * mu), losses, gramian)
    c = torch.tensor(program(losses.numpy(), gramian.numpy(), np.full(2, 0.5)).objective)
    assert weights[0] > 0.1  # lowers the sum of the losses, as long as the balance gets no worse
    torch.testing.assert_close(weights @ c, torch.zeros((), dtype=double), rtol=0, atol=1e-9)


class Parabolas(nn.Module):
    """Losses ``|x - e_i|^2`` of a point x, whose Pareto front is the simplex."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.linspace(1, 2, num_tasks, dtype=double))

    def losses(self) -> Tensor:
        return (self.x - torch.eye(len(self.x), dtype=double)).square().sum(1)


@pytest.mark.slow
@pytest.mark.parametrize("r", [[1.0, 1.0], [1.0, 3.0], [1.0, 1.0, 1.0], [1.0, 1.5, 2.0]])
def test_trains_to_the_point_of_the_front_with_these_proportions(r: Sequence[float]) -> None:
    net = Parabolas(len(r))
    balancer = EPO(None, wrt=net, tasks=len(r), preferences=r)
    for _ in range(400):
        net.zero_grad()
        balancer(net.losses()).backward()
        with torch.no_grad():
            net.x -= 0.05 * net.x.grad
    weighted = torch.tensor(r, dtype=double) * net.losses().detach()
    torch.testing.assert_close(weighted, weighted.mean().expand(len(r)), rtol=0.05, atol=0)
    assert abs(net.x.sum().item() - 1) < 0.05


# The edges.


def test_one_task() -> None:
    planted = Planted(1)
    balancer = EPO(None, wrt=planted.shared, tasks=1)
    gradients = draw(1, torch.Generator().manual_seed(63))
    torch.testing.assert_close(planted.step(balancer, gradients), matrix(gradients)[0])
    assert balancer.weights.tolist() == [1]


def test_equal_losses_are_in_balance() -> None:
    for rows in matrices(64, cases=20):
        weights, mu = update(EPO(Fork(len(rows))), torch.full((len(rows),), 3.0, dtype=double), rows @ rows.T)
        assert mu == pytest.approx(0, abs=1e-12)
        assert (rows @ (weights @ rows) >= -1e-6 * rows.square().sum()).all()


@pytest.mark.parametrize("num_tasks", [2, 3, 6])
def test_gradients_of_zero_give_equal_weights(num_tasks: int) -> None:
    zero = torch.zeros(num_tasks, num_tasks, dtype=double)
    for losses in (torch.ones(num_tasks, dtype=double), 1 + torch.arange(num_tasks, dtype=double)):
        weights, _ = update(EPO(Fork(num_tasks)), losses, zero)
        torch.testing.assert_close(weights, torch.full((num_tasks,), 1 / num_tasks, dtype=double))


@pytest.mark.parametrize("dtype", [torch.float32, double])
def test_a_loss_of_zero_counts_as_a_rounding_of_the_others(dtype: torch.dtype) -> None:
    """The official code has no finite weights there."""
    for rows in matrices(65, cases=40):
        losses = torch.linspace(0, 1, len(rows), dtype=dtype)
        nearly = losses.clamp_min(torch.finfo(dtype).eps * losses.sum().item())
        gramian = (rows @ rows.T).to(dtype)
        (weights, mu), (others, _) = (update(EPO(Fork(len(rows))), each, gramian) for each in (losses, nearly))
        assert weights.isfinite().all()
        assert mu > 1e-4
        torch.testing.assert_close(weights, others, rtol=0, atol=1e-4)


def test_losses_that_are_all_zero_are_in_balance() -> None:
    for rows in matrices(66, cases=20):
        ones = torch.ones(len(rows), dtype=double)
        (weights, mu), (others, _) = (update(EPO(Fork(len(rows))), each, rows @ rows.T) for each in (0 * ones, ones))
        assert mu == 0
        torch.testing.assert_close(weights, others)


def test_where_no_weights_will_do_they_follow_the_preferences() -> None:
    """Near balance, all directions that lower all losses lead away from it."""
    r = torch.tensor([1.0, 2.0, 4.0], dtype=double)
    losses = torch.tensor([2.0, 1.0, 4.0], dtype=double) / r
    rows = torch.tensor([[2.0, -2.0], [2.0, 1.0], [0.0, 2.0]], dtype=double) / r[:, None]
    assert np.isnan(program(losses.numpy(), (rows @ rows.T).numpy(), r.numpy(), eps=1.0).optimum)
    weights, _ = update(EPO(Fork(3), preferences=r.tolist(), eps=1.0), losses, rows @ rows.T)
    torch.testing.assert_close(weights, r / r.sum())


def test_a_negative_loss_leaves_the_weights_as_they_were() -> None:
    planted = Planted(3)
    balancer = EPO(None, wrt=planted.shared, tasks=3)
    generator = torch.Generator().manual_seed(68)
    planted.step(balancer, draw(3, generator), random_losses(3, generator))
    before = balancer.weights
    planted.step(balancer, draw(3, generator), torch.tensor([1.0, -1.0, 2.0], dtype=double))
    assert torch.equal(balancer.weights, before)


def test_the_tasks_given_are_balanced_among_themselves() -> None:
    planted, r = Planted(3), [1.0, 2.0, 0.5]
    balancer = EPO(None, wrt=planted.shared, tasks=["a", "b", "c"], preferences=r)
    generator = torch.Generator().manual_seed(69)
    planted.step(balancer, draw(3, generator), random_losses(3, generator))
    before, gradients, values = balancer.weights, draw(3, generator), random_losses(3, generator)
    losses = dict(zip("abc", planted.losses(gradients, values), strict=True))
    del losses["b"]
    direction = planted.backward(balancer, losses)
    rows, two = matrix(gradients)[[0, 2]], EPO(Fork(2), preferences=[r[0], r[2]])
    expected, _ = update(two, values[[0, 2]], rows @ rows.T)
    torch.testing.assert_close(balancer.weights[[0, 2]], expected)
    torch.testing.assert_close(direction, expected @ rows)
    assert balancer.weights[1] == before[1]


def test_preferences_by_name() -> None:
    balancer = EPO(Fork(2), tasks=["depth", "labels"], preferences={"labels": 2.0, "depth": 1.0})
    assert balancer.preferences == [1.0, 2.0]


@pytest.mark.parametrize(
    "options",
    [
        {"preferences": [1.0, 0.0, 1.0]},
        {"preferences": [1.0, -1.0, 1.0]},
        {"preferences": [1.0, 2.0]},
        {"preferences": math.inf},
        {"eps": -1e-4},
        {"eps": math.nan},
    ],
)
def test_wrong_input(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        EPO(Fork(3), **options)
