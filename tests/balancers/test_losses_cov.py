"""CoV-weighting, against means and variances over the history; with decay, against the official code's recursion."""

import math

import numpy as np
import pytest
import torch

from balancers.coefficient_of_variation import CoefficientOfVariation

from .planted import state


def sequence(num_tasks: int, steps: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    scales = np.exp(2 * generator.standard_normal(num_tasks))
    return scales * np.exp(0.5 * generator.standard_normal((steps, num_tasks)))


def run(balancer: CoefficientOfVariation, losses: np.ndarray) -> np.ndarray:
    weights = []
    for row in losses:
        balancer(torch.tensor(row, requires_grad=True)).backward()
        weights.append(balancer.weights.numpy())
    return np.stack(weights)


def from_history(losses: np.ndarray) -> np.ndarray:
    """Return the weights of each step, from all ratios before it."""
    steps, num_tasks = losses.shape
    ratios = np.stack([losses[t] / losses[: max(t, 1)].mean(0) for t in range(steps)])
    ratios[0] = 1
    weights = np.full((steps, num_tasks), 1 / num_tasks)
    for t in range(2, steps):
        variations = np.sqrt(ratios[:t].var(0) + 1e-8) / ratios[:t].mean(0)
        weights[t] = variations / variations.sum()
    return weights


def decayed(losses: np.ndarray, decay: float) -> np.ndarray:
    """Return the weights of each step, with means that decay and a sum of squares that does not."""
    steps, num_tasks = losses.shape
    weights = np.full((steps, num_tasks), 1 / num_tasks)
    mean_loss, mean_ratio, total = losses[0], np.ones(num_tasks), np.zeros(num_tasks)
    for t in range(1, steps):
        if t >= 2:
            variations = np.sqrt(total / t + 1e-8) / mean_ratio
            weights[t] = variations / variations.sum()
        ratio = losses[t] / mean_loss
        new = decay * mean_ratio + (1 - decay) * ratio
        total = total + (ratio - mean_ratio) * (ratio - new)
        mean_ratio, mean_loss = new, decay * mean_loss + (1 - decay) * losses[t]
    return weights


def test_is_the_variation_over_the_history():
    for seed in range(30):
        losses = sequence(2 + seed % 4, 20, seed)
        np.testing.assert_allclose(
            run(CoefficientOfVariation(losses.shape[1]), losses), from_history(losses), rtol=1e-8
        )


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99])
def test_with_decay(decay: float):
    for seed in range(10):
        losses = sequence(2 + seed % 4, 20, seed)
        np.testing.assert_allclose(
            run(CoefficientOfVariation(losses.shape[1], decay=decay), losses), decayed(losses, decay), rtol=1e-8
        )


def test_a_losss_scale_cancels_out():
    losses = sequence(3, 12, seed=1)
    scaled = run(CoefficientOfVariation(3), losses * np.array([1e-3, 1.0, 1e3]))
    np.testing.assert_allclose(scaled, run(CoefficientOfVariation(3), losses), rtol=1e-8)


def test_constant_losses_weigh_the_same():
    np.testing.assert_allclose(run(CoefficientOfVariation(2), np.ones((6, 2))), 0.5)


def test_the_tasks_given_share_the_rest_of_the_weights():
    """Two of three tasks have the state of two alone, and share all but the weight that the third one keeps."""
    losses = sequence(3, 9, seed=2)
    three, two = CoefficientOfVariation(["a", "b", "c"]), CoefficientOfVariation(2)
    run(three, losses[:5])
    run(two, losses[:5, [0, 2]])
    before = state(three)
    for row in losses[5:]:
        balanced = [torch.tensor(loss, requires_grad=True) for loss in row]
        three({"a": balanced[0], "c": balanced[2]}).backward()
        two([balanced[0], balanced[2]]).backward()
    for key in ("mean_losses", "mean_ratios", "squares", "counts"):
        torch.testing.assert_close(three.get_buffer(key)[[0, 2]], two.get_buffer(key), rtol=0, atol=0)
    expected = two.next_weights * (1 - before["next_weights"][1])
    torch.testing.assert_close(three.next_weights[[0, 2]], expected)


def test_a_windows_mean_is_one_step():
    losses = sequence(2, 6, seed=5)
    once, twice = CoefficientOfVariation(2), CoefficientOfVariation(2, accumulate=2)
    run(once, losses)
    run(twice, np.stack([0.5 * losses, 1.5 * losses], 1).reshape(-1, 2))
    torch.testing.assert_close(once.squares, twice.squares)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, math.nan])
def test_wrong_decay(decay: float):
    with pytest.raises(ValueError, match="decay is"):
        CoefficientOfVariation(2, decay=decay)
