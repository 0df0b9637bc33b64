"""PCD keeps what its paper states of it, and agrees with TorchJD 0.18.

Deliberate differences: each task's steps are counted by themselves (`test_a_task_left_out_keeps_its_average`), and a
step without the primary task changes nothing.
"""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from balancers import Fork, Read
from balancers.pcd import PCD

from .planted import Planted, draw, matrix, state
from .test_gramian_methods import CASES, matrices

double = torch.float64


def make(num_tasks: int, **options: Any) -> tuple[Planted, PCD]:
    planted = Planted(num_tasks)
    return planted, PCD(None, wrt=planted.shared, tasks=num_tasks, **options)


def weights_of(rows: Tensor, **options: Any) -> Tensor:
    """Return the weights of a first step, ``(T,)``, for gradients ``(T, n)``."""
    balancer, ones = PCD(Fork(len(rows)), **options), torch.ones(len(rows), dtype=rows.dtype)
    balancer.fit(ones)
    weights = balancer.update(Read(ones, ones, gramian=rows @ rows.T), balancer.state()).weights
    assert weights is not None
    return weights


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


@pytest.mark.slow
@pytest.mark.parametrize("tau", [0.0, 0.02, 0.5, 1.0])
def test_every_task_makes_its_share_of_progress(tau: float) -> None:
    """In a first step, gradients are divided by their norms."""
    conflicts = 0
    for rows in matrices(40):
        weights = weights_of(rows, tau=tau, eps=0.0)
        direction = weights @ rows
        torch.testing.assert_close(direction.norm(), rows[0].norm())
        gains = unit(rows)[1:] @ direction / (weights[0] * rows[0].norm())  # before it was scaled to this norm
        assert (gains >= tau - 1e-6).all()
        assert (weights >= 0).all()
        conflicts += int((weights[1:] > 1e-6).any())
    assert conflicts > CASES / 4


def test_no_direction_with_that_progress_is_nearer_to_the_primary_gradient() -> None:
    """Each other task that has weight makes no more progress than it must, so that its weight can't be smaller."""
    for rows in matrices(41):
        weights = weights_of(rows, tau=0.1, eps=0.0)
        multipliers = weights * rows.norm(dim=1) / (weights[0] * rows[0].norm())
        gains = unit(rows) @ (multipliers @ unit(rows))
        assert (multipliers * (gains - 0.1))[1:].abs().max() < 1e-5 * (1 + multipliers.max())


def test_without_a_conflict_the_primary_task_is_followed_alone() -> None:
    for rows in matrices(42):
        weights = weights_of(rows.abs() + 1, tau=0.02)
        expected = torch.zeros(len(rows), dtype=double).index_fill(0, torch.tensor([0]), 1.0)
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-8)


def test_two_tasks() -> None:
    for rows in matrices(43, most_tasks=2):
        first, second = unit(rows)
        direction = first + max(0.0, (0.1 - first @ second).item()) * second
        expected = rows[0].norm() * unit(direction)
        torch.testing.assert_close(weights_of(rows, tau=0.1, eps=0.0) @ rows, expected)


def test_the_scale_of_another_tasks_loss_cancels_out() -> None:
    scales = torch.tensor([1.0, 1e-3, 1e4], dtype=double)
    generator = torch.Generator().manual_seed(44)
    (one, plain), (other, scaled) = make(3, eps=0.0), make(3, eps=0.0)
    for _ in range(20):
        gradients = draw(3, generator)
        direction = one.step(plain, gradients)
        larger = [g * scales.view(-1, *[1] * (g.ndim - 1)) for g in gradients]
        torch.testing.assert_close(other.step(scaled, larger), direction)


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 5])
def test_a_primary_gradient_of_zero_gives_zero(num_tasks: int) -> None:
    planted, balancer = make(num_tasks)
    generator = torch.Generator().manual_seed(45)
    planted.step(balancer, draw(num_tasks, generator))
    gradients = draw(num_tasks, generator)
    for gradient in gradients:
        gradient[0] = 0
    before = state(balancer)["square_norms"]
    assert not planted.step(balancer, gradients).any()
    assert not balancer.weights.any()
    assert (balancer.square_norms != before).all()
    assert planted.step(balancer, draw(num_tasks, generator)).any()


def test_all_gradients_of_zero_give_zero() -> None:
    for num_tasks in (1, 2, 4):
        for eps in (0.0, 1e-8):
            assert not weights_of(torch.zeros(num_tasks, 5, dtype=double), eps=eps).any()


@pytest.mark.slow
def test_a_secondary_gradient_of_zero_changes_nothing() -> None:
    for rows in matrices(46, most_tasks=5):
        with_zero = torch.cat([rows, torch.zeros_like(rows[:1])])
        for eps in (0.0, 1e-8):
            weights = weights_of(with_zero, eps=eps)
            torch.testing.assert_close(weights[:-1] @ rows, weights_of(rows, eps=eps) @ rows, rtol=1e-6, atol=1e-6)
            assert weights[-1] == 0


@pytest.mark.parametrize("dtype", [torch.float32, double])
def test_tasks_that_exclude_each_other_leave_the_primary_task_alone(dtype: torch.dtype) -> None:
    for rows in matrices(47):
        if len(rows) > 2:
            rows[-1] = -3 * rows[-2]
            weights = weights_of(rows.to(dtype))
            assert weights[0] == pytest.approx(1)
            assert not weights[1:].any()


