"""Methods that move their weights from step to step by the losses: self-adaptive weights, GO4Align, LDC-MTL.

No peer of theirs can be installed, so that each is compared with its objective, written out and trained by autograd and
``torch.optim``, or with a plain formula. GO4Align's groups are compared with all partitions there are.

Differences from the official codes: self-adaptive weights belong to tasks, not to points, and start at 1; GO4Align's
groups are the best ones, not those that a random start of k-means finds, and shares that become tiny do not become 0.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from balancers import LDCMTL, GO4Align, LossBalancer, SelfAdaptiveWeighting
from balancers.go4align import group_means

from .loss_rows import run

double = torch.float64
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
either_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)
either_mask = pytest.mark.parametrize("mask", ["square", "sigmoid"])


def sequence(num_tasks: int, seed: int, steps: int = 25) -> Tensor:
    """Draw positive losses, ``(steps, T)``, that are some orders of magnitude apart."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.randn(num_tasks, dtype=double, generator=generator)
    return torch.exp(scales + 0.5 * torch.randn(steps, num_tasks, dtype=double, generator=generator))


def step(balancer: LossBalancer, **losses: float) -> None:
    """Train one step on the losses of some tasks."""
    balancer({task: torch.tensor(loss, dtype=double, requires_grad=True) for task, loss in losses.items()}).backward()


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=double)


# Self-adaptive weights


def played(losses: Tensor, start: Sequence[float], mask: str, optimizer: str, lr: float) -> tuple[Tensor, Tensor]:
    """Return the weights of each step, ``(steps, T)``, and the last lambda, of a game played by ``torch.optim``."""
    masks: dict[str, Callable[[Tensor], Tensor]] = {"square": lambda x: x**2, "sigmoid": torch.sigmoid}
    adaptations = doubles(*start).requires_grad_()
    player = OPTIMIZERS[optimizer]([adaptations], lr=lr, maximize=True)
    weights = []
    for row in losses:
        leaf = row.clone().requires_grad_()
        objective = torch.dot(masks[mask](adaptations), leaf)
        slopes, adaptations.grad = torch.autograd.grad(objective, [leaf, adaptations])
        weights.append(slopes)
        player.step()
    return torch.stack(weights), adaptations.detach()


