"""Methods whose weights are a formula of this step's losses, against autograd, NumPy and, if it has them, TorchJD.

Differences from TorchJD: its geometric mean accepts losses of zero; ours keeps the last weights.
"""

import math

import numpy as np
import pytest
import torch

from balancers.analytic_uncertainty import AnalyticUncertaintyWeighting
from balancers.geometric_loss import GeometricLossStrategy
from balancers.scale_invariant import ScaleInvariant

CLASSES = [AnalyticUncertaintyWeighting, GeometricLossStrategy, ScaleInvariant]


def draw(num_tasks: int, seed: int) -> torch.Tensor:
    """Draw losses that are some orders of magnitude apart."""
    generator = torch.Generator().manual_seed(seed)
    return torch.exp(1.5 * torch.randn(num_tasks, dtype=torch.float64, generator=generator))


def differentiated(objective, losses: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(objective(leaf := losses.clone().requires_grad_()), leaf)[0]


def weights_of(balancer, losses: torch.Tensor) -> torch.Tensor:
    leaf = losses.clone().requires_grad_()
    balancer(leaf).backward()
    assert torch.equal(leaf.grad, balancer.weights)
    return balancer.weights


def test_gls_has_the_gradient_of_the_geometric_mean():
    for seed in range(50):
        losses = draw(1 + seed % 5, seed)
        expected = differentiated(lambda x: x.prod() ** (1 / len(x)), losses)
        torch.testing.assert_close(weights_of(GeometricLossStrategy(len(losses)), losses), expected)


def test_gls_like_torchjd():
    scalarization = pytest.importorskip("torchjd.scalarization")
    for seed in range(200):
        losses = draw(1 + seed % 6, seed)
        expected = differentiated(scalarization.GeometricMean(), losses)
        torch.testing.assert_close(weights_of(GeometricLossStrategy(len(losses)), losses), expected, rtol=1e-4, atol=0)


def test_scale_invariant_has_the_gradient_of_the_log_losses():
    for seed in range(50):
        losses = draw(1 + seed % 5, seed)
        expected = differentiated(lambda x: x.log().sum(), losses)
        torch.testing.assert_close(weights_of(ScaleInvariant(len(losses)), losses), expected)


def test_analytic_uncertainty_is_a_softmax_of_inverse_losses():
    for seed in range(50):
        losses, temperature = draw(2 + seed % 4, seed), [0.5, 1.0, 20.0][seed % 3]
        powers = 1 / losses.numpy() / temperature
        shares = np.exp(powers - powers.max())
        weights = weights_of(AnalyticUncertaintyWeighting(len(losses), temperature=temperature), losses)
        np.testing.assert_allclose(weights.numpy(), shares / shares.sum(), rtol=1e-9)


def test_analytic_uncertainty_goes_from_equal_weights_to_the_least_loss():
    losses = torch.tensor([2.0, 1.0, 3.0], dtype=torch.float64)
    hot = weights_of(AnalyticUncertaintyWeighting(3, temperature=1e6), losses)
    cold = weights_of(AnalyticUncertaintyWeighting(3, temperature=1e-3), losses)
    torch.testing.assert_close(hot, torch.full((3,), 1 / 3, dtype=torch.float64), rtol=1e-5, atol=0)
    torch.testing.assert_close(cold, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("cls", [GeometricLossStrategy, ScaleInvariant])
def test_a_losss_scale_cancels_out_of_the_direction(cls):
    losses, scales = draw(3, 1), torch.tensor([1e-3, 1.0, 1e4], dtype=torch.float64)
    ratios = weights_of(cls(3), losses * scales) * scales / weights_of(cls(3), losses)
    expected = 1.0 if cls is ScaleInvariant else scales.prod().item() ** (1 / 3)
    torch.testing.assert_close(ratios, torch.full_like(ratios, expected))


@pytest.mark.parametrize("cls", CLASSES)
def test_the_least_losses_of_a_type_give_finite_weights(cls):
    for losses in (torch.tensor([1e-40, 1.0]), torch.tensor([1e-40, 1e-42])):
        assert weights_of(cls(2), losses).isfinite().all()


def test_weights_before_any_valid_loss():
    balancer = AnalyticUncertaintyWeighting(4)
    assert weights_of(balancer, torch.zeros(4)).tolist() == [0.25] * 4


@pytest.mark.parametrize("cls", CLASSES)
def test_the_state_is_the_last_weights_alone(cls):
    assert set(cls(["a", "b"]).state_dict()) == {"last_weights", "_extra_state"}


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_wrong_temperature(temperature: float):
    with pytest.raises(ValueError, match="temperature is"):
        AnalyticUncertaintyWeighting(2, temperature=temperature)
