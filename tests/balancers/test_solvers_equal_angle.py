"""`equal_angle` agrees with the pseudo-inverse of the unit gradients, of which it sees the Gramian alone."""

import math

import pytest
import torch
from torch import Tensor

from balancers.solvers.equal_angle import equal_angle

from .gramians import SIZES, cases, gradients, no_waiting

double = torch.float64
BALANCED = torch.tensor([[math.cos(k * math.tau / 3), math.sin(k * math.tau / 3)] for k in range(3)], dtype=double)
"""Three unit vectors at 120 degrees, which sum to zero."""


def expected(G: Tensor) -> Tensor:
    """Return :math:`U^+ 1` for gradients ``G``, ``(T, n)``."""
    units = torch.nn.functional.normalize(G, dim=1)
    return torch.linalg.pinv(units, rtol=1e-9) @ (G.norm(dim=1) > 0).to(G.dtype)


@pytest.mark.parametrize("num_tasks", SIZES)
def test_is_the_pseudo_inverse(num_tasks: int) -> None:
    for name in ("random", "orthogonal", "aligned", "uneven", "zeros", "duplicated", "rank_deficient", "zero_row"):
        G = gradients(num_tasks).get(name)
        if G is not None:
            found = equal_angle(G @ G.T) @ G
            torch.testing.assert_close(found, expected(G), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, double])
@pytest.mark.parametrize("ratio", [1.0, 1e-3, 1e-4, 1e-6])
def test_a_short_gradient_counts_as_much_as_a_long_one(ratio: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    for case in range(30):
        G = torch.randn(3 + case % 3, 1000, generator=generator, dtype=double)
        G[case % 3] *= ratio
        rows = G.to(dtype)
        weights = equal_angle(rows @ rows.T)
        products = torch.nn.functional.normalize(rows.double(), dim=1) @ (weights.double() @ rows.double())
        torch.testing.assert_close(products, torch.ones_like(products), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, double])
@pytest.mark.parametrize("norms", [(1.0, 1.0, 1.0), (1.0, 2.0, 3.0), (1.0, 1e-3, 50.0)])
def test_gradients_that_balance_have_no_direction(norms: tuple[float, ...], dtype: torch.dtype) -> None:
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(2), dtype=double))[0][:2]
    G = (torch.tensor(norms, dtype=double)[:, None] * BALANCED @ turn).to(dtype)
    assert not equal_angle(G @ G.T).any()


def test_nearly_balanced_gradients_have_one() -> None:
    """Rising by 1 in 1000 out of their plane, they have its normal at the same angle."""
    G = torch.cat([BALANCED, torch.full((3, 1), 1e-3, dtype=double)], 1)
    direction = equal_angle(G @ G.T) @ G
    torch.testing.assert_close(direction / direction.norm(), torch.tensor([0.0, 0.0, 1.0], dtype=double))


def test_what_is_not_finite_stays_so() -> None:
    M = torch.eye(3)
    M[0, 0] = torch.nan
    assert equal_angle(M).isnan().all()


@pytest.mark.parametrize("num_tasks", [1, 3, 10])
def test_batch_is_the_same_as_a_loop(num_tasks: int) -> None:
    batch = torch.stack([cases(num_tasks)[name] for name in ("random", "aligned", "uneven", "zeros")]).unflatten(
        0, (2, 2)
    )
    loop = torch.stack([equal_angle(M) for M in batch.flatten(0, 1)]).unflatten(0, (2, 2))
    torch.testing.assert_close(equal_angle(batch), loop, rtol=1e-9, atol=0)


def test_waits_for_nothing() -> None:
    M = cases(5, torch.float32)["random"]
    with no_waiting(but=("_linalg_eigh",)):  # which the CPU alone uses
        equal_angle(M)
