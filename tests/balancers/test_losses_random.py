"""RLW and ReLoBRaLo, against their formulas with the same random numbers; RLW also against TorchJD.

Differences from TorchJD: RLW draws random numbers of its own, once per training step.
"""

import math

import numpy as np
import pytest
import torch

from balancers import Draws
from balancers.random_loss import RandomLossWeighting
from balancers.relobralo import ReLoBRaLo


def sequence(num_tasks: int, seed: int, steps: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.exp(2 * torch.randn(num_tasks, dtype=torch.float64, generator=generator))
    return scales * torch.exp(0.5 * torch.randn(steps, num_tasks, dtype=torch.float64, generator=generator))


def draws(seed: int, update: int) -> Draws:
    """Return the random numbers of a balancer's update, counted from 0, in float64."""
    return Draws(seed, update, torch.zeros((), dtype=torch.float64))


def run(balancer, losses: torch.Tensor) -> torch.Tensor:
    weights = []
    for row in losses:
        balancer(row.clone().requires_grad_()).backward()
        weights.append(balancer.weights)
    return torch.stack(weights)


def test_rlw_like_torchjd(monkeypatch: pytest.MonkeyPatch):
    """Each update's numbers give the next step's weights."""
    scalarization = pytest.importorskip("torchjd.scalarization")
    for seed in range(200):
        losses = sequence(1 + seed % 5, seed, steps=4)
        found = run(RandomLossWeighting(losses.shape[1], seed=seed), losses)
        for update, (row, weights) in enumerate(zip(losses[1:], found[1:], strict=True)):
            drawn = draws(seed, update).normal(len(row))
            with monkeypatch.context() as patch:
                patch.setattr(torch, "randn", lambda *_, drawn=drawn, **__: drawn)
                [expected] = torch.autograd.grad(scalarization.Random()(leaf := row.clone().requires_grad_()), leaf)
            torch.testing.assert_close(weights, expected, rtol=1e-4, atol=0)


def test_rlw_draws_new_weights_for_each_step():
    weights = run(RandomLossWeighting(3, seed=1), torch.ones(50, 3, dtype=torch.float64))
    assert len(weights.unique(dim=0)) == 50


@pytest.mark.slow
def test_rlw_is_a_softmax_of_standard_normals():
    weights = run(RandomLossWeighting(3, seed=1), torch.ones(4000, 3, dtype=torch.float64))
    torch.testing.assert_close(weights.sum(1), torch.ones(4000, dtype=torch.float64))
    differences = (weights[:, 0] / weights[:, 1]).log()
    assert abs(differences.mean()) < 0.1
    assert abs(differences.var() - 2) < 0.2


def test_rlw_draws_nothing_between_steps():
    losses = sequence(3, 2, steps=6)
    quiet, watched = RandomLossWeighting(3, seed=2), RandomLossWeighting(3, seed=2)
    expected = run(quiet, losses)
    for row, weights in zip(losses, expected, strict=True):
        watched.eval()
        watched(row)
        watched.train()
        watched(row.clone().requires_grad_()).backward()
        assert torch.equal(watched.weights, weights)


@pytest.mark.parametrize("present", [1, 2])
def test_rlw_draws_for_all_tasks_whichever_have_a_loss(present: int):
    """Its weights are those of a balancer that sees all losses: they do not depend on them."""
    tasks, losses = ["a", "b", "c"], sequence(3, 7, steps=12)
    expected = run(RandomLossWeighting(tasks, seed=3), losses)
    balancer = RandomLossWeighting(tasks, seed=3)
    for step, row in enumerate(losses):
        given = [(step + k) % 3 for k in range(present)]
        balancer({tasks[i]: row[i].clone().requires_grad_() for i in given}).backward()
        assert torch.equal(balancer.weights, expected[step])


def relobralo(losses: np.ndarray, alpha: float, temperature: float, rho: np.ndarray) -> np.ndarray:
    """Return the weights of each step for random numbers ``rho``, 0 or 1."""

    def balance(t: int, before: int) -> np.ndarray:
        powers = losses[t] / (temperature * losses[before])
        shares = np.exp(powers - powers.max())
        return losses.shape[1] * shares / shares.sum()

    weights = [np.ones(losses.shape[1])]
    for t in range(1, len(losses)):
        history = rho[t] * weights[-1] + (1 - rho[t]) * balance(t, 0)
        weights.append(alpha * history + (1 - alpha) * balance(t, t - 1))
    return np.stack(weights)


@pytest.mark.slow
def test_relobralo_is_its_formula():
    for seed in range(50):
        losses = sequence(2 + seed % 4, seed)
        alpha, temperature, rho = [0.999, 0.7][seed % 2], [0.1, 1.0, 5.0][seed % 3], [0.0, 0.5, 0.9, 1.0][seed % 4]
        drawn = [draws(seed, update).uniform().item() < rho for update in range(len(losses))]
        balancer = ReLoBRaLo(losses.shape[1], alpha=alpha, temperature=temperature, rho=rho, seed=seed)
        expected = relobralo(losses.numpy(), alpha, temperature, np.array([1, *drawn], dtype=float))
        np.testing.assert_allclose(run(balancer, losses).numpy(), expected, rtol=1e-9)


def test_relobralo_keeps_the_sum_and_no_scale():
    losses, scales = sequence(3, 4), torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)
    weights = run(ReLoBRaLo(3, alpha=0.9, rho=0.5), losses)
    torch.testing.assert_close(weights.sum(1), torch.full((20,), 3.0, dtype=torch.float64))
    torch.testing.assert_close(run(ReLoBRaLo(3, alpha=0.9, rho=0.5), losses * scales), weights)


