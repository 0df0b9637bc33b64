"""Methods that read the Gramian keep what their papers state of them, and agree with TorchJD 0.18.

The tests allow for these deliberate differences from TorchJD:

- MGDA: TorchJD's Frank-Wolfe iterations stop early. Ours has the smaller norm; the directions are compared for two
  tasks, where one of its steps is exact.
- UPGrad, DualProj: TorchJD adds 1e-4 times the identity to the normalised Gramian; here almost nothing.
- CAGrad: TorchJD solves to its convex solver's tolerance, which leaves up to 2e-4 in the direction. All cases are
  compared by the objective, and most by the direction. TorchJD's weights are zero where g_lambda is; ours are 1/T.
- Nash-MTL: TorchJD makes a few convex approximations, and clips the direction's length. Here it makes many, and the
  directions are compared.
- FairGrad: TorchJD solves by least squares with a loose tolerance; compared where its residual is small.
- PCGrad, GradVac: both are given the same random orders.
- GradVac: TorchJD adds 1e-8 to denominators.
- IMTL-G: TorchJD's weights are zero where the gradients cancel; ours are 1/T. TorchJD takes the Gramian's rank, and
  ours is that of the cosines, so that short gradients count.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from balancers import (
    MGDA,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    Fork,
    GradientBalancer,
    IMTLGradient,
    NashMTL,
    UPGrad,
    get,
    names,
)
from balancers.grad_vac import vaccinate
from balancers.pcgrad import of_two, surgery

from ..slow_params import others_slow
from .planted import Planted, draw, matrix

CASES = 200
double = torch.float64


few_or_all = pytest.mark.parametrize("cases", [8, pytest.param(CASES, marks=pytest.mark.slow)])
"""Runs a test whose other implementation is slow on a few cases, and in the long suite on all."""


def matrices(seed: int = 0, most_tasks: int = 6, cases: int = CASES) -> Iterator[Tensor]:
    """Yield gradients as rows, ``(T, n)``, of many sizes, norms and angles."""
    generator = torch.Generator().manual_seed(seed)
    for case in range(cases):
        num_tasks = 2 + case % (most_tasks - 1)
        rows = torch.randn(num_tasks, 8 + case % 7, generator=generator, dtype=double)
        rows += 0.5 * torch.randn(1, generator=generator, dtype=double) * rows[:1]
        yield rows * torch.exp(torch.randn(num_tasks, 1, generator=generator, dtype=double))


def method(cls: type[GradientBalancer], **options: Any) -> Callable[[Tensor], Tensor]:
    """Return a function that computes the method's weights for a Gramian of any number of tasks."""
    return lambda gramian: cls(Fork(len(gramian)), **options).solve(gramian)


def direction(weights: Tensor, rows: Tensor) -> Tensor:
    return weights @ rows


def unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


# The papers' statements.


@pytest.mark.parametrize("cls", [MGDA, UPGrad, DualProj])
def test_no_tasks_loss_rises(cls: type[GradientBalancer]) -> None:
    for rows in matrices():
        gains = rows @ direction(method(cls)(rows @ rows.T), rows)
        assert (gains >= -1e-7 * rows.norm(dim=1) * rows.norm()).all()


def test_mgda_is_zero_where_a_point_is_pareto_stationary() -> None:
    for rows in matrices(1):
        shares = torch.rand(len(rows), generator=torch.Generator().manual_seed(len(rows)), dtype=double) + 0.1
        rows[-1] = -(shares[:-1] @ rows[:-1]) / shares[-1]
        assert direction(method(MGDA)(rows @ rows.T), rows).norm() < 1e-4 * rows.norm()


