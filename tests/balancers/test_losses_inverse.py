"""Inverse initial losses, against the means of the first losses."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from balancers.inverse_loss import InverseInitialLoss

from .loss_rows import run
from .planted import state

double = torch.float64


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=double)


def sequence(num_tasks: int, seed: int, steps: int = 12) -> Tensor:
    """Draw positive losses, ``(steps, T)``, that are some orders of magnitude apart."""
    generator = torch.Generator().manual_seed(seed)
    scales = 3 * torch.randn(num_tasks, dtype=double, generator=generator)
    return torch.exp(scales + 0.5 * torch.randn(steps, num_tasks, dtype=double, generator=generator))


def step(balancer: InverseInitialLoss, **losses: float) -> Tensor:
    """Train one step on the losses of some tasks, and return all weights."""
    balancer({task: torch.tensor(loss, dtype=double, requires_grad=True) for task, loss in losses.items()}).backward()
    return balancer.weights


def test_two_steps_by_hand() -> None:
    weights = run(InverseInitialLoss(2, first_steps=2), doubles(1, 4, 3, 4, 1000, 0.001).view(3, 2))
    torch.testing.assert_close(weights, doubles(8 / 5, 2 / 5, 4 / 3, 2 / 3, 4 / 3, 2 / 3).view(3, 2))


@pytest.mark.parametrize("first_steps", [1, 4, 20])
def test_each_first_step_uses_the_means_so_far(first_steps: int) -> None:
    for seed in range(10):
        losses = sequence(1 + seed % 4, seed)
        weights = run(InverseInitialLoss(losses.shape[1], first_steps=first_steps), losses)
        for t, found in enumerate(weights):
            inverses = 1 / losses[: min(t + 1, first_steps)].mean(0)
            torch.testing.assert_close(found, len(inverses) * inverses / inverses.sum(), rtol=1e-10, atol=0)


def test_weights_settle_to_the_bit() -> None:
    balancer = InverseInitialLoss(3, first_steps=4)
    losses = sequence(3, seed=1)
    weights = run(balancer, losses[:3])
    assert not balancer.settled(balancer.state())
    weights = run(balancer, losses[3:4])
    assert balancer.settled(balancer.state())
    before = state(balancer)
    assert run(balancer, losses[4:]).eq(weights).all()
    assert all(value.equal(before[key]) for key, value in state(balancer).items())


def test_by_default_the_means_are_over_twenty_steps() -> None:
    weights = run(InverseInitialLoss(2), sequence(2, seed=2, steps=25))
    assert weights[18].ne(weights[19]).any()
    assert weights[19:].eq(weights[19]).all()


def test_a_losss_scale_cancels_out() -> None:
    losses, scales = sequence(3, seed=3), doubles(1e-3, 1.0, 1e3)
    plain, scaled = (run(InverseInitialLoss(3, first_steps=4), each) for each in (losses, losses * scales))
    products = plain / scales
    torch.testing.assert_close(scaled, 3 * products / products.sum(1, keepdim=True))


@pytest.mark.parametrize("saved_at", [2, 6])
def test_goes_on_from_a_saved_state(saved_at: int) -> None:
    losses = sequence(3, seed=4)
    whole, loaded = InverseInitialLoss(3, first_steps=4), InverseInitialLoss(3, first_steps=4)
    first = run(whole, losses[:saved_at])
    loaded.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert loaded.weights.equal(first[-1])
    assert run(loaded, losses[saved_at:]).equal(run(whole, losses[saved_at:]))


@pytest.mark.parametrize("bad", [0.0, -2.0])
def test_a_task_whose_mean_is_not_positive_keeps_its_weight(bad: float) -> None:
    balancer = InverseInitialLoss(["a", "b", "c"], first_steps=3)
    torch.testing.assert_close(step(balancer, a=1.0, b=bad, c=3.0), doubles(1.5, 1.0, 0.5))
    torch.testing.assert_close(step(balancer, a=1.0, b=bad, c=1.0), doubles(4 / 3, 1.0, 2 / 3))
    last = step(balancer, a=1.0, b=3 - 2 * bad, c=2.0)  # the means are 1, 1 and 2
    torch.testing.assert_close(last, doubles(1.2, 1.2, 0.6))
    assert step(balancer, a=1.0, b=bad, c=1.0).equal(last)


def test_losses_that_are_all_zero_keep_the_weights() -> None:
    assert run(InverseInitialLoss(2, first_steps=2), torch.zeros(4, 2, dtype=double)).eq(1).all()


def test_tiny_losses_give_finite_weights() -> None:
    balancer = InverseInitialLoss(2, first_steps=1)
    losses = torch.tensor([1e-40, 2e-40], requires_grad=True)  # one over them is infinite in single precision
    balancer(losses).backward()
    torch.testing.assert_close(balancer.weights, torch.tensor([4 / 3, 2 / 3]), rtol=1e-4, atol=0)


def test_a_task_without_a_loss_keeps_its_weight_and_its_mean() -> None:
    balancer = InverseInitialLoss(["a", "b", "c"], first_steps=2)
    torch.testing.assert_close(step(balancer, a=1.0, b=3.0), doubles(1.5, 0.5, 1.0))
    torch.testing.assert_close(step(balancer, a=3.0, b=3.0), doubles(1.2, 0.8, 1.0))
    assert balancer.counts.tolist() == [2, 2, 0]
    later = step(balancer, a=100.0, b=100.0, c=6.0)  # the means are 2, 3 and 6
    torch.testing.assert_close(later, doubles(1.5, 1.0, 0.5))
    assert step(balancer, a=1.0, b=2.0).equal(later)
    torch.testing.assert_close(step(balancer, a=1.0, b=1.0, c=0.0), doubles(1.0, 2 / 3, 2 / 3) * 9 / 7)
    assert balancer.settled(balancer.state())


def test_a_step_of_one_task_changes_no_weight_but_a_window_of_all_does() -> None:
    alone, together = (InverseInitialLoss(["a", "b"], first_steps=1, accumulate=k) for k in (1, 2))
    for balancer in (alone, together):
        for losses in ({"a": 1.0}, {"b": 4.0}):
            assert step(balancer, **losses).tolist() == [1, 1]
    assert step(alone, a=1.0, b=1.0).tolist() == [1, 1]
    torch.testing.assert_close(step(together, a=1.0, b=1.0), doubles(1.6, 0.4))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_leaves_no_trace(bad: float) -> None:
    balancer = InverseInitialLoss(["a", "b"], first_steps=3)
    step(balancer, a=1.0, b=2.0)
    before = state(balancer)
    step(balancer, a=1.0, b=bad)
    assert all(value.equal(before[key]) for key, value in state(balancer).items())
    torch.testing.assert_close(step(balancer, a=1.0, b=4.0), doubles(1.5, 0.5))


@pytest.mark.parametrize("options", [{"first_steps": 0}, {"first_steps": -1}, {"first_steps": 1.5}], ids=str)
def test_wrong_first_steps(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="first_steps is"):
        InverseInitialLoss(2, **options)