@either_mask
@either_optimizer
def test_self_adaptive_is_a_game_of_descent_and_ascent(mask: str, optimizer: str) -> None:
    for seed in range(20):
        losses = sequence(1 + seed % 4, seed)
        start = [0.5 + 0.3 * i - 0.1 * seed for i in range(losses.shape[1])]
        start = [value or 1.0 for value in start]
        balancer = SelfAdaptiveWeighting(len(start), mask_function=mask, initial=start, lr=0.01, optimizer=optimizer)
        weights, adaptations = played(losses, start, mask, optimizer, 0.01)
        torch.testing.assert_close(run(balancer, losses), weights, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(balancer.adaptations, adaptations, rtol=1e-9, atol=1e-12)


def test_self_adaptive_for_200_steps() -> None:
    losses = sequence(3, 5, steps=200)
    weights, _ = played(losses, [1.0] * 3, "square", "adam", 0.005)
    torch.testing.assert_close(run(SelfAdaptiveWeighting(3), losses), weights, rtol=1e-8, atol=0)


@either_mask
def test_the_weights_of_positive_losses_only_rise(mask: str) -> None:
    weights = run(SelfAdaptiveWeighting(3, mask_function=mask), sequence(3, 1, steps=100))
    assert (weights.diff(dim=0) > 0).all()
    assert mask == "square" or (weights < 1).all()


@either_mask
def test_a_larger_loss_raises_its_weight_by_more(mask: str) -> None:
    balancer = SelfAdaptiveWeighting(3, mask_function=mask, optimizer="sgd")
    weights = run(balancer, doubles(0.1, 1.0, 10.0).expand(20, 3))[-1]
    assert (weights.diff() > 0).all()


@either_mask
@either_optimizer
def test_losses_of_zero_and_below(mask: str, optimizer: str) -> None:
    """A loss of zero leaves its weight alone; one below zero lowers it."""
    weights = run(SelfAdaptiveWeighting(2, mask_function=mask, optimizer=optimizer), doubles(0.0, -1.0).expand(10, 2))
    assert weights[:, 0].eq(weights[0, 0]).all()
    assert (weights[:, 1].diff() < 0).all()


def test_a_sigmoid_stays_below_one_where_a_square_grows() -> None:
    losses = doubles(1.0, 100.0).expand(500, 2)
    square = run(SelfAdaptiveWeighting(2, lr=0.1), losses)[-1]
    sigmoid = run(SelfAdaptiveWeighting(2, lr=0.1, mask_function="sigmoid"), losses)[-1]
    assert square.min() > 1000
    assert 0.99 < sigmoid.min() <= sigmoid.max() <= 1


@pytest.mark.parametrize(
    ("mask", "initial", "weights"),
    [
        ("square", 1.0, [1.0, 1.0]),
        ("square", [0.5, -3.0], [0.25, 9.0]),
        ("sigmoid", 0.0, [0.5, 0.5]),
        ("sigmoid", {"b": 1000.0, "a": -1000.0}, [0.0, 1.0]),
        ("sigmoid", math.log(3), [0.75, 0.75]),
    ],
)
def test_initial_weights(mask: str, initial: Any, weights: list[float]) -> None:
    """They are shown before the first step, and are those of the first step."""
    balancer = SelfAdaptiveWeighting(["a", "b"], mask_function=mask, initial=initial)
    torch.testing.assert_close(balancer.weights, torch.tensor(weights))
    torch.testing.assert_close(run(balancer, torch.ones(1, 2, dtype=double))[0], doubles(*weights))


def test_eval_mode_keeps_the_weights() -> None:
    balancer = SelfAdaptiveWeighting(2)
    weights = run(balancer, sequence(2, 3))[-1]
    balancer.eval()
    assert run(balancer, sequence(2, 4)).eq(weights).all()


def test_self_adaptive_wrong_input() -> None:
    for options, message in (
        ({"initial": [1.0, 0.0]}, r"initial is \[1.0, 0.0\]; expected no 0"),
        ({"initial": [1.0]}, "initial has 1 entry"),
        ({"initial": math.nan}, "initial is nan"),
        ({"mask_function": "cube"}, "mask_function is 'cube'"),
        ({"optimizer": "lbfgs"}, "optimizer is 'lbfgs'"),
        ({"lr": 0.0}, "lr is"),
    ):
        with pytest.raises(ValueError, match=message):
            SelfAdaptiveWeighting(["a", "b"], **options)
    assert SelfAdaptiveWeighting(2, mask_function="sigmoid", initial=0.0).weights.tolist() == [0.5, 0.5]


# GO4Align


def partitioned(values: Tensor, num_groups: int) -> tuple[Tensor, float]:
    """Try all ways to put ``values`` into groups; return each one's group mean in the best, and the squared error."""
    best, error = values, math.inf
    for places in itertools.product(range(min(num_groups, len(values))), repeat=len(values)):
        group = torch.tensor(places)
        means = torch.stack([values[group == own].mean() for own in places])
        found = (values - means).square().sum().item()
        if found < error:
            best, error = means, found
    return best, error


def split(values: Tensor, num_groups: int) -> tuple[Tensor, float]:
    """Do the same for sorted values cut into intervals, which is less to try."""
    ordered, order = values.sort()
    best, error = values, math.inf
    for cuts in itertools.combinations(range(1, len(values)), min(num_groups, len(values)) - 1):
        parts = torch.tensor_split(ordered, cuts)
        means = torch.cat([part.mean().expand(len(part)) for part in parts])
        found = (ordered - means).square().sum().item()
        if found < error:
            best, error = means[order.argsort()], found
    return best, error


@pytest.mark.slow
def test_groups_are_the_best_of_all_partitions() -> None:
    generator = torch.Generator().manual_seed(0)
    for case in range(60):
        T = 1 + case % 5
        values = torch.randn(T, dtype=double, generator=generator).mul(1.5).exp()
        num_groups = 1 + case // 5 % 4
        expected, error = partitioned(values, num_groups)
        means = group_means(values, num_groups)
        torch.testing.assert_close(means, expected, rtol=1e-12, atol=0)
        assert (values - means).square().sum() <= error + 1e-12


@pytest.mark.slow
def test_groups_are_the_best_of_all_intervals() -> None:
    generator = torch.Generator().manual_seed(1)
    for case in range(250):
        T = 2 + case % 9
        values = torch.randn(T, dtype=double, generator=generator).mul([0.1, 1.0, 5.0][case % 3]).exp()
        for num_groups in (1, 2, 3, T - 1, T, T + 2):
            expected, _ = split(values, max(num_groups, 1))
            torch.testing.assert_close(group_means(values, max(num_groups, 1)), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, double])