def test_without_a_conflict_projections_change_nothing() -> None:
    for rows in matrices(2):
        gramian = rows.abs() @ rows.abs().T
        mean = torch.full((len(rows),), 1 / len(rows), dtype=double)
        torch.testing.assert_close(method(UPGrad)(gramian), mean, rtol=0, atol=1e-6)
        torch.testing.assert_close(method(DualProj)(gramian), mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cls", [IMTLGradient, ConFIG])
def test_projections_on_all_gradients_are_equal(cls: type[GradientBalancer]) -> None:
    for rows in matrices(3):
        weights = method(cls)(rows @ rows.T)
        projections = (rows / rows.norm(dim=1, keepdim=True)) @ direction(weights, rows)
        torch.testing.assert_close(projections, projections[:1].expand_as(projections), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("cls", [IMTLGradient, ConFIG])
@pytest.mark.parametrize("dtype", [torch.float32, double])
@pytest.mark.parametrize("short", [1e-2, 1e-4, 1e-6])
def test_projections_on_short_gradients_are_equal_too(
    short: float, dtype: torch.dtype, cls: type[GradientBalancer]
) -> None:
    generator = torch.Generator().manual_seed(15)
    for case in range(20):
        rows = torch.randn(2 + case % 4, 1000, generator=generator, dtype=double)
        rows[case % 2] *= short
        rows = rows.to(dtype)
        combined = direction(method(cls)(rows @ rows.T).double(), rows.double())
        projections = torch.nn.functional.normalize(rows.double(), dim=1) @ combined
        torch.testing.assert_close(projections, projections[:1].expand_as(projections), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, double])
def test_a_third_task_does_not_drop_a_short_gradient(dtype: torch.dtype) -> None:
    short = 5e-4
    two = method(IMTLGradient)(torch.diag(torch.tensor([1.0, short**2], dtype=dtype)))
    three = method(IMTLGradient)(torch.diag(torch.tensor([1.0, short**2, 1.0], dtype=dtype)))
    torch.testing.assert_close(two, torch.tensor([short, 1.0], dtype=dtype) / (1 + short))
    torch.testing.assert_close(three, torch.tensor([short, 1.0, short], dtype=dtype) / (1 + 2 * short))


@pytest.mark.parametrize("dtype", [torch.float32, double])
@pytest.mark.parametrize("norms", [(1.0, 1.0, 1.0), (1.0, 2.0, 3.0)])
def test_three_gradients_that_balance(norms: tuple[float, ...], dtype: torch.dtype) -> None:
    angles = torch.arange(3, dtype=double) * math.tau / 3 + 0.3
    rows = (torch.tensor(norms, dtype=double) * torch.stack([angles.cos(), angles.sin()])).T.to(dtype)
    assert not method(ConFIG)(rows @ rows.T).any()
    torch.testing.assert_close(method(IMTLGradient)(rows @ rows.T), torch.full((3,), 1 / 3, dtype=dtype))


def test_imtl_g_may_raise_all_losses() -> None:
    cosines = torch.tensor([[1.0, 0.0, 0.69], [0.0, 1.0, 0.69], [0.69, 0.69, 1.0]], dtype=double)
    norms = torch.tensor([1.0, 1.0, 0.1], dtype=double)
    gramian = cosines * torch.outer(norms, norms)
    weights = method(IMTLGradient)(gramian)
    projections = gramian @ weights / norms
    torch.testing.assert_close(weights.sum().item(), 1.0)
    torch.testing.assert_close(projections, torch.full_like(projections, -0.0150), rtol=1e-2, atol=0)


GRAMIAN = [get(name) for name in names() if get(name).reads == "gramian" and hasattr(get(name), "solve")]


@pytest.mark.parametrize("cls", [cls for cls in GRAMIAN if cls.__module__.startswith("balancers.")])
@pytest.mark.slow
def test_weights_below_zero_are_declared(cls: type[GradientBalancer]) -> None:
    """Gradients at small angles to each other, one short, need negative weights for equal projections."""
    least = 0.0
    for rows in [*matrices(16), torch.tensor([[1.0, 0.0], [5.0, 1.0]], dtype=double)]:
        least = min(least, cls(Fork(len(rows))).solve(rows @ rows.T).min().item())
    assert (least < -1e-3) == cls.may_ascend


def test_config_is_as_long_as_the_projections_add_up_to() -> None:
    for rows in matrices(4):
        combined = direction(method(ConFIG)(rows @ rows.T), rows)
        torch.testing.assert_close(combined.norm(), (rows @ unit(combined)).sum(), rtol=1e-8, atol=0)


@pytest.mark.parametrize("cls", [NashMTL])
def test_a_losss_scale_cancels_out(cls: type[GradientBalancer]) -> None:
    for rows in matrices(5):
        scaled = rows.clone()
        scaled[0] *= 1000
        one, other = (direction(method(cls)(each @ each.T), each) for each in (rows, scaled))
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-8)


