"""`maximise_on_simplex` reaches the optimum that SciPy's HiGHS finds, and tells which problems have no solution."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from balancers.solvers.linear_program import maximise_on_simplex

from ..slow_params import others_slow
from .gramians import gradients, no_waiting

Problem = tuple[Tensor, Tensor, Tensor]
"""The objective, ``(T,)``, the rows, ``(m, T)``, and their bounds, ``(m,)``."""

SIZES = (2, 3, 4, 5, 6, 7, 8, 9, 10)
NOT_UNIQUE = ("aligned", "rank_deficient", "rank_one", "duplicated", "zeros", "conflict", "stationary", "zero_row")


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_gramian(M: Tensor, seed: int) -> Iterator[Problem]:
    """Yield problems such as EPO's: with no bounds, with bounds of zero, and with mixed ones, some of which are off."""
    T = len(M)
    c = M @ randn(T, seed=seed)
    yield c, M, torch.full((T,), -torch.inf, dtype=torch.float64)
    yield M.sum(0), M, torch.zeros(T, dtype=torch.float64)
    yield (
        M.sum(0),
        torch.cat([M, c[None]]),
        torch.cat([torch.zeros(T, dtype=torch.float64), c[None].amax(1).clamp(max=0)]),
    )
    bounds = torch.where(c > 0, -torch.inf, c)
    bounds[seed % T] = 0
    yield c, M, bounds


def problems(num_tasks: int, seeds: int = 2) -> Iterator[tuple[str, Problem]]:
    """Yield problems of Gramians of every kind of difficulty, and of rows that are no Gramian, with their names."""
    for seed in range(seeds):
        for name, G in gradients(num_tasks, seed).items():
            for problem in of_gramian(G @ G.T, seed):
                yield name, problem
        for m in (1, num_tasks, 3 * num_tasks):
            rows, objective = randn(m, num_tasks, seed=seed), randn(num_tasks, seed=seed + 100)
            yield "any rows", (objective, rows, 0.5 * randn(m, seed=seed + 200) - 1)
            whole = randn(m, num_tasks, seed=seed).round()
            yield "whole numbers", (objective.round(), whole, torch.zeros(m, dtype=torch.float64))


