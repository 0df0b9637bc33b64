"""Tchebycheff scalarizations, against autograd on their objectives; the smooth one also against TorchJD.

Differences from TorchJD: mu has a default; ``ideal`` may be one number for all tasks, or a dict by name.
"""

import math

import pytest
import torch

from balancers.smooth_tchebycheff import SmoothTchebycheff
from balancers.tchebycheff import Tchebycheff


def draw(num_tasks: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw losses, preferences, and an ideal point."""
    generator = torch.Generator().manual_seed(seed)
    losses, preferences, ideal = torch.rand(3, num_tasks, dtype=torch.float64, generator=generator)
    return 3 * losses, preferences, ideal - 0.5


def differentiated(objective, losses: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(objective(leaf := losses.clone().requires_grad_()), leaf)[0]


def weights_of(balancer: Tchebycheff, losses: torch.Tensor) -> torch.Tensor:
    leaf = losses.clone().requires_grad_()
    balancer(leaf).backward()
    assert torch.equal(leaf.grad, balancer.weights)
    return balancer.weights


def test_the_gradient_is_that_of_the_maximum():
    for seed in range(50):
        losses, preferences, ideal = draw(2 + seed % 4, seed)
        balancer = Tchebycheff(len(losses), preferences=preferences.tolist(), ideal=ideal.tolist())
        expected = differentiated(lambda x, p=preferences, z=ideal: (p * (x - z)).max(), losses)
        torch.testing.assert_close(weights_of(balancer, losses), expected)


def test_the_gradient_is_that_of_the_soft_maximum():
    for seed in range(50):
        losses, preferences, ideal = draw(2 + seed % 4, seed)
        mu = 0.05 * (1 + seed % 7)
        balancer = SmoothTchebycheff(len(losses), mu=mu, preferences=preferences.tolist(), ideal=ideal.tolist())
        expected = differentiated(
            lambda x, p=preferences, z=ideal, mu=mu: mu * torch.exp(p * (x - z) / mu).sum().log(), losses
        )
        torch.testing.assert_close(weights_of(balancer, losses), expected)


def test_like_torchjd():
    scalarization = pytest.importorskip("torchjd.scalarization")
    for seed in range(250):
        losses, preferences, ideal = draw(2 + seed % 6, seed)
        mu = [0.01, 0.1, 0.5, 1.0][seed % 4]
        if seed % 3:
            theirs = scalarization.STCH(mu, weights=preferences, reference=ideal)
            ours = SmoothTchebycheff(len(losses), mu=mu, preferences=preferences.tolist(), ideal=ideal.tolist())
        else:
            theirs, ours = scalarization.STCH(mu), SmoothTchebycheff(len(losses), mu=mu)
        torch.testing.assert_close(weights_of(ours, losses), differentiated(theirs, losses), rtol=1e-4, atol=1e-8)


def test_several_worst_share_the_weight():
    assert weights_of(Tchebycheff(4), torch.tensor([2.0, 1.0, 2.0, 0.0])).tolist() == [0.125, 0, 0.125, 0]


def test_smooth_is_between_the_two():
    losses = torch.tensor([1.0, 0.9, 0.2], dtype=torch.float64)
    hard = weights_of(SmoothTchebycheff(3, mu=1e-4), losses)
    torch.testing.assert_close(hard, weights_of(Tchebycheff(3), losses))
    soft = weights_of(SmoothTchebycheff(3, mu=1e4), losses)
    torch.testing.assert_close(soft, torch.full((3,), 1 / 9, dtype=torch.float64), rtol=1e-4, atol=0)


def test_large_losses_do_not_overflow():
    losses = torch.tensor([1e30, 1.0], dtype=torch.float32)
    assert weights_of(SmoothTchebycheff(2, mu=0.01), losses).tolist() == [0.5, 0]


def test_many_rows_at_once():
    losses = torch.rand(5, 2, 3)
    for balancer in (Tchebycheff(3), SmoothTchebycheff(3)):
        state = balancer.state()
        expected = torch.stack([torch.stack([balancer.weigh(row, state) for row in rows]) for rows in losses])
        torch.testing.assert_close(balancer.weigh(losses, state), expected)


@pytest.mark.parametrize("cls", [Tchebycheff, SmoothTchebycheff])
def test_the_state_is_the_last_weights_alone(cls):
    assert set(cls(["a", "b"]).state_dict()) == {"last_weights", "_extra_state"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preferences": [1.0]}, "preferences has 1 entry"),
        ({"preferences": [0.0, 0.0]}, "preferences is"),
        ({"preferences": [-1.0, 2.0]}, "preferences is"),
        ({"preferences": {"a": 1.0}}, "preferences names"),
        ({"ideal": math.nan}, "ideal is"),
        ({"ideal": [1.0, 2.0, 3.0]}, "ideal has 3 entries"),
    ],
)
@pytest.mark.parametrize("cls", [Tchebycheff, SmoothTchebycheff])
def test_wrong_input(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(["a", "b"], **options)


@pytest.mark.parametrize("mu", [0.0, -1.0, math.inf, math.nan])
def test_wrong_mu(mu: float):
    with pytest.raises(ValueError, match="mu is"):
        SmoothTchebycheff(2, mu=mu)


def test_by_name():
    balancer = SmoothTchebycheff(["a", "b"], preferences={"b": 1.0, "a": 3.0}, ideal={"a": 0.5, "b": 0.25})
    state = balancer.state()
    assert state["preferences"].tolist() == [3, 1]
    assert state["ideal"].tolist() == [0.5, 0.25]