def test_the_nash_direction_has_the_norm_root_t() -> None:
    for rows in matrices(6):
        norm = direction(method(NashMTL)(rows @ rows.T), rows).norm()
        assert abs(norm.item() - len(rows) ** 0.5) < 1e-6


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_fairgrad_solves_its_equation(alpha: float) -> None:
    for rows in matrices(7):
        weights = method(FairGrad, alpha=alpha)(rows @ rows.T)
        torch.testing.assert_close(rows @ direction(weights, rows), weights ** (-1 / alpha), rtol=1e-6, atol=0)


@pytest.mark.slow
def test_cagrad_stays_in_its_ball() -> None:
    for rows in matrices(8):
        mean = rows.mean(0)
        away = direction(method(CAGrad, c=0.4)(rows @ rows.T), rows) - mean
        assert away.norm() <= 0.4 * mean.norm() * (1 + 1e-9)
        assert (rows @ (mean + away)).min() >= (rows @ mean).min() - 1e-9


def test_without_a_ball_cagrad_is_the_mean() -> None:
    for rows in matrices(9):
        torch.testing.assert_close(
            method(CAGrad, c=0.0)(rows @ rows.T), torch.full((len(rows),), 1 / len(rows), dtype=double)
        )


@pytest.mark.parametrize("dtype", [torch.float32, double])
@pytest.mark.parametrize("c", others_slow([0.0, 0.4, 0.9, 1.5], 0.4))
def test_cagrad_with_a_satisfied_task_is_the_mean(c: float, dtype: torch.dtype) -> None:
    """A task whose gradient is zero must not stop the others. None of these opposes the mean."""
    compared = 0
    for i, rows in enumerate(matrices(13)):
        rows[i % len(rows)] = 0
        if (rows @ rows.mean(0) < 0).any():
            continue
        compared += 1
        rows = rows.to(dtype)
        combined = direction(method(CAGrad, c=c)(rows @ rows.T), rows)
        torch.testing.assert_close(combined, rows.mean(0), rtol=1e-5, atol=1e-5 * rows.mean(0).norm().item())
    assert compared > CASES / 4


@pytest.mark.parametrize("num_tasks", [2, 3, 5])
def test_cagrad_trains_on_with_a_satisfied_task(num_tasks: int) -> None:
    planted = Planted(num_tasks)
    balancer = CAGrad(None, wrt=planted.shared, tasks=num_tasks)
    for satisfied in range(num_tasks):
        gradients = [gradient.abs() for gradient in draw(num_tasks, torch.Generator().manual_seed(14))]
        losses = torch.ones(num_tasks, dtype=double)
        for tensor in (*gradients, losses):
            tensor[satisfied] = 0
        torch.testing.assert_close(planted.step(balancer, gradients, losses), matrix(gradients).mean(0))


def test_cagrad_with_a_satisfied_task_still_helps_the_one_that_the_mean_harms() -> None:
    rows = torch.tensor([[0.0, 0.0], [4.0, 0.0], [-1.0, 0.1]], dtype=double)
    weights = method(CAGrad, c=0.4)(rows @ rows.T)
    mean = rows.mean(0)
    torch.testing.assert_close(direction(weights, rows), mean + 0.4 * mean.norm() * unit(rows[2]), rtol=1e-5, atol=0)


