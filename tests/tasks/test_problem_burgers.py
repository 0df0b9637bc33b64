"""Burgers' solution agrees with two other methods, and its points lie where they should; see ``test_physics.py``."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp

from tasks.burgers import NU, Burgers


def spectral(times: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the solution ``(times, places)``, by integrating a Fourier series of period 2 in time.

    The coefficients are imaginary because u is odd. Products drop the upper third of the frequencies that N points can
    represent.
    """
    N = 1536
    k = np.pi * np.arange(N // 2 + 1)
    low = k <= 2 / 3 * k[-1]
    x = -1 + 2 * np.arange(N) / N

    def slope(t: float, imaginary: np.ndarray) -> np.ndarray:
        square = np.fft.rfft(np.fft.irfft(1j * imaginary, N) ** 2)
        return (-0.5j * k * square * low).imag - NU * k**2 * imaginary

    start = np.fft.rfft(-np.sin(np.pi * x)).imag
    found = solve_ivp(slope, (0, 1), start, method="DOP853", rtol=1e-8, atol=1e-8, t_eval=times)
    return -2 / N * found.y.T @ np.sin(np.outer(k, places + 1))


@pytest.mark.slow
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_spectral_solution_of_the_equation_agrees(split):
    points = getattr(Burgers().data(torch.Generator(), "cpu"), split).points.double()
    times, places = (points.view(100, 100, 2)[:, 0, 0].numpy(), points.view(100, 100, 2)[0, :, 1].numpy())
    solution = Burgers.solution(points).view(100, 100).numpy()
    difference = spectral(times, places) - solution
    assert np.linalg.norm(difference) < 1e-6 * np.linalg.norm(solution)
    assert np.linalg.norm(difference[-1]) < 1e-6 * np.linalg.norm(solution[-1])


@pytest.mark.parametrize("t", [0.02, 0.4, 1.0])
@pytest.mark.parametrize("x", [-0.9, -0.003, 0.0005, 0.05, 0.6])
def test_adaptive_quadrature_of_the_same_integral_agrees(t, x):
    def exponent(y: float) -> float:
        return -((x - y) ** 2) / (4 * NU * t) - np.cos(np.pi * y) / (2 * np.pi * NU)

    wide = np.linspace(x - 2, x + 2, 4001)
    top = exponent(wide).max()
    peaks = wide[exponent(wide) > top - 40]
    ends, breaks = (peaks[0] - 0.05, peaks[-1] + 0.05), [-1.0, 1.0, x]
    breaks = [point for point in breaks if ends[0] < point < ends[1]]
    options = {"points": breaks, "limit": 500, "epsabs": 1e-13, "epsrel": 1e-11}
    above, _ = quad(lambda y: -np.sin(np.pi * y) * np.exp(exponent(y) - top), *ends, **options)
    below, _ = quad(lambda y: np.exp(exponent(y) - top), *ends, **options)
    (ours,) = Burgers.solution(torch.tensor([[t, x]], dtype=torch.float64)).tolist()
    assert ours == pytest.approx(above / below, rel=1e-7, abs=1e-9)


def test_the_shocks_slope_is_the_published_one():
    """In table 2 of Basdevant et al. (1986), the steepest slope at x = 0 is -152.00516, at pi t = 1.6037."""
    points = torch.tensor([[1.6037 / np.pi, 0.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(Burgers.solution(points).sum(), points)
    assert gradient[0, 1].item() == pytest.approx(-152.00516, abs=1e-3)


def test_the_initial_and_boundary_values():
    x = torch.linspace(-1, 1, 41, dtype=torch.float64)
    at_start = Burgers.solution(torch.stack([torch.zeros_like(x), x], 1))
    np.testing.assert_allclose(at_start.numpy(), -np.sin(np.pi * x.numpy()), atol=1e-12)
    t = torch.linspace(0, 1, 21, dtype=torch.float64)
    for side in (-1.0, 1.0):
        at_side = Burgers.solution(torch.stack([t, torch.full_like(t, side)], 1))
        np.testing.assert_allclose(at_side.numpy(), np.zeros(21), atol=1e-12)


def test_points_lie_inside_at_the_start_and_on_both_sides():
    pools = Burgers().pools(torch.Generator().manual_seed(4))
    t, x = pools["residual"].double().T
    assert len((t * 10_000).floor().clamp(0, 9_999).unique()) > 9_990  # one point in every strip, up to rounding
    assert (x < 0).double().mean().item() == pytest.approx(0.5, abs=1e-3)
    for share in (0.1, 0.5, 0.9):  # quantiles of a uniform distribution
        assert x.abs().quantile(share).item() == pytest.approx(share, abs=2e-3)

    start, sides = pools["initial"], pools["boundary"]
    assert not start[:, 0].any()
    assert start[:, 1].mean().abs() < 0.15
    assert sides[:, 1].abs().eq(1).all()
    assert sides[:, 1].sum() == 0
    assert 0.4 < sides[:, 0].mean() < 0.6
