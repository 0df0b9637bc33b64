"""Bargaining weights are fair, by their duality gap, for any scale, order and rank of the Gramian."""

from functools import cache

import numpy as np
import pytest
import torch
from scipy.optimize import root
from torch import Tensor

from balancers.solvers.bargaining import fair_bargaining

from .gramians import SIZES, cases, no_waiting

ALPHAS = (0.1, 0.5, 1.0, 2.0, 10.0)
SOLVABLE = ("random", "orthogonal", "aligned", "ill_conditioned", "duplicated", "uneven", "opposed")
"""Cases whose condition number is at most 1e8 with rows of norm 1, or whose null space has no nonnegative weights."""


def gap(M: Tensor, w: Tensor, alpha: float) -> Tensor:
    """Return a bound on how far the objective is above its minimum, divided by the direction's squared length.

    It uses Fenchel's dual at u = w: -1/2 u^T M u + the sum over i of min_v (y_i v - phi(v)), where y = M u.
    """
    y = (M @ w.unsqueeze(-1)).squeeze(-1)
    energy = (w * y).sum(-1)
    y = y.clamp(min=1e-25)  # rounding may make it negative
    if alpha == 1:
        return (w * y - 1 - (w * y).log()).sum(-1) / energy

    def phi(v: Tensor) -> Tensor:
        return v.pow(1 - 1 / alpha) / (1 - 1 / alpha)

    best = y.pow(-alpha)
    return (w * y - phi(w) + phi(best) - best * y).sum(-1) / energy


@cache
def gramians(num_tasks: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return cases(num_tasks, dtype)


def solvable(num_tasks: int, *without: str, dtype: torch.dtype = torch.float64) -> tuple[list[str], Tensor]:
    """Return the names of the cases that have a solution, and their Gramians, ``(N, T, T)``."""
    found = gramians(num_tasks, dtype)
    names = [name for name in SOLVABLE if name in found and name not in without]
    return names, torch.stack([found[name] for name in names])


def assert_below(values: Tensor, bound: float, names: list[str]) -> None:
    assert (values < bound).all(), dict(zip(names, values.tolist(), strict=True))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("num_tasks", SIZES)
def test_weights_are_fair(num_tasks: int, alpha: float) -> None:
    names, M = solvable(num_tasks)
    w = fair_bargaining(M, alpha)
    assert (w > 0).all()
    assert_below(gap(M, w, alpha), 1e-7, names)
    if alpha == 1:
        assert_below((w * (M @ w.unsqueeze(-1)).squeeze(-1) - 1).abs().amax(-1), 1e-5, names)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("num_tasks", SIZES)
def test_weights_of_a_float32_gramian(num_tasks: int, alpha: float) -> None:
    # Float32 can't represent a condition number of 1e8, nor the weights for norms from 1e-4 to 1e4.
    names, M = solvable(num_tasks, "ill_conditioned", "uneven", dtype=torch.float32)
    w = fair_bargaining(M, alpha)
    assert w.dtype == torch.float32
    assert_below(gap(M.double(), w.double(), alpha), 1e-3, names)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("num_tasks", [2, 3, 5])
def test_agrees_with_scipy(num_tasks: int, alpha: float) -> None:
    M = cases(num_tasks)["random"] / num_tasks
    found = root(lambda log_w: M.numpy() @ np.exp(log_w) - np.exp(-log_w / alpha), np.zeros(num_tasks), tol=1e-12)
    assert found.success
    torch.testing.assert_close(fair_bargaining(M, alpha), torch.from_numpy(np.exp(found.x)), rtol=1e-8, atol=0)


@pytest.mark.parametrize("cosine", [-1 + 1e-8, -0.9, 0.0, 0.5, 1.0])
def test_nash_for_two_tasks(cosine: float) -> None:
    M = torch.tensor([[4.0, 2 * cosine], [2 * cosine, 1.0]], dtype=torch.float64)
    expected = torch.tensor([0.5, 1.0], dtype=torch.float64) / (1 + cosine) ** 0.5
    torch.testing.assert_close(fair_bargaining(M, 1.0), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(fair_bargaining(M, 1 + 1e-9), expected, rtol=1e-6, atol=0)  # the general algorithm


@pytest.mark.parametrize("alpha", ALPHAS)
def test_one_task(alpha: float) -> None:
    M = torch.tensor([[4.0]], dtype=torch.float64)
    w = fair_bargaining(M, alpha)
    torch.testing.assert_close(4 * w, w ** (-1 / alpha))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("dtype", "norm"), [(torch.float64, 1e30), (torch.float32, 1e15)])
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 10])
def test_scale(num_tasks: int, dtype: torch.dtype, norm: float, alpha: float) -> None:
    M = cases(num_tasks, dtype)["random"]
    expected = fair_bargaining(M, alpha)
    for factor in (norm, 1 / norm):
        w = fair_bargaining(M * factor**2, alpha) * factor ** (2 * alpha / (1 + alpha))
        torch.testing.assert_close(w, expected, rtol=1e-9 if dtype == torch.float64 else 1e-4, atol=0)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("num_tasks", [2, 3, 10, 40])