def test_cagrad_is_the_mean_where_a_point_is_pareto_stationary() -> None:
    """The mean of the first case is zero. Those of the others are not, and no direction lowers all losses."""
    pytest.importorskip("cvxpy")
    opposed = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=double)
    orthogonal = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=double)
    triangle = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [-1.0, -2.0]], dtype=double)
    for rows, c in ((opposed, 0.4), (orthogonal, 0.4), (orthogonal, 1.5), (triangle, 1.5)):
        weights = method(CAGrad, c=c)(rows @ rows.T)
        torch.testing.assert_close(weights, torch.full_like(weights, 1 / len(rows)))
        assert not torchjd().CAGrad(c=c).gramian_weighting(rows @ rows.T).any()


def test_cagrad_converges_to_a_minimum_of_the_mean_loss() -> None:
    """Of the losses x, -x and y^2 / 2: for each y, no direction lowers the first two."""
    point = torch.nn.Parameter(torch.tensor([0.3, 2.0], dtype=double))
    balancer = CAGrad(None, wrt=[point], tasks=3, c=0.4)
    optimizer = torch.optim.SGD([point], lr=1.0)
    for _ in range(40):
        optimizer.zero_grad()
        balancer([point[0], -point[0], point[1].square() / 2]).backward()
        optimizer.step()
    torch.testing.assert_close(point.detach(), torch.tensor([0.3, 0.0], dtype=double), rtol=0, atol=1e-5)


def test_aligned_gradients_are_orthogonal_and_equally_long() -> None:
    for rows in matrices(10):
        gramian = rows @ rows.T
        weights = method(AlignedMTL)(gramian)
        values, vectors = torch.linalg.eigh(gramian)
        aligned = values[0].sqrt() * (vectors / values.sqrt()) @ vectors.T @ rows
        torch.testing.assert_close(
            aligned @ aligned.T, values[0] * torch.eye(len(rows), dtype=double), rtol=0, atol=1e-8 * values[-1].item()
        )
        torch.testing.assert_close(direction(weights, rows), aligned.mean(0), rtol=1e-6, atol=1e-9)


def in_plain_python(rows: Tensor, order: Tensor) -> Tensor:
    """Return the direction of PCGrad's algorithm 1, computed on the gradients themselves."""
    projected = []
    for i, gradient in enumerate(rows):
        for j in order[i].tolist():
            product = gradient @ rows[j]
            if product < 0:
                gradient = gradient - product / rows[j].square().sum() * rows[j]
        projected.append(gradient)
    return torch.stack(projected).sum(0)


def random_orders(num_tasks: int, generator: torch.Generator) -> Tensor:
    orders = []
    for i in range(num_tasks):
        others = torch.tensor([j for j in range(num_tasks) if j != i])
        orders.append(others[torch.randperm(num_tasks - 1, generator=generator)])
    return torch.stack(orders)


def test_pcgrad_is_its_algorithm() -> None:
    generator = torch.Generator().manual_seed(11)
    for rows in matrices(11):
        order = random_orders(len(rows), generator)
        torch.testing.assert_close(
            direction(surgery(rows @ rows.T, order), rows), in_plain_python(rows, order), rtol=1e-8, atol=1e-9
        )


def test_pcgrad_of_two_tasks_needs_no_order() -> None:
    order, generator = torch.tensor([[1], [0]]), torch.Generator().manual_seed(12)
    for _ in range(50):
        rows = torch.randn(2, 5, dtype=torch.float64, generator=generator)
        torch.testing.assert_close(direction(of_two(rows @ rows.T), rows), in_plain_python(rows, order))
    with_zero = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    torch.testing.assert_close(of_two(with_zero @ with_zero.T), torch.ones(2))


