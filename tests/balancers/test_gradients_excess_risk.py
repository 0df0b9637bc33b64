"""ExcessMTL, against its formulas in NumPy and against TorchJD.

Differences from TorchJD:

- The first step only stores the risks that later ones are compared with, as in the official code. This is TorchJD's
  ``n_warmup_steps=1``; without it, TorchJD adds an update by the risks as they are.
- The step size is LibMTL's 0.01.
- A task that has had no gradient yet has a relative risk of 1, without 1e-7 in the denominator.
- Weights that have become zero can rise again.
"""

import math

import numpy as np
import pytest
import torch

from balancers.excess_risk import ExcessMTL

from .nets import build, inputs, losses_of
from .planted import Planted, draw, matrix, state


def make(num_tasks: int = 3, **options):
    planted = Planted(num_tasks)
    return planted, ExcessMTL(None, wrt=planted.shared, tasks=num_tasks, **options)


@pytest.mark.parametrize("step_size", [0.01, 0.3])
def test_is_its_formula(step_size: float):
    planted, balancer = make(step_size=step_size)
    generator = torch.Generator().manual_seed(1)
    weights, total, first = np.full(3, 1 / 3), 0.0, None
    for _ in range(15):
        gradients = draw(3, generator)
        rows = matrix(gradients).numpy()
        total = total + rows**2
        risks = np.array([row @ np.diag(1 / np.sqrt(t + 1e-7)) @ row for row, t in zip(rows, total, strict=True)])
        first = risks if first is None else first
        weights = weights * np.exp(step_size * risks / first)
        weights = weights / weights.sum()
        direction = planted.step(balancer, gradients)
        np.testing.assert_allclose(balancer.weights, weights, rtol=1e-10)
        np.testing.assert_allclose(direction, weights @ rows, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_like_torchjd():
    aggregation = pytest.importorskip("torchjd.aggregation")
    for seed in range(40):
        num_tasks = 2 + seed % 4
        generator = torch.Generator().manual_seed(seed)
        planted, balancer = make(num_tasks, step_size=0.2)
        weighting = aggregation.ExcessMTLWeighting(robust_step_size=0.2, n_warmup_steps=1)
        for _ in range(6):
            gradients = draw(num_tasks, generator)
            planted.step(balancer, gradients)
            torch.testing.assert_close(balancer.weights, weighting(matrix(gradients)), rtol=1e-4, atol=1e-6)


def test_a_losss_scale_cancels_out():
    generator = torch.Generator().manual_seed(2)
    scales = torch.tensor([1.0, 1e3, 1e6], dtype=torch.float64)
    (one, plain), (other, scaled) = make(step_size=0.3), make(step_size=0.3)
    for _ in range(5):
        gradients = draw(3, generator)
        one.step(plain, gradients)
        other.step(scaled, [g * scales.view(-1, *[1] * (g.ndim - 1)) for g in gradients])
    torch.testing.assert_close(scaled.weights, plain.weights, rtol=1e-4, atol=0)


def test_the_task_that_still_moves_gains_weight():
    planted, balancer = make(2, step_size=0.1)
    gradients = draw(2, torch.Generator().manual_seed(3))
    for k in range(10):
        planted.step(balancer, [torch.stack([g[0] * 0.5**k, g[1]]) for g in gradients])
    assert balancer.weights[1] > balancer.weights[0]


def test_a_task_without_a_gradient_has_not_begun():
    planted, balancer = make(2, step_size=0.1)
    generator = torch.Generator().manual_seed(4)
    for _ in range(3):
        planted.step(balancer, [torch.stack([g[0], torch.zeros_like(g[1])]) for g in draw(2, generator)])
    assert balancer.initial_risks[1] == 0
    assert balancer.weights.isfinite().all()
    planted.step(balancer, draw(2, generator))
    assert balancer.initial_risks[1] > 0


def test_the_tasks_given_share_the_rest_of_the_weights():
    """Two of three tasks are weighed as if they were alone, but for the weight that the third one keeps."""
    planted, pair = Planted(3), Planted(2)
    three = ExcessMTL(None, wrt=planted.shared, tasks=["a", "b", "c"], step_size=0.1)
    two = ExcessMTL(None, wrt=pair.shared, tasks=2, step_size=0.1)
    generator = torch.Generator().manual_seed(5)
    planted.step(three, draw(3, generator))
    held = three.weights[1].item()
    before = state(three)
    two.fit(torch.ones(2, dtype=torch.float64))
    for k in range(len(planted.shared)):
        two.get_buffer(f"squares_{k}").copy_(before[f"squares_{k}"][[0, 2]])
    two.initial_risks.copy_(before["initial_risks"][[0, 2]])
    for _ in range(3):
        gradients = draw(3, generator)
        losses = dict(zip("abc", planted.losses(gradients, torch.ones(3)), strict=True))
        del losses["b"]
        planted.backward(three, losses)
        pair.step(two, [g[[0, 2]] for g in gradients])
    torch.testing.assert_close(three.weights[[0, 2]], two.weights * (1 - held))


def test_at_a_fork_with_respect_to_a_layer():
    net = build("linear", 2)
    balancer, parameters = ExcessMTL(net.fork, wrt=net.layer), list(net.layer.parameters())
    total = [torch.zeros(2, *p.shape, dtype=p.dtype) for p in parameters]
    for x in inputs("linear", 3):
        losses = losses_of(net.outputs([[z] * 2 for z in net.features(x)]), x)
        each = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
        total = [t + torch.stack(column) ** 2 for t, column in zip(total, zip(*each, strict=True), strict=True)]
        balancer(losses_of(net(x), x)).backward()
        torch.testing.assert_close([balancer.squares_0, balancer.squares_1], total, rtol=1e-8, atol=0)


def test_a_gradient_whose_square_overflows_changes_nothing():
    planted, balancer = make()
    generator = torch.Generator().manual_seed(6)
    planted.step(balancer, draw(3, generator))
    before, gradients = state(balancer), draw(3, generator)
    gradients[0][1, 0, 0] = 1e300
    planted.step(balancer, gradients)
    torch.testing.assert_close(state(balancer), before, rtol=0, atol=0)


@pytest.mark.parametrize("step_size", [0.0, -1.0, math.inf, math.nan])
def test_wrong_step_size(step_size: float):
    with pytest.raises(ValueError, match="step_size is"):
        make(step_size=step_size)


def test_not_at_the_features():
    with pytest.raises(ValueError, match="does not measure at the features"):
        ExcessMTL(build("linear").fork)
