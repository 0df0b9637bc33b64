"""The Allen-Cahn solution agrees with a spectral one and with what is known of fronts; see ``test_physics.py``."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from tasks.physics import TanhNetwork
from tasks.reaction_diffusion import FRONTS, D, R, ReactionDiffusion

from .test_problem_helmholtz import chebyshev


def u(t: float | Tensor, x: float | Tensor) -> Tensor:
    """Return the problem's solution at times and places that are broadcast to one shape."""
    t, x = torch.broadcast_tensors(torch.as_tensor(t).double(), torch.as_tensor(x).double())
    return ReactionDiffusion.solution(torch.stack([t.ravel(), x.ravel()], 1)).view(t.shape)


def spectral(times: np.ndarray, places: np.ndarray, nodes: int = 180) -> np.ndarray:
    """Return the solution ``(times, places)``, by collocation in x and an implicit Runge-Kutta method in time.

    Only the values at t = 0 and on both sides are taken from the problem.
    """
    x, derivative = chebyshev(nodes)
    second = (derivative @ derivative)[1:-1]

    def with_sides(t: float, inner: np.ndarray) -> np.ndarray:
        right, left = u(t, torch.tensor([1.0, -1.0])).tolist()
        return np.r_[right, inner, left]

    def slope(t: float, inner: np.ndarray) -> np.ndarray:
        return D * second @ with_sides(t, inner) + R * (inner - inner**3)

    def jacobian(t: float, inner: np.ndarray) -> np.ndarray:
        return D * second[:, 1:-1] + np.diag(R * (1 - 3 * inner**2))

    start = u(0.0, torch.from_numpy(x[1:-1].copy())).numpy()
    found = solve_ivp(slope, (0, 1), start, method="Radau", jac=jacobian, rtol=1e-10, atol=1e-10, t_eval=times)
    values = np.stack([with_sides(t, inner) for t, inner in zip(times, found.y.T, strict=True)])
    coefficients = np.linalg.solve(np.polynomial.chebyshev.chebvander(x, nodes), values.T)
    return np.polynomial.chebyshev.chebval(places, coefficients)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_spectral_solution_of_the_equation_agrees(split):
    points = getattr(ReactionDiffusion().data(torch.Generator(), "cpu"), split).points.double().view(100, 100, 2)
    times, places = points[:, 0, 0].numpy(), points[0, :, 1].numpy()
    solution = ReactionDiffusion.solution(points.view(-1, 2)).view(100, 100).numpy()
    difference = spectral(times, places) - solution
    assert np.linalg.norm(difference) < 1e-6 * np.linalg.norm(solution)
    assert np.linalg.norm(difference[-1]) < 1e-6 * np.linalg.norm(solution[-1])


def test_three_plateaus_at_the_start():
    at_plateaus = u(0.0, torch.tensor([-1.0, sum(FRONTS) / 2, 1.0]))
    np.testing.assert_allclose(at_plateaus.numpy(), [-1, 0, 1], atol=1e-3)
    left, right = FRONTS
    np.testing.assert_allclose(u(0.0, torch.tensor([left, right])).numpy(), [-0.5, 0.5], atol=1e-4)


@pytest.mark.parametrize("t", [0.0, 0.1, 0.3])
def test_each_front_has_the_speed_of_a_front_into_the_unstable_state(t):
    """A front between u = 0 and u = 1 of ``1 / (1 + exp(sqrt(R / 2 D) z))`` moves at ``3 sqrt(R D / 2)``."""
    way = 3 * math.sqrt(R * D / 2) * t
    left, right = FRONTS
    np.testing.assert_allclose(u(t, torch.tensor([left + way, right - way])).numpy(), [-0.5, 0.5], atol=1e-2)
    z = torch.linspace(-0.1, 0.1, 11)
    front = 1 / (1 + np.exp(math.sqrt(R / (2 * D)) * z.double().numpy()))
    np.testing.assert_allclose(u(t, right - way - z).numpy(), front, atol=1e-2)


def test_the_fronts_meet_within_the_time():
    """The plateau at u = 0 is gone at t = 1: u rises at least half as steeply as the front that stands still."""
    middle = torch.tensor([[1.0, sum(FRONTS) / 2]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(ReactionDiffusion.solution(middle).sum(), middle)
    assert 0.5 < gradient[0, 1].item() / math.sqrt(R / (2 * D)) < 1


def test_afterwards_one_front_stands_still_and_has_the_known_profile():
    """The profile of a boundary between two stable states is ``tanh(x sqrt(R / 2 D))``."""
    x = torch.linspace(-1, 1, 41, dtype=torch.float64)
    expected = np.tanh((x.numpy() - sum(FRONTS) / 2) * math.sqrt(R / (2 * D)))
    for t in (6.0, 8.0):
        np.testing.assert_allclose(u(t, x).numpy(), expected, atol=1e-12)


def test_a_network_that_is_zero_has_no_residual_but_misses_the_start():
    problem = ReactionDiffusion()
    model = TanhNetwork(4, 1, problem.box, scale=(1.0, 1.0))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    data = problem.data(torch.Generator().manual_seed(1), "cpu")
    residual, initial, boundary = (loss.item() for loss in problem.losses(model, data.pools))
    assert residual == 0
    assert 0.4 < initial < 0.8
    assert boundary == pytest.approx(1, abs=0.01)
    assert problem.evaluate(model, data, "test") == {"relative L2 error": pytest.approx(1)}


def test_points_lie_inside_at_the_start_and_on_both_sides():
    pools = ReactionDiffusion().pools(torch.Generator().manual_seed(4))
    t, x = pools["residual"].double().T
    assert len((t * 10_000).floor().clamp(0, 9_999).unique()) > 9_990  # one point in every strip, up to rounding
    assert len(((x + 1) * 5_000).floor().clamp(0, 9_999).unique()) > 9_990

    start, sides = pools["initial"], pools["boundary"]
    assert not start[:, 0].any()
    assert start[:, 1].mean().abs() < 0.15
    assert sides[:, 1].abs().eq(1).all()
    assert sides[:, 1].sum() == 0
    assert 0.4 < sides[:, 0].mean() < 0.6


def test_the_problem_is_reserved():
    assert ReactionDiffusion.reserved