def test_relobralo_keeps_the_sum_where_tasks_are_left_out():
    """Those that have a loss share what the others leave, by the formula; a task alone keeps its weight."""
    tasks, losses, alpha, temperature = ["a", "b", "c"], sequence(3, 8, steps=12).numpy(), 0.6, 2.0
    given = [[0, 1, 2], [0, 1, 2], [0, 1], [0, 1], [2], [1, 2], [0], [0, 1, 2], [0, 2], [0, 1, 2]]
    balancer = ReLoBRaLo(tasks, alpha=alpha, temperature=temperature, rho=0.5, seed=4)
    expected, previous = np.ones(3), losses[0].copy()
    for step, present in enumerate(given):
        row = losses[step]
        balancer({tasks[i]: torch.tensor(row[i], requires_grad=True) for i in present}).backward()
        if step > 0:
            rho = float(draws(4, step - 1).uniform() < 0.5)
            total = 3 - sum(expected[i] for i in range(3) if i not in present)
            now, shares = row[present], []
            for before in (losses[0], previous):
                powers = np.exp(now / (temperature * before[present]))
                shares.append(total * powers / powers.sum())
            kept = rho * expected[present] + (1 - rho) * shares[0]
            expected[present] = alpha * kept + (1 - alpha) * shares[1]
            previous[present] = now
        np.testing.assert_allclose(balancer.weights.numpy(), expected, rtol=1e-9)
        np.testing.assert_allclose(balancer.weights.sum().item(), 3.0)


def test_relobralo_looks_without_learning():
    losses = sequence(2, 5, steps=6)
    quiet, watched = ReLoBRaLo(2, alpha=0.8, rho=0.5), ReLoBRaLo(2, alpha=0.8, rho=0.5)
    expected = run(quiet, losses)
    for row, weights in zip(losses, expected, strict=True):
        with torch.no_grad():
            watched(3 * row)
        watched(row.clone().requires_grad_()).backward()
        assert torch.equal(watched.weights, weights)


def test_relobralo_is_finite_for_losses_far_apart():
    balancer = ReLoBRaLo(2, alpha=0.5, rho=0.5)
    assert run(balancer, torch.tensor([[1e-40, 1.0], [1e3, 1.0], [1e-42, 1.0], [1e30, 1e30]])).isfinite().all()


METHODS = {"rlw": RandomLossWeighting, "relobralo": lambda tasks, **o: ReLoBRaLo(tasks, alpha=0.8, rho=0.5, **o)}
methods = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


@methods
def test_the_seed_decides(make):
    losses = sequence(3, 6, steps=40)
    assert torch.equal(run(make(3, seed=1), losses), run(make(3, seed=1), losses))
    assert not torch.equal(run(make(3, seed=1), losses), run(make(3, seed=2), losses))


@methods
def test_wrong_seed(make):
    with pytest.raises(ValueError, match="seed is -1"):
        make(2, seed=-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.1}, "alpha is 1.1"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"rho": -0.1}, "rho is -0.1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": math.inf}, "temperature is inf"),
    ],
)
def test_wrong_input(options, message):
    with pytest.raises(ValueError, match=message):
        ReLoBRaLo(2, **options)