@pytest.mark.parametrize("num_tasks", [2, 3])
def test_pcgrad_with_a_gradient_whose_square_is_zero(num_tasks: int) -> None:
    """It can't be projected on, although its product with another gradient is not zero yet."""
    rows = torch.eye(num_tasks)
    rows[1, 0], rows[0] = -1.0, rows[0] * 1e-24
    gramian = rows @ rows.T
    assert gramian[0, 0] == 0
    assert gramian[0, 1] < 0
    order = torch.stack([torch.tensor([j for j in range(num_tasks) if j != i]) for i in range(num_tasks)])
    torch.testing.assert_close(surgery(gramian, order), torch.ones(num_tasks))
    torch.testing.assert_close(of_two(gramian[:2, :2]), torch.ones(2))
    gramian[0, 0] = torch.nan
    assert not of_two(gramian[:2, :2]).isfinite().all()


def vaccine_in_plain_python(rows: Tensor, usual: Tensor, order: Tensor, beta: float) -> Tensor:
    """Return the direction of GradVac's algorithm 1, computed on the gradients themselves; update ``usual``."""
    turned = []
    for i, gradient in enumerate(rows):
        for j in order[i].tolist():
            cosine = gradient @ rows[j] / (gradient.norm() * rows[j].norm())
            target = usual[i, j].clone()
            if cosine < target:
                sine, usual_sine = (1 - cosine**2).sqrt(), (1 - target**2).sqrt()
                part = gradient.norm() * (target * sine - cosine * usual_sine) / (rows[j].norm() * usual_sine)
                gradient = gradient + part * rows[j]
            usual[i, j] = (1 - beta) * target + beta * cosine
        turned.append(gradient)
    return torch.stack(turned).sum(0)


def test_gradvac_is_its_algorithm() -> None:
    generator = torch.Generator().manual_seed(12)
    ours, theirs = torch.zeros(4, 4, dtype=double), torch.zeros(4, 4, dtype=double)
    for _ in range(CASES):
        rows = torch.randn(4, 9, generator=generator, dtype=double) + torch.randn(
            1, 9, generator=generator, dtype=double
        )
        order = random_orders(4, generator)
        weights, ours = vaccinate(rows @ rows.T, ours, order, beta=0.1)
        expected = vaccine_in_plain_python(rows, theirs, order, beta=0.1)
        torch.testing.assert_close(direction(weights, rows), expected, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


# TorchJD.


def torchjd() -> Any:
    return pytest.importorskip("torchjd.aggregation")


def agree(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], seed: int) -> None:
    for rows in matrices(seed):
        torch.testing.assert_close(direction(ours(rows @ rows.T), rows), theirs(rows), rtol=1e-4, atol=1e-6)


def test_imtl_g_against_torchjd() -> None:
    agree(method(IMTLGradient), torchjd().IMTLG(), 20)


def test_config_against_torchjd() -> None:
    agree(method(ConFIG), torchjd().ConFIG(), 21)


def test_aligned_mtl_against_torchjd() -> None:
    agree(method(AlignedMTL), torchjd().AlignedMTL(), 22)


@pytest.mark.parametrize(("cls", "name"), [(UPGrad, "UPGrad"), (DualProj, "DualProj")])
def test_projections_against_torchjd(cls: type[GradientBalancer], name: str) -> None:
    pytest.importorskip("quadprog")
    from torchjd.linalg import QuadprogProjector

    assert "reg_eps" in inspect.signature(QuadprogProjector).parameters
    agree(method(cls), getattr(torchjd(), name)(projector=QuadprogProjector(norm_eps=0.0, reg_eps=1e-12)), 23)