def test_plain_groups_are_found_at_any_scale(dtype: torch.dtype) -> None:
    """In single precision too, with more values than all partitions can be tried of."""
    centers = torch.tensor([1.0, 3.0, 7.0, 20.0], dtype=dtype).repeat(15)
    generator = torch.Generator().manual_seed(2)
    noise = 0.1 * torch.randn(60, generator=generator, dtype=dtype)
    for scale in (1e-30, 1e-6, 1.0, 1e6, 1e30):
        values = scale * (centers + noise)
        means = group_means(values, 4)
        for center in centers[:4]:
            own = centers == center
            torch.testing.assert_close(means[own], values[own].mean().expand(15))


def test_a_group_of_small_values_is_told_apart_beside_a_large_one() -> None:
    """Sums of squares that are subtracted from each other would lose it."""
    values = doubles(1e8, 1.0, 2.0, 1.1, 2.1)
    torch.testing.assert_close(group_means(values, 3), doubles(1e8, 1.05, 2.05, 1.05, 2.05), rtol=1e-12, atol=0)


def test_equal_values_have_one_mean() -> None:
    for num_groups in (1, 2, 3, 5):
        values = torch.full((4,), 0.3, dtype=double)
        torch.testing.assert_close(group_means(values, num_groups), values)
    torch.testing.assert_close(group_means(doubles(2.0, 1.0, 2.0, 1.0), 2), doubles(2.0, 1.0, 2.0, 1.0))
    torch.testing.assert_close(group_means(doubles(2.0, 1.0, 2.0, 1.0), 3), doubles(2.0, 1.0, 2.0, 1.0))


