"""CoBa against a plain computation of its formulas, and what they promise."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from balancers import CoBa

from ..slow_params import others_slow

pytestmark = pytest.mark.on_device
TASKS = ("a", "b", "c")


class Trained:
    """A balancer that sees given losses of a second batch."""

    def __init__(self, num_tasks: int = 3, **options: Any) -> None:
        self.balancer = CoBa(list(TASKS[:num_tasks]), **options)

    def step(self, second: Sequence[float] | Tensor, tasks: Sequence[str] | None = None) -> Tensor:
        """Make a step, and return its weights."""
        tasks = tasks or TASKS[: self.balancer.num_tasks]
        values = torch.as_tensor(second, dtype=torch.float64)
        self.balancer.second_batch(lambda: {task: values[TASKS.index(task)] for task in tasks})
        losses = {task: torch.tensor(2.0, dtype=torch.float64, requires_grad=True) for task in tasks}
        self.balancer(losses).backward()
        return self.balancer.weights

    def run(self, losses: Tensor) -> Tensor:
        return torch.stack([self.step(each) for each in losses])


def softmax(values: Sequence[float]) -> np.ndarray:
    exponentials = [math.exp(value - max(values)) for value in values]
    return np.array(exponentials) / sum(exponentials)


def reference(losses: np.ndarray, window: int, warm_up: int, tau: float) -> np.ndarray:
    """Return the weights of each step for losses ``(t, T)``, with lists that keep all steps."""
    T = losses.shape[1]
    found, slopes = [], list[list[float]]()
    for t in range(len(losses)):
        if t < warm_up:
            found.append(np.full(T, 1 / T))
            continue
        begin = max(0, t - window + 1)
        ratios = losses[begin : t + 1] / losses[0]
        slopes.append([np.polyfit(np.arange(begin, t + 1), ratio, 1)[0] for ratio in ratios.T])
        now, recent = slopes[-1], slopes[-window:]
        n = len(recent)
        relative = softmax([T * alpha / sum(map(abs, now)) for alpha in now])
        absolute = softmax([-n * now[i] / sum(abs(row[i]) for row in recent) for i in range(T)])
        stride = 1
        while len(slopes) - 1 > window * stride:
            stride *= 2
        largest = [*(max(row) for row in slopes[:-1][::stride]), max(now)]
        size = sum(map(abs, largest)) / len(largest)
        factor = min(1.0, len(largest) * softmax([-tau * each / size for each in largest])[-1])
        found.append(factor * relative + (1 - factor) * absolute)
    return np.array(found)


def curves(steps: int, num_tasks: int, seed: int = 0) -> Tensor:
    """Return losses that fall at different speeds, with noise; some rise again."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(steps, dtype=torch.float64).unsqueeze(1) / steps
    speeds, turns, noise = (torch.rand(k, num_tasks, generator=generator, dtype=torch.float64) for k in (1, 1, steps))
    falling = torch.exp(-5 * speeds * t) + 2 * (t - turns).clamp(min=0).square()
    return 10 ** (2 * speeds - 1) * falling * (1 + 0.05 * noise)