@pytest.mark.slow
@few_or_all
def test_mgda_against_torchjd(cases: int) -> None:
    theirs = torchjd().MGDA(epsilon=1e-12, max_iters=2000)
    for rows in matrices(24, cases=cases):
        ours, frank_wolfe = direction(method(MGDA)(rows @ rows.T), rows), theirs(rows)
        assert ours.norm() <= frank_wolfe.norm() * (1 + 1e-9)
        if len(rows) == 2:
            torch.testing.assert_close(ours, frank_wolfe, rtol=1e-4, atol=1e-6)


@few_or_all
def test_cagrad_against_torchjd(cases: int) -> None:
    pytest.importorskip("cvxpy")
    theirs = torchjd().CAGrad(c=0.4, norm_eps=1e-8)
    differences = []
    for rows in matrices(25, cases=cases):
        ours, expected = direction(method(CAGrad, c=0.4)(rows @ rows.T), rows), theirs(rows)
        mean = rows.mean(0)
        assert (ours - mean).norm() <= 0.4 * mean.norm() * (1 + 1e-9)
        # The objective, within the ball.
        assert (rows @ ours).min() >= (rows @ expected).min() - 1e-7 * rows.norm() ** 2
        differences.append((ours - expected).norm() / expected.norm())
    assert torch.stack(differences).quantile(0.9) < 1e-4
    assert max(differences) < 1e-3


@pytest.mark.slow
def test_fairgrad_against_torchjd() -> None:
    theirs = torchjd().FairGradWeighting(alpha=2.0)
    compared = 0
    for rows in matrices(26):
        gramian = rows @ rows.T
        weights, expected = method(FairGrad, alpha=2.0)(gramian), theirs(gramian)
        if (gramian @ expected * expected**0.5 - 1).abs().max() < 1e-6:
            compared += 1
            torch.testing.assert_close(direction(weights, rows), direction(expected, rows), rtol=1e-4, atol=1e-5)
    assert compared > CASES / 2


@few_or_all
def test_nash_mtl_against_torchjd(cases: int) -> None:
    pytest.importorskip("ecos")
    aggregation = torchjd()
    compared = 0
    for rows in matrices(27, most_tasks=4, cases=cases):
        rows = rows / rows.norm(dim=1, keepdim=True)
        theirs = aggregation.NashMTL(n_tasks=len(rows), max_norm=0.0, optim_niter=100)
        ours, expected = unit(direction(method(NashMTL)(rows @ rows.T), rows)), unit(theirs(rows))
        if (ours - expected).norm() < 1e-2:
            compared += 1
        gains, their_gains = rows @ ours, rows @ expected
        assert gains.log().sum() >= their_gains.clamp(min=1e-30).log().sum() - 1e-9  # the bargain's objective
    assert compared > cases / 2


def test_pcgrad_against_torchjd() -> None:
    theirs = torchjd().PCGrad()
    for seed, rows in enumerate(matrices(28)):
        torch.manual_seed(seed)
        orders = [torch.randperm(len(rows)) for _ in rows]  # as it draws them
        order = torch.stack([each[each != i] for i, each in enumerate(orders)])
        torch.manual_seed(seed)
        torch.testing.assert_close(direction(surgery(rows @ rows.T, order), rows), theirs(rows), rtol=1e-4, atol=1e-6)


def test_gradvac_against_torchjd() -> None:
    theirs = torchjd().GradVac(beta=0.1, eps=0.0)
    generator = torch.Generator().manual_seed(29)
    agreements = torch.zeros(4, 4, dtype=double)
    for seed in range(CASES):
        rows = torch.randn(4, 9, generator=generator, dtype=double)
        rows += torch.randn(1, 9, generator=generator, dtype=double)
        torch.manual_seed(seed)
        others = [torch.tensor([j for j in range(4) if j != i]) for i in range(4)]
        order = torch.stack([each[torch.randperm(3)] for each in others])  # as it draws them
        weights, agreements = vaccinate(rows @ rows.T, agreements, order, beta=0.1)
        torch.manual_seed(seed)
        torch.testing.assert_close(direction(weights, rows), theirs(rows), rtol=1e-4, atol=1e-6)
