"""`project_on_dual_cone` agrees with SciPy's non-negative least squares, which works on the gradients themselves.

On the CPU it reads values. The fixture `on_a_device` makes it solve as it does on a device, where it may not.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from torch import Tensor

from balancers.solvers import active_set, dual_cone
from balancers.solvers.dual_cone import project_on_dual_cone

from ..slow_params import others_slow
from .gramians import SIZES, calls, cases, gradients, no_waiting

SEEDS = {1: 1, 2: 8, 3: 8, 5: 5, 10: 3, 40: 1, 100: 1}
NOT_UNIQUE = ("conflict", "stationary", "rank_deficient", "rank_one", "nearly_singular", "zeros")


@pytest.fixture
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dual_cone, "can_read", lambda tensor: False)


def excess(G: Tensor, w: Tensor, v: Tensor) -> float:
    """Return ``|G^T v|^2`` minus the projection's (NNLS for ``v - w >= 0``), in units of the gradients' mean square."""
    scaled = (G / G.square().sum(1).mean().sqrt().clamp_min(1e-300)).numpy().T
    residual = nnls(scaled, -scaled @ w.double().numpy(), maxiter=100_000)[1]
    return float(np.square(scaled @ v.double().numpy()).sum() - residual**2)


def several_weights(num_tasks: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return the weights of UPGrad (one task) and of DualProj (the mean), and some that are partly negative."""
    return (
        torch.eye(num_tasks, dtype=dtype)[num_tasks // 2],
        torch.full((num_tasks,), 1 / num_tasks, dtype=dtype),
        torch.randn(num_tasks, dtype=dtype),
    )


@pytest.mark.parametrize("num_tasks", SIZES)
def test_is_the_projection(num_tasks: int) -> None:
    for seed in range(SEEDS[num_tasks]):
        for name, G in gradients(num_tasks, seed).items():
            for w in several_weights(num_tasks, torch.float64):
                v = project_on_dual_cone(G @ G.T, w)
                assert v.isfinite().all()
                assert (v >= w).all()
                gap = excess(G, w, v)
                # The Gramian's own rounding does not allow a condition number of 1e14.
                assert gap < (1e-4 if name == "nearly_singular" else 1e-7), (name, seed, gap)


@pytest.mark.parametrize("num_tasks", SIZES)
def test_is_the_projection_in_float32(num_tasks: int) -> None:
    for seed in range(SEEDS[num_tasks]):
        for name, G in gradients(num_tasks, seed).items():
            G = G.float()
            for w in several_weights(num_tasks, torch.float32):
                v = project_on_dual_cone(G @ G.T, w)
                assert v.dtype == torch.float32
                assert v.isfinite().all()
                assert (v >= w).all()
                # Weights of 100 multiply the Gramian's rounding by 10,000.
                gap = excess(G.double(), w, v) / v.abs().max().clamp_min(1).item() ** 2
                assert gap < 1e-3, (name, seed, gap)


@pytest.mark.parametrize("angle", [1e-2, 1e-3, 1e-4])
def test_narrow_cone(angle: float) -> None:
    """Two gradients are almost opposed, so that both need large weights to outweigh a third.

    The smallest eigenvalue that matters is ``2 * angle ** 2``.
    """
    G = torch.tensor([[1, angle, 0], [-1, angle, 0], [0, -1, 0.3]], dtype=torch.float64)
    v = project_on_dual_cone(G @ G.T, torch.eye(3, dtype=torch.float64)[2])
    torch.testing.assert_close(v, torch.tensor([0.5 / angle, 0.5 / angle, 1], dtype=torch.float64), rtol=1e-6, atol=0)


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 6), st.integers(1, 8), st.integers(0, 10**6), st.floats(-4, 4))
def test_norms_that_differ(num_tasks: int, size: int, seed: int, exponent: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    G = torch.randn(num_tasks, size, generator=generator, dtype=torch.float64)
    G *= 10 ** (exponent * torch.rand(num_tasks, 1, generator=generator, dtype=torch.float64))
    w = torch.rand(num_tasks, generator=generator, dtype=torch.float64)
    v = project_on_dual_cone(G @ G.T, w)
    assert (v >= w).all()
    assert excess(G, w, v) < 1e-6


@pytest.mark.parametrize("num_tasks", SIZES)
def test_no_gradient_is_opposed(num_tasks: int) -> None:
    for name, M in cases(num_tasks).items():
        norms = M.diagonal().sqrt()
        for w in several_weights(num_tasks, torch.float64):
            product = M @ project_on_dual_cone(M, w)
            assert (product >= -1e-4 * norms * norms.max()).all(), name


def test_without_conflict_weights_stay() -> None:
    for num_tasks in SIZES:
        w = torch.rand(num_tasks, dtype=torch.float64)
        torch.testing.assert_close(project_on_dual_cone(cases(num_tasks)["aligned"], w), w, rtol=0, atol=1e-8)


def test_weights_are_broadcast() -> None:
    """UPGrad passes the T unit vectors as weights for one Gramian."""
    for num_tasks in SIZES[:-1]:
        M, units = cases(num_tasks)["random"], torch.eye(num_tasks, dtype=torch.float64)
        together = project_on_dual_cone(M.unsqueeze(-3), units)
        assert together.shape == (num_tasks, num_tasks)
        torch.testing.assert_close(
            together, torch.stack([project_on_dual_cone(M, w) for w in units]), rtol=0, atol=1e-10
        )
        several = project_on_dual_cone(torch.stack([M, 2 * M, 3 * M]), units[0])
        torch.testing.assert_close(several, together[:1].expand(3, -1), rtol=0, atol=1e-8)


@pytest.mark.parametrize("num_tasks", SIZES[:-1])
def test_batch_is_the_same_as_a_loop(num_tasks: int) -> None:
    batch = torch.stack([M for name, M in cases(num_tasks).items() if name not in NOT_UNIQUE][:4]).unflatten(0, (2, 2))
    w = torch.randn(2, 2, num_tasks, dtype=torch.float64)
    loop = torch.stack([project_on_dual_cone(M, u) for M, u in zip(batch.flatten(0, 1), w.flatten(0, 1), strict=True)])
    torch.testing.assert_close(project_on_dual_cone(batch, w), loop.unflatten(0, (2, 2)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("num_tasks", [2, 5, 40])
def test_common_scales_are_of_no_consequence(num_tasks: int, scale: float) -> None:
    w = torch.randn(num_tasks, dtype=torch.float64)
    for name in ("random", "opposed", "uneven", "zero_row"):
        M = cases(num_tasks)[name]
        expected = project_on_dual_cone(M, w)
        torch.testing.assert_close(project_on_dual_cone(M * scale**2, w), expected, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(project_on_dual_cone(M, w * scale) / scale, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("num_tasks", SIZES)
def test_order_of_tasks_is_of_no_consequence(num_tasks: int) -> None:
    order = torch.randperm(num_tasks)
    for name, M in cases(num_tasks).items():
        for w in several_weights(num_tasks, torch.float64):
            v, permuted = project_on_dual_cone(M, w), project_on_dual_cone(M[order][:, order], w[order])
            if name not in NOT_UNIQUE:
                torch.testing.assert_close(permuted, v[order], rtol=1e-8, atol=1e-8)
            difference = permuted - v[order]  # G^T v is unique even if v is not
            length = difference @ M[order][:, order] @ difference / M.diagonal().mean().clamp_min(1e-300)
            assert length < 1e-8 * v.abs().max().clamp_min(1) ** 2


@pytest.mark.parametrize("num_tasks", [2, 4, 10, 40])
def test_equal_tasks_are_raised_equally(num_tasks: int) -> None:
    M = cases(num_tasks)["duplicated"]
    for w in several_weights(num_tasks, torch.float64)[:2]:
        raised = project_on_dual_cone(M, w) - w
        torch.testing.assert_close(raised[::2], raised[1::2], rtol=0, atol=1e-8)


def test_weights_stay_small_where_they_need_not_grow() -> None:
    """At a Pareto-stationary point, adding the combination that is zero could make the weights arbitrarily large."""
    for num_tasks in SIZES[1:]:
        for name in ("conflict", "stationary"):
            for w in several_weights(num_tasks, torch.float64):
                assert project_on_dual_cone(cases(num_tasks)[name], w).max() < 30


def test_two_tasks() -> None:
    """Gradients agree or conflict, with no, one or two negative weights."""
    for product, w, expected in (
        (1.0, [1.0, 2.0], [1.0, 2.0]),
        (-1.0, [3.0, 1.0], [3.0, 1.5]),
        (-1.0, [1.0, 3.0], [3.0, 3.0]),
        (1.0, [-3.0, 1.0], [-1.0, 1.0]),
        (-1.0, [-3.0, -1.0], [0.0, 0.0]),
    ):
        M = torch.tensor([[1.0, product], [product, 2.0]], dtype=torch.float64)
        v = project_on_dual_cone(M, torch.tensor(w, dtype=torch.float64))
        torch.testing.assert_close(v, torch.tensor(expected, dtype=torch.float64))


def test_zero_gradient_keeps_its_weight() -> None:
    for num_tasks in (2, 3, 10):
        w = torch.rand(num_tasks, dtype=torch.float64)
        v = project_on_dual_cone(cases(num_tasks)["zero_row"], w)
        torch.testing.assert_close(v[num_tasks // 2], w[num_tasks // 2])


def test_types_are_promoted() -> None:
    M, w = cases(3)["random"], torch.ones(3)
    pairs = [
        project_on_dual_cone(M.to(a), w.to(b)).dtype for a, b in pairwise((torch.float32, torch.float64, torch.float32))
    ]
    assert pairs == [torch.float64, torch.float64]


@pytest.mark.parametrize("num_tasks", [1, 2, 10])
def test_waits_for_nothing(num_tasks: int) -> None:
    M, w = cases(num_tasks, torch.float32)["random"], torch.rand(num_tasks)
    with no_waiting():
        project_on_dual_cone(M, w)


def test_few_calls_for_two_tasks() -> None:
    M, w = cases(2)["random"], torch.ones(2, dtype=torch.float64)
    assert calls(lambda: project_on_dual_cone(M, w)) <= 12


@pytest.mark.usefixtures("on_a_device")
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 10])
def test_a_device_is_not_waited_for(num_tasks: int) -> None:
    M, units = cases(num_tasks, torch.float32)["opposed" if num_tasks > 1 else "random"], torch.eye(num_tasks)
    with no_waiting():
        project_on_dual_cone(M.unsqueeze(-3), units)


@pytest.mark.usefixtures("on_a_device")
@pytest.mark.parametrize("num_tasks", others_slow(SIZES[:-1], 2, 10))
def test_is_the_projection_on_a_device(num_tasks: int) -> None:
    test_is_the_projection(num_tasks)
    test_is_the_projection_in_float32(num_tasks)
    test_weights_are_broadcast()
    test_no_gradient_is_opposed(num_tasks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_tasks", [3, 5, 10, 40])
def test_cpu_and_device_agree(num_tasks: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, G in gradients(num_tasks).items():
        M = G.to(dtype) @ G.to(dtype).T
        for w in several_weights(num_tasks, dtype):
            on_cpu = project_on_dual_cone(M, w)
            with monkeypatch.context() as patch:
                patch.setattr(dual_cone, "can_read", lambda tensor: False)
                on_device = project_on_dual_cone(M, w)
            size = M.diagonal().max().clamp_min(1e-30).double() * max(1, on_cpu.abs().max(), on_device.abs().max()) ** 2
            difference = (on_cpu - on_device).double()
            tolerance = 1e-3 if dtype == torch.float32 else 1e-4 if name == "nearly_singular" else 1e-7
            assert abs(difference @ M.double() @ difference) <= tolerance * size, name
            if name in ("random", "orthogonal", "aligned", "opposed"):
                torch.testing.assert_close(on_cpu, on_device, rtol=1e-4, atol=1e-4)


def test_many_gramians_with_many_weights() -> None:
    M = torch.stack([cases(5)[name] for name in ("random", "opposed", "uneven", "aligned")]).unflatten(0, (2, 2))
    w = torch.rand(2, 2, 3, 5, dtype=torch.float64)
    together = project_on_dual_cone(M.unsqueeze(-3), w)
    for i, j, k in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(3)).tolist():
        torch.testing.assert_close(together[i, j, k], project_on_dual_cone(M[i, j], w[i, j, k]), rtol=1e-8, atol=1e-8)


def test_guesses_that_fail_are_solved_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """More tasks than parameters make guesses go round in circles; with one guess, most of them fail."""
    monkeypatch.setattr(active_set, "GUESSES", 1)
    for num_tasks in (5, 10, 40):
        for name, G in gradients(num_tasks).items():
            for w in several_weights(num_tasks, torch.float64):
                v = project_on_dual_cone(G @ G.T, w)
                assert (v >= w).all()
                assert excess(G, w, v) < (1e-4 if name == "nearly_singular" else 1e-7), name


@pytest.mark.parametrize("num_tasks", [3, 10])
def test_a_gramian_that_is_not_finite_gives_nan(num_tasks: int) -> None:
    for value in (torch.nan, torch.inf):
        M = cases(num_tasks)["opposed"]
        M[0, 0] = value
        assert project_on_dual_cone(M, torch.ones(num_tasks, dtype=torch.float64)).isnan().any()


@pytest.mark.parametrize("num_tasks", [3, 10])
def test_meta_tensors(num_tasks: int) -> None:
    M, w = torch.empty(4, 1, num_tasks, num_tasks, device="meta"), torch.empty(num_tasks, num_tasks, device="meta")
    assert project_on_dual_cone(M, w).shape == (4, num_tasks, num_tasks)


def test_the_weights_are_not_changed_or_returned() -> None:
    """Without a conflict, the result equals the weights."""
    for num_tasks in SIZES:
        w = torch.ones(num_tasks, dtype=torch.float64)
        for M in cases(num_tasks).values():
            project_on_dual_cone(M, w).zero_()
        assert (w == 1).all()