def test_two_tasks_that_oppose_each_other() -> None:
    """Without a share for the other task, no direction is left; with one, it is the other's."""
    rows = torch.tensor([[2.0, 0.0], [-1.0, 0.0]], dtype=double)
    assert not weights_of(rows, tau=0.0).any()
    torch.testing.assert_close(weights_of(rows, tau=0.1) @ rows, -rows[0])


def test_one_task() -> None:
    planted, balancer = make(1)
    gradients = draw(1, torch.Generator().manual_seed(48))
    torch.testing.assert_close(planted.step(balancer, gradients), matrix(gradients)[0])
    torch.testing.assert_close(balancer.weights, torch.ones(1, dtype=double))


def test_heads_are_trained_on_the_losses_as_they_are() -> None:
    planted, balancer = make(3)
    planted.step(balancer, draw(3, torch.Generator().manual_seed(49)))
    torch.testing.assert_close(torch.stack([head.grad for head in planted.heads]), balancer.weights)
    assert balancer.heads == "plain"


# Tasks that are left out.


def named(primary: int | str = 0) -> tuple[Planted, PCD]:
    planted = Planted(3)
    return planted, PCD(None, wrt=planted.shared, tasks=["a", "b", "c"], primary=primary)


def step_of(planted: Planted, balancer: PCD, gradients: Sequence[Tensor], tasks: str) -> Tensor:
    losses = dict(zip("abc", planted.losses(gradients, torch.ones(3)), strict=True))
    return planted.backward(balancer, {task: losses[task] for task in tasks})


@pytest.mark.parametrize("primary", ["b", 1])
def test_a_step_without_the_primary_task_changes_nothing(primary: int | str) -> None:
    planted, balancer = named(primary)
    generator = torch.Generator().manual_seed(50)
    step_of(planted, balancer, draw(3, generator), "abc")
    before, gradients = state(balancer), draw(3, generator)
    direction = step_of(planted, balancer, gradients, "ac")
    assert all(torch.equal(value, before[key]) for key, value in state(balancer).items() if key != "_extra_state")
    torch.testing.assert_close(direction, balancer.weights[[0, 2]] @ matrix(gradients)[[0, 2]])


def test_a_task_left_out_keeps_its_average() -> None:
    """Its average is that of the steps in which it took part, as if there had been no others."""
    (planted, balancer), (few, alone) = named("b"), make(2, primary=0)
    generator = torch.Generator().manual_seed(51)
    for tasks in ("abc", "bc", "bc", "abc", "bc"):
        gradients = draw(3, generator)
        before = balancer.weights
        direction = step_of(planted, balancer, gradients, tasks)
        expected = few.step(alone, [gradient[1:] for gradient in gradients])
        if tasks == "bc":
            torch.testing.assert_close(direction, expected)
            torch.testing.assert_close(balancer.weights[1:], alone.weights)
            assert balancer.weights[0] == before[0]
        torch.testing.assert_close(balancer.square_norms[1:], alone.square_norms)
    assert balancer.steps.tolist() == [2, 5, 5]


# TorchJD.


def torchjd(**options: Any) -> Any:
    return pytest.importorskip("torchjd.aggregation").PCDWeighting(**options)


@pytest.mark.slow
@pytest.mark.parametrize("tau", [0.0, 0.02, 0.3, 1.0])
def test_first_steps_against_torchjd(tau: float) -> None:
    for rows in matrices(52):
        expected = torchjd(tau=tau)(rows @ rows.T) @ rows
        torch.testing.assert_close(weights_of(rows, tau=tau) @ rows, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("primary", [0, 1])
@pytest.mark.parametrize("options", [{}, {"tau": 0.3, "beta": 0.9, "eps": 1e-2}, {"beta": 0.0}])
@pytest.mark.parametrize("num_tasks", [2, 3, 5])
def test_a_sequence_against_torchjd(num_tasks: int, options: dict[str, float], primary: int) -> None:
    theirs, order = torchjd(**options), [primary, *(i for i in range(num_tasks) if i != primary)]
    planted, balancer = make(num_tasks, primary=primary, **options)
    generator = torch.Generator().manual_seed(53)
    infeasible = 0
    for t in range(200):
        gradients = draw(num_tasks, generator)
        if t % 7 == 3:
            for gradient in gradients:
                gradient[order[-1]] = -2 * gradient[order[-2]]
        rows = matrix(gradients)
        direction = planted.step(balancer, gradients)
        expected = theirs(rows[order] @ rows[order].T)
        infeasible += int((expected[1:] == 0).all() and num_tasks > 2)
        torch.testing.assert_close(balancer.weights[order], expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(direction, expected @ rows[order], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(balancer.square_norms[order], theirs._sq_norm_ema)
    assert infeasible >= 28 or num_tasks == 2


@pytest.mark.slow
def test_in_single_precision_against_torchjd() -> None:
    for rows in matrices(54):
        found = weights_of(rows.float(), tau=0.1) @ rows.float()
        expected = torchjd(tau=0.1)(rows.float() @ rows.float().T) @ rows.float()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * rows[0].norm().item())


@pytest.mark.parametrize(
    "options",
    [
        {"tau": -0.1},
        {"tau": 1.1},
        {"beta": 1.0},
        {"beta": -0.1},
        {"eps": -1e-8},
        {"eps": math.nan},
        {"primary": 3},
        {"primary": -1},
        {"primary": "penalty"},
    ],
)
def test_wrong_input(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        make(3, **options)