def test_groups_of_many_rows_at_once() -> None:
    values = torch.rand(4, 2, 6, dtype=double) + 0.1
    for num_groups in (1, 3, 6):
        expected = torch.stack([torch.stack([group_means(row, num_groups) for row in rows]) for rows in values])
        torch.testing.assert_close(group_means(values, num_groups), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("num_groups", [1, 2, 3])
def test_go4align_is_its_formula(num_groups: int) -> None:
    """The official code's formula, with the best groups; the weights of a step have the shares of that step."""
    for seed in range(20):
        losses = sequence(1 + seed % 5, seed, steps=12)
        step_size = [1e-4, 1e-2, 1.0][seed % 3]
        p = torch.full_like(losses[0], 1 / losses.shape[1])
        weights = run(GO4Align(len(p), num_groups=num_groups, step_size=step_size), losses)
        for row, found in zip(losses, weights, strict=True):
            p = p * torch.exp(-step_size * row)
            p = p / p.sum()
            q = row.sum() / row * p
            expected = q.mean().expand_as(q) if num_groups == 1 else split(q, num_groups)[0]
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_go4align_has_no_more_weights_than_groups() -> None:
    for num_groups in (1, 2, 3, 8):
        weights = run(GO4Align(6, num_groups=num_groups), sequence(6, 7))
        assert all(len(row.unique()) == min(num_groups, 6) for row in weights)


def test_go4align_has_equal_weights_for_equal_losses() -> None:
    weights = run(GO4Align(4, num_groups=3), torch.full((10, 4), 0.7, dtype=double))
    torch.testing.assert_close(weights, torch.ones(10, 4, dtype=double))


def test_go4align_with_a_group_for_each_task_makes_up_for_scales() -> None:
    """With small steps the shares stay equal, so that all weighted losses are the mean loss."""
    losses = sequence(3, 2)
    weights = run(GO4Align(3, num_groups=3, step_size=1e-12), losses)
    torch.testing.assert_close(weights * losses, losses.mean(1, keepdim=True).expand_as(losses))


def test_go4align_takes_share_from_a_task_whose_loss_stays_large() -> None:
    balancer = GO4Align(2, step_size=0.01)
    weights = run(balancer, doubles(1.0, 3.0).expand(100, 2))
    assert (weights[:, 1].diff() < 0).all()
    torch.testing.assert_close(balancer.log_shares.exp().sum(), doubles(1.0)[0])
    torch.testing.assert_close(balancer.log_shares.diff(), doubles(-0.01 * 2.0 * 100))


def test_a_share_can_come_back_from_below_the_least_number() -> None:
    """A share itself would have become zero, and stayed there."""
    balancer = GO4Align(2, step_size=1.0)
    run(balancer, doubles(1.0, 2000.0).expand(3, 2))
    assert balancer.log_shares.exp()[1] == 0
    run(balancer, doubles(3 * 1999.0, 1e-12).expand(1, 2))
    torch.testing.assert_close(balancer.log_shares.exp(), doubles(0.5, 0.5), rtol=1e-2, atol=0)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_go4align_stays_at_a_loss_that_is_not_positive(bad: float) -> None:
    for num_groups in (1, 2, 3, 4):
        balancer = GO4Align(4, num_groups=num_groups, step_size=0.1)
        weights, shares = run(balancer, sequence(4, 3))[-1], balancer.log_shares.clone()
        for task in range(4):
            losses = torch.ones(4, dtype=double)
            losses[task] = bad
            assert run(balancer, losses.unsqueeze(0)).equal(weights.unsqueeze(0))
            assert balancer.log_shares.equal(shares)


def test_go4align_without_some_tasks() -> None:
    """The others share what they had, and are weighed as if they were alone."""
    balancer = GO4Align(["a", "b", "c"], step_size=0.1, num_groups=3)
    step(balancer, a=1.0, b=2.0, c=3.0)
    before, weight = balancer.log_shares.exp(), balancer.weights[1]
    step(balancer, a=0.5, c=2.5)
    after = balancer.log_shares.exp()
    torch.testing.assert_close(after[1], before[1])
    torch.testing.assert_close(after.sum(), doubles(1.0)[0])
    torch.testing.assert_close(after[2] / after[0], before[2] / before[0] * math.exp(-0.1 * 2.0))
    p = after[[0, 2]] / after[[0, 2]].sum()
    torch.testing.assert_close(balancer.weights[[0, 2]], p * 3.0 / doubles(0.5, 2.5))
    assert balancer.weights[1] == weight
    step(balancer, b=0.4)
    torch.testing.assert_close(balancer.weights[1], doubles(1.0)[0])


def test_go4align_wrong_input() -> None:
    for options, message in (
        ({"num_groups": 0}, "num_groups is 0"),
        ({"num_groups": 1.5}, "num_groups is 1.5"),
        ({"step_size": 0.0}, "step_size is"),
        ({"step_size": math.inf}, "step_size is"),
    ):
        with pytest.raises(ValueError, match=message):
            GO4Align(2, **options)


# LDC-MTL


def discrepancy(phi: Tensor, losses: Tensor, rho: float) -> Tensor:
    """Return the objective, as the official code for CelebA has it."""
    u = torch.sigmoid(phi)
    gaps = u[:-1] * losses[:-1] - u[1:] * losses[1:]
    return u @ losses / u.sum().detach() + rho * gaps.abs().sum()


@pytest.mark.slow
@either_optimizer
def test_ldc_mtl_is_its_objective_trained_by_autograd(optimizer: str) -> None:
    for seed in range(20):
        losses = sequence(1 + seed % 6, seed)
        rho = [0.0, 0.01, 0.1, 1.0][seed % 4]
        balancer = LDCMTL(losses.shape[1], rho=rho, lr=0.02, optimizer=optimizer)
        phi = torch.ones(losses.shape[1], dtype=double, requires_grad=True)
        trainer = OPTIMIZERS[optimizer]([phi], lr=0.02)
        for row, found in zip(losses, run(balancer, losses), strict=True):
            leaf = row.clone().requires_grad_()
            expected, phi.grad = torch.autograd.grad(discrepancy(phi, leaf, rho), [leaf, phi])
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
            trainer.step()
        torch.testing.assert_close(balancer.logits, phi.detach(), rtol=1e-9, atol=1e-12)


def test_ldc_mtl_for_200_steps_with_losses_of_any_sign() -> None:
    losses = torch.randn(200, 5, dtype=double)
    phi = torch.ones(5, dtype=double, requires_grad=True)
    trainer = torch.optim.Adam([phi], lr=1e-3)
    for row, found in zip(losses, run(LDCMTL(5), losses), strict=True):
        leaf = row.clone().requires_grad_()
        expected, phi.grad = torch.autograd.grad(discrepancy(phi, leaf, 0.01), [leaf, phi])
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
        trainer.step()


def test_equal_weighted_losses_have_the_sign_zero() -> None:
    weights = run(LDCMTL(4, rho=1.0), doubles(2.0, 2.0, 2.0, 3.0).unsqueeze(0))[0]
    u = torch.sigmoid(doubles(1.0))
    torch.testing.assert_close(weights, 0.25 + u * doubles(0.0, 0.0, -1.0, 1.0))
    weights = run(LDCMTL(3, rho=1.0), torch.zeros(1, 3, dtype=double))[0]
    torch.testing.assert_close(weights, torch.full((3,), 1 / 3, dtype=double))


def test_a_task_below_both_neighbours_is_ascended_where_the_penalty_is_large() -> None:
    """Its weight is below zero exactly if twice rho times the sum of the sigmoids is above 1."""
    losses = doubles(1.0, 0.1, 1.0).unsqueeze(0)
    total = 3 * torch.sigmoid(doubles(1.0)).item()
    assert run(LDCMTL(3, rho=0.51 / total), losses)[0, 1] < 0
    assert run(LDCMTL(3, rho=0.49 / total), losses)[0, 1] > 0
    assert LDCMTL.may_ascend


def test_the_discrepancy_alone_is_closed_by_the_weights() -> None:
    """With a large penalty, the weighted losses of two tasks come together, by the larger one's weight."""
    losses = doubles(1.0, 3.0)
    balancer = LDCMTL(2, rho=100.0, lr=0.01)
    run(balancer, losses.expand(400, 2))
    first, second = (torch.sigmoid(balancer.logits) * losses).tolist()
    assert abs(first - second) < 0.05


def test_one_task_has_weight_one() -> None:
    weights = run(LDCMTL(1, rho=1.0, lr=0.1), sequence(1, 0, steps=50))
    torch.testing.assert_close(weights, torch.ones(50, 1, dtype=double))


def test_weights_stay_a_mean_where_all_sigmoids_vanish() -> None:
    """Nothing holds them up: positive losses lower them all."""
    balancer = LDCMTL(2)
    balancer.logits.copy_(doubles(-1000.0, -1001.0))
    [weights] = run(balancer, torch.ones(1, 2, dtype=double))
    torch.testing.assert_close(weights, torch.softmax(doubles(-1000.0, -1001.0), -1))


def test_the_order_of_the_tasks_matters() -> None:
    losses = doubles(1.0, 2.0, 3.0)
    one = run(LDCMTL(3, rho=0.1), losses.unsqueeze(0))[0]
    other = run(LDCMTL(3, rho=0.1), losses[[1, 0, 2]].unsqueeze(0))[0][[1, 0, 2]]
    assert not torch.allclose(one, other)


def test_a_task_left_out_is_passed_over() -> None:
    """Its neighbours are each other's then, and the sum is that of the tasks of the step."""
    balancer, alone = LDCMTL(["a", "b", "c"], rho=0.2), LDCMTL(["a", "c"], rho=0.2)
    step(balancer, a=1.0, c=3.0)
    step(alone, a=1.0, c=3.0)
    torch.testing.assert_close(balancer.weights[[0, 2]], alone.weights)
    torch.testing.assert_close(balancer.logits[[0, 2]], alone.logits)
    assert balancer.logits[1] == 1


def test_ldc_mtl_of_many_rows_at_once() -> None:
    losses = torch.rand(5, 2, 4)
    balancer = LDCMTL(4, rho=0.3)
    state = balancer.state()
    expected = torch.stack([torch.stack([balancer.weigh(row, state) for row in rows]) for rows in losses])
    torch.testing.assert_close(balancer.weigh(losses, state), expected)


def test_ldc_mtl_wrong_input() -> None:
    for options, message in (
        ({"rho": -0.1}, "rho is"),
        ({"rho": math.nan}, "rho is"),
        ({"lr": 0.0}, "lr is"),
        ({"optimizer": "lbfgs"}, "optimizer is 'lbfgs'"),
    ):
        with pytest.raises(ValueError, match=message):
            LDCMTL(2, **options)
