"""Methods that learn one number per task, against autograd and ``torch.optim`` on the paper's objective.

IMTL-L also against TorchJD, whose scales the caller's optimiser trains: plain SGD here.
"""

import math

import pytest
import torch

from balancers.imtl_loss import IMTLLoss
from balancers.revised_uncertainty import RevisedUncertaintyWeighting

from ..slow_params import others_slow


def imtl_l(s: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    return (s.exp() * losses - s).sum()


def revised(s: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    c = (s / 2).exp()
    return (losses / (2 * c**2) + torch.log(1 + c**2)).sum()


METHODS = [(IMTLLoss, imtl_l), (RevisedUncertaintyWeighting, revised)]
methods = pytest.mark.parametrize(("cls", "objective"), METHODS)


def sequence(num_tasks: int, seed: int, steps: int = 25) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.exp(torch.randn(steps, num_tasks, dtype=torch.float64, generator=generator))


def run(balancer, losses: torch.Tensor) -> torch.Tensor:
    weights = []
    for row in losses:
        balancer(row.clone().requires_grad_()).backward()
        weights.append(balancer.weights)
    return torch.stack(weights)


def learned(balancer) -> torch.Tensor:
    return balancer.log_scales if isinstance(balancer, IMTLLoss) else balancer.log_variances


@methods
@pytest.mark.parametrize("name", others_slow(["adam", "sgd"], "adam"))
def test_learns_by_its_objectives_derivative(cls, objective, name: str):
    for seed in range(20):
        losses = sequence(2 + seed % 3, seed)
        s = torch.zeros(losses.shape[1], dtype=torch.float64, requires_grad=True)
        optimizer = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[name]([s], lr=0.05)
        weights = run(balancer := cls(losses.shape[1], lr=0.05, optimizer=name), losses)
        for row, found in zip(losses, weights, strict=True):
            leaf = row.clone().requires_grad_()
            loss = objective(s, leaf)
            expected, s.grad = torch.autograd.grad(loss, [leaf, s])
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
            optimizer.step()
        torch.testing.assert_close(learned(balancer), s.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_imtl_l_like_torchjd():
    scalarization = pytest.importorskip("torchjd.scalarization")
    for seed in range(200):
        losses = sequence(1 + seed % 5, seed, steps=6)
        theirs = scalarization.IMTLL(losses.shape[1]).double()
        optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05)
        for row, weights in zip(losses, run(IMTLLoss(losses.shape[1], lr=0.05, optimizer="sgd"), losses), strict=True):
            leaf = row.clone().requires_grad_()
            optimizer.zero_grad()
            theirs(leaf).backward()
            torch.testing.assert_close(weights, leaf.grad, rtol=1e-4, atol=0)
            optimizer.step()


@pytest.mark.slow
def test_imtl_l_brings_losses_to_one():
    losses = torch.tensor([0.02, 1.0, 30.0], dtype=torch.float64)
    weights = run(IMTLLoss(3), losses.expand(3000, 3))[-1]
    torch.testing.assert_close(weights * losses, torch.ones(3, dtype=torch.float64), rtol=1e-2, atol=0)


def test_revised_uncertainty_goes_to_its_minimum():
    """The objective is least where c^4 = (L / 2) (1 + c^2)."""
    losses = torch.tensor([0.05, 1.0, 4.0], dtype=torch.float64)
    weights = run(RevisedUncertaintyWeighting(3), losses.expand(600, 3))[-1]
    half = losses / 2
    c2 = (half + (half**2 + 4 * half).sqrt()) / 2
    torch.testing.assert_close(weights, 1 / (2 * c2), rtol=1e-2, atol=0)


@pytest.mark.slow
def test_revised_uncertainty_stays_finite_as_losses_vanish():
    balancer = RevisedUncertaintyWeighting(2)
    losses = torch.tensor([0.0, 1e-6]).expand(3000, 2)
    assert run(balancer, losses).isfinite().all()


@methods
def test_wrong_input(cls, objective):
    for lr in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="lr is"):
            cls(2, lr=lr)
    with pytest.raises(ValueError, match="optimizer is 'lbfgs'"):
        cls(2, optimizer="lbfgs")