@pytest.mark.parametrize("num_tasks", others_slow([1, 2, 3], 3))
@pytest.mark.parametrize(
    ("window", "warm_up", "tau"), [(20, 10, 5.0), (7, 30, 1.0), (200, 100, 5.0), (2, 1, 10.0), (400, 1, 5.0)], ids=str
)
def test_a_sequence_is_the_formulas(window: int, warm_up: int, tau: float, num_tasks: int):
    losses = curves(300, num_tasks)
    weights = Trained(num_tasks, window=window, warm_up=warm_up, tau=tau).run(losses)
    expected = torch.tensor(reference(losses.cpu().numpy(), window, warm_up, tau))
    torch.testing.assert_close(weights, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(weights.sum(1), torch.ones(300, dtype=torch.float64))
    if num_tasks > 1:
        assert weights[warm_up:].std(0).min() > 1e-3


def test_before_the_warm_up_all_weights_are_equal():
    weights = Trained(window=5, warm_up=4).run(curves(6, 3))
    torch.testing.assert_close(weights[:4], torch.full((4, 3), 1 / 3, dtype=torch.float64))
    assert (weights[4] - 1 / 3).abs().max() > 0.01


@pytest.mark.parametrize("level", [0.3, 1e6])
def test_losses_that_stay_give_equal_weights(level: float):
    weights = Trained(window=5, warm_up=1).run(torch.full((12, 3), level, dtype=torch.float64))
    torch.testing.assert_close(weights, torch.full((12, 3), 1 / 3, dtype=torch.float64))


def test_a_task_whose_loss_stays_and_two_that_fall():
    t = torch.arange(30, dtype=torch.float64)
    losses = torch.stack([torch.ones_like(t), 1 - 0.01 * t, 1 - 0.02 * t], 1)
    last = Trained(window=6, warm_up=2).run(losses)[-1]
    assert last[0] > last[1] > last[2]


def test_a_diverging_task_loses_weight():
    t = torch.arange(60, dtype=torch.float64) / 60
    rising = torch.stack([torch.exp(-t), torch.exp(-t) + 5 * (t - 0.5).clamp(min=0) ** 3], 1)
    weights = Trained(2, window=30, warm_up=5).run(rising)
    torch.testing.assert_close(weights[29], torch.full((2,), 0.5, dtype=torch.float64))
    assert weights[-1][1] < 0.2


def test_a_task_that_goes_on_diverging_does_not_get_its_weight_back():
    """Its slope is compared with those of the time before, however long ago that was."""
    t = torch.arange(400, dtype=torch.float64)
    falling = torch.exp(-t.unsqueeze(1) / torch.tensor([60.0, 90.0, 120.0], dtype=torch.float64))
    falling[:, 0] += 0.01 * (t - 120).clamp(min=0)
    weights = Trained(window=40, warm_up=20).run(falling)
    assert weights[160:, 0].max() < 0.2


def test_the_divergence_factor_is_clamped():
    """Losses that fall ever faster would give a factor above 1, and other weights than the relative score."""
    t = torch.arange(40, dtype=torch.float64)
    losses = torch.stack([1 - 2e-4 * t.square(), 1 - 5e-4 * t.square()], 1)
    weights = Trained(2, window=20, warm_up=1).run(losses)
    slopes = [np.polyfit(np.arange(20), each, 1)[0] for each in losses[-20:].cpu().numpy().T]
    relative = softmax([2 * slope / sum(map(abs, slopes)) for slope in slopes])
    np.testing.assert_allclose(weights[-1].cpu(), relative, rtol=1e-6)
    assert weights[-1][0] > weights[-1][1]


def test_the_scale_of_a_loss_does_not_matter():
    losses = curves(60, 3)
    options = {"window": 8, "warm_up": 4}
    factors = torch.tensor([1e-3, 1.0, 1e4], dtype=torch.float64)
    one, other = Trained(**options).run(losses), Trained(**options).run(losses * factors)
    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_the_order_of_the_tasks_does_not_matter():
    losses = curves(60, 3)
    order = torch.tensor([2, 0, 1])
    options = {"window": 8, "warm_up": 4}
    one, other = Trained(**options).run(losses), Trained(**options).run(losses[:, order])
    torch.testing.assert_close(one[:, order], other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 7])
def test_a_second_loss_that_is_not_positive_changes_nothing(bad: float, at: int):
    """Neither in the first step, whose losses all others are divided by, nor later."""
    losses = curves(14, 3)
    disturbed, calm = Trained(window=5, warm_up=2), Trained(window=5, warm_up=2)
    for t, each in enumerate(losses):
        if t == at:
            before = disturbed.balancer.weights
            spoilt = each.clone()
            spoilt[1] = bad
            assert disturbed.step(spoilt).equal(before.double() if t else torch.full((3,), 1 / 3, dtype=torch.float64))
        assert disturbed.step(each).equal(calm.step(each))


def test_a_task_left_out_keeps_its_weight_and_its_history():
    losses = curves(40, 3)
    some, few = Trained(window=6, warm_up=3), Trained(2, window=6, warm_up=3)
    for each in losses[:10]:
        before = some.step(each)
    for each in losses[10:20]:
        weights = some.step(each, ("a", "b"))
        assert weights[2].equal(before[2])
        torch.testing.assert_close(weights.sum().item(), 1.0)
    assert some.balancer.counts.tolist() == [20.0, 20.0, 10.0]
    for each in losses[:20]:
        expected = few.step(each[:2])
    share = 1 - before[2]
    torch.testing.assert_close(weights[:2], share * expected, rtol=1e-8, atol=0)


def test_statistics_and_wrong_options():
    trained = Trained(window=5, warm_up=1)
    trained.run(torch.tensor([[1.0, 2.0, 4.0], [0.5, 2.0, 4.0]], dtype=torch.float64))
    torch.testing.assert_close(
        trained.balancer.statistics["slopes"], torch.tensor([-0.5, 0.0, 0.0], dtype=torch.float64)
    )
    assert trained.balancer.scalars()["slopes/a"] == -0.5
    for options in ({"window": 1}, {"window": 2.5}, {"warm_up": 0}, {"tau": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
            CoBa(2, **options)