def scaled(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Return the objective, with a range of 1, and rows of size 1 that have to be zero or more."""
    c, rows, bounds = (each.double().numpy() for each in problem)
    rows, bounds = rows[bounds > -np.inf], bounds[bounds > -np.inf]
    rows = rows - bounds[:, None]
    sizes = np.abs(rows).max(1, initial=0, keepdims=True)
    return (c - c.max()) / max(np.ptp(c), 1e-300), rows / np.where(sizes > 0, sizes, 1)


def optimum(problem: Problem, slack: float = 0.0) -> float | None:
    """Return the largest value of the scaled objective, where rows may lack ``slack``; NaN if there is no solution.

    None: the problem is too close to one without a solution for HiGHS.
    """
    c, rows = scaled(problem)
    solved = linprog(
        -c,
        A_ub=-rows,
        b_ub=np.full(len(rows), slack),
        A_eq=np.ones((1, len(c))),
        b_eq=[1],
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    assert solved.status in (0, 2, 4)
    return None if solved.status == 4 else -solved.fun if solved.success else np.nan


def assert_solved(name: str, problem: Problem, weights: Tensor, feasible: Tensor) -> bool:
    """Check a solution; return whether there is one. Near the border, within 1e-6, that is up to the solver."""
    least, most = optimum(problem), optimum(problem, slack=1e-6)
    unknown, most = least is None or np.isnan(least), np.inf if most is None else most
    assert feasible or unknown, name
    assert not (feasible and np.isnan(most)), name
    if feasible:
        c, rows = scaled(problem)
        shares = weights.numpy()
        assert (shares >= 0).all()
        assert shares.sum() == pytest.approx(1, abs=1e-12)
        assert (rows @ shares).min(initial=0) >= -1.01e-7, name
        assert c @ shares <= most + 1e-8, name
        assert unknown or c @ shares >= least - 1e-8, name
    return bool(feasible)


@pytest.mark.slow
@pytest.mark.parametrize("num_tasks", SIZES)
def test_reaches_the_optimum(num_tasks: int) -> None:
    solved = [assert_solved(name, problem, *maximise_on_simplex(*problem)) for name, problem in problems(num_tasks)]
    assert any(solved)
    assert not all(solved)


@pytest.mark.parametrize("num_tasks", SIZES)
def test_the_optimum_of_a_random_problem_is_scipys(num_tasks: int) -> None:
    for name, problem in problems(num_tasks):
        expected = optimum(problem) if name in ("random", "any rows") else np.nan
        assert expected is not None
        if not np.isnan(expected):
            weights, _ = maximise_on_simplex(*problem)
            c, rows = scaled(problem)
            assert c @ weights.numpy() == pytest.approx(expected, rel=0, abs=1e-8)
            assert (rows @ weights.numpy()).min(initial=0) >= -1e-9


@pytest.mark.slow
@pytest.mark.parametrize("num_tasks", [2, 3, 4, 6, 10, 40, 100])
def test_reaches_the_optimum_of_many_problems(num_tasks: int) -> None:
    for name, problem in problems(num_tasks, seeds=4 if num_tasks > 10 else 60):
        assert_solved(name, problem, *maximise_on_simplex(*problem))


def test_one_task() -> None:
    one = torch.ones(1, dtype=torch.float64)
    for bound, feasible in ((-torch.inf, True), (0.0, True), (2.0, True), (3.0, False)):
        weights, found = maximise_on_simplex(-one, 2 * one[None], bound * one)
        assert weights.tolist() == [1]
        assert found.item() == feasible


def test_all_weights_are_equal_where_nothing_tells_them_apart() -> None:
    for num_tasks in (1, *SIZES):
        zeros = torch.zeros(num_tasks, dtype=torch.float64)
        weights, feasible = maximise_on_simplex(zeros, zeros.expand(3, num_tasks), torch.zeros(3, dtype=torch.float64))
        assert feasible
        torch.testing.assert_close(weights, torch.full_like(zeros, 1 / num_tasks))


def test_equal_tasks_get_equal_weights() -> None:
    for num_tasks in (4, 6, 10):
        G = gradients(num_tasks)["duplicated"]
        weights, feasible = maximise_on_simplex((G @ G.T).sum(0), G @ G.T, torch.zeros(num_tasks, dtype=torch.float64))
        assert feasible
        torch.testing.assert_close(weights[::2], weights[1::2], rtol=0, atol=1e-6)


def test_gradients_that_cancel_leave_one_point() -> None:
    """Weights under which no task's loss rises are those of the zero combination alone."""
    for num_tasks in (2, 3, 5, 8):
        shares = torch.linspace(1, 2, num_tasks, dtype=torch.float64)
        shares /= shares.sum()
        G = randn(num_tasks, 3 * num_tasks, seed=num_tasks)
        G -= (shares @ G / shares.square().sum()) * shares[:, None]  # so that shares @ G = 0
        weights, feasible = maximise_on_simplex(
            randn(num_tasks, seed=1), G @ G.T, torch.zeros(num_tasks, dtype=torch.float64)
        )
        assert feasible
        torch.testing.assert_close(weights, shares, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_tasks", others_slow([2, 3, 10], 2, 3))
def test_scales_are_of_no_consequence(num_tasks: int) -> None:
    for name, (c, rows, bounds) in problems(num_tasks, seeds=1):
        weights, feasible = maximise_on_simplex(c, rows, bounds)
        sizes = torch.logspace(-20, 20, len(rows), dtype=torch.float64)
        others = maximise_on_simplex(1e-30 * c + 1e-30, rows * sizes[:, None], bounds * sizes)
        assert feasible == others[1]
        if feasible and name not in NOT_UNIQUE:
            torch.testing.assert_close(others[0], weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_tasks", others_slow([2, 3, 5, 10], 2, 3))
def test_order_of_tasks_and_rows_is_of_no_consequence(num_tasks: int) -> None:
    order = torch.randperm(num_tasks, generator=torch.Generator().manual_seed(num_tasks))
    for name, (c, rows, bounds) in problems(num_tasks, seeds=1):
        weights, feasible = maximise_on_simplex(c, rows, bounds)
        permuted, also = maximise_on_simplex(c[order], rows[:, order].flip(0), bounds.flip(0))
        assert feasible == also
        if feasible and name not in NOT_UNIQUE:
            torch.testing.assert_close(permuted, weights[order], rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 6])
def test_batch_is_the_same_as_a_loop(num_tasks: int) -> None:
    each = [problem for _, problem in problems(num_tasks, seeds=1) if problem[1].shape[0] == num_tasks][:12]
    stacked = [torch.stack(parts).unflatten(0, (3, -1)) for parts in zip(*each, strict=True)]
    weights, feasible = maximise_on_simplex(*stacked)
    assert weights.shape == (3, len(each) // 3, num_tasks)
    for found, also, problem in zip(weights.flatten(0, 1), feasible.flatten(), each, strict=True):
        alone, feasible_alone = maximise_on_simplex(*problem)
        assert also == feasible_alone
        if also:
            torch.testing.assert_close(found, alone, rtol=0, atol=1e-6)


def test_weights_have_the_objectives_type() -> None:
    for num_tasks in (1, 2, 3):
        problem = next(problem for _, problem in problems(num_tasks, seeds=1))
        weights, feasible = maximise_on_simplex(*(each.float() for each in problem))
        assert (weights.dtype, feasible.dtype) == (torch.float32, torch.bool)
        torch.testing.assert_close(weights, maximise_on_simplex(*problem)[0].float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 10])
def test_numbers_that_are_not_finite_have_no_solution(num_tasks: int) -> None:
    for part in (1, 2):
        problem = [each.clone() for each in next(of_gramian(torch.eye(num_tasks, dtype=torch.float64), 0))]
        problem[2].zero_()
        problem[part].view(-1)[0] = torch.nan
        assert not maximise_on_simplex(*problem)[1]


@pytest.mark.parametrize("num_tasks", others_slow([1, 2, 3, 10], 1, 2, 3))
def test_waits_for_nothing(num_tasks: int) -> None:
    found = list(problems(num_tasks, seeds=1))
    with no_waiting():
        for _, problem in found:
            maximise_on_simplex(*problem)


@pytest.mark.parametrize("num_tasks", [1, 2, 3])
def test_meta_tensors(num_tasks: int) -> None:
    c, rows = torch.empty(4, num_tasks, device="meta"), torch.empty(4, 5, num_tasks, device="meta")
    weights, feasible = maximise_on_simplex(c, rows, rows[..., 0])
    assert weights.shape == (4, num_tasks)
    assert feasible.shape == (4,)


def test_the_arguments_are_not_changed() -> None:
    for num_tasks in (1, 2, 3):
        for _, problem in problems(num_tasks, seeds=1):
            before = [each.clone() for each in problem]
            maximise_on_simplex(*problem)[0].zero_()
            assert all(map(torch.equal, problem, before))