def test_order_of_tasks_does_not_matter(num_tasks: int, alpha: float) -> None:
    order = torch.randperm(num_tasks)
    for without, rtol in (("ill_conditioned", "uneven"), 1e-8), ((), 1e-4):  # rounding times the condition number
        _, M = solvable(num_tasks, *without)
        w, permuted = fair_bargaining(M, alpha), fair_bargaining(M[:, order][..., order], alpha)
        torch.testing.assert_close(permuted, w[:, order], rtol=rtol, atol=1e-30)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("num_tasks", [2, 10])
def test_equal_tasks_have_equal_weights(num_tasks: int, alpha: float) -> None:
    w = fair_bargaining(cases(num_tasks)["duplicated"], alpha)
    torch.testing.assert_close(w[::2], w[1::2], rtol=1e-8, atol=0)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 10])
def test_batch_equals_loop(num_tasks: int, alpha: float) -> None:
    batch = torch.stack([cases(num_tasks, seed=seed)["random"] for seed in range(6)])
    expected = torch.stack([fair_bargaining(M, alpha) for M in batch])
    torch.testing.assert_close(fair_bargaining(batch, alpha), expected, rtol=1e-10, atol=0)
    batch, expected = batch.unflatten(0, (2, 3)), expected.unflatten(0, (2, 3))
    torch.testing.assert_close(fair_bargaining(batch, alpha), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("num_tasks", SIZES)
def test_any_gramian_has_finite_weights_and_a_bounded_direction(
    num_tasks: int, alpha: float, dtype: torch.dtype
) -> None:
    M = torch.stack(list(gramians(num_tasks, dtype).values()))
    w = fair_bargaining(M, alpha)
    assert w.isfinite().all()
    assert (w >= 0).all()
    if dtype == torch.float64:
        energy = (w.unsqueeze(-2) @ M @ w.unsqueeze(-1)).squeeze((-2, -1))
        assert (energy <= (1 + 1e-6) * w.pow(1 - 1 / alpha).sum(-1)).all()


@pytest.mark.parametrize("num_tasks", [2, 3, 10, 40])
def test_noise_far_beyond_rounding_is_survived(num_tasks: int) -> None:
    M = torch.stack(list(gramians(num_tasks).values()))
    noise = torch.randn_like(M)
    M = M + 1e-2 * M.diagonal(dim1=-2, dim2=-1).amax(-1)[:, None, None] * (noise + noise.mT)
    for alpha in ALPHAS:
        assert fair_bargaining(M, alpha).isfinite().all()


def test_an_exact_conflict() -> None:
    """The solver adds a small gradient of its own to each of the two tasks; the third keeps its usual weight."""
    M = torch.tensor([[1.0, -2.0, 0.0], [-2.0, 4.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    w = fair_bargaining(M, 1.0)
    epsilon = 12 * torch.finfo(torch.float64).eps
    torch.testing.assert_close(w[2], torch.tensor(1.0).double(), rtol=1e-2, atol=0)
    torch.testing.assert_close(w[0], 2 * w[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(w[0], torch.tensor(epsilon).double() ** -0.5, rtol=0.2, atol=0)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("num_tasks", [3, 5, 10])
def test_a_zero_row_changes_no_other_weight(num_tasks: int, alpha: float) -> None:
    M = cases(num_tasks)["random"]
    zero = num_tasks // 2
    others = [i for i in range(num_tasks) if i != zero]
    M[zero], M[:, zero] = 0, 0
    w = fair_bargaining(M, alpha)
    torch.testing.assert_close(w[others], fair_bargaining(M[others][:, others], alpha), rtol=1e-8, atol=0)
    torch.testing.assert_close(w[zero], M.diagonal().mean() ** (-alpha / (1 + alpha)), rtol=1e-8, atol=0)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("num_tasks", SIZES)
def test_all_zero(num_tasks: int, alpha: float) -> None:
    w = fair_bargaining(torch.zeros(num_tasks, num_tasks), alpha)
    torch.testing.assert_close(w, torch.ones(num_tasks), rtol=1e-4, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("alpha", [1.0, 2.0])
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 10])
def test_what_is_not_finite_gives_nan(num_tasks: int, alpha: float, value: float) -> None:
    G = torch.randn(2, num_tasks, 20)
    G[0, 0, 0] = value
    w = fair_bargaining(G @ G.mT, alpha)
    assert w[0].isnan().any()
    assert w[1].isfinite().all()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 10])
def test_does_not_wait_for_the_device(num_tasks: int, alpha: float) -> None:
    for M in cases(num_tasks).values():
        with no_waiting():
            fair_bargaining(M, alpha)
