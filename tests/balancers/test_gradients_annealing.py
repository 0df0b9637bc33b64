"""Learning-rate annealing and inverse-Dirichlet weighting, against the papers' formulas in NumPy."""

import math

import numpy as np
import pytest
import torch

from balancers.inverse_dirichlet import InverseDirichlet
from balancers.lr_annealing import LearningRateAnnealing

from .nets import build, inputs, losses_of
from .planted import Planted, draw, matrix

METHODS = (LearningRateAnnealing, InverseDirichlet)


def make(cls, num_tasks: int = 3, **options):
    planted = Planted(num_tasks)
    return planted, cls(None, wrt=planted.shared, tasks=num_tasks, **options)


def annealed(weights: np.ndarray, rows: np.ndarray, alpha: float, reference: int) -> np.ndarray:
    new = weights.copy()
    for i, row in enumerate(rows):
        if i != reference:
            target = np.abs(rows[reference]).max() / np.abs(weights[i] * row).mean()
            new[i] = (1 - alpha) * weights[i] + alpha * target
    return new


def dirichlet(weights: np.ndarray, rows: np.ndarray, alpha: float) -> np.ndarray:
    return (1 - alpha) * weights + alpha * rows.std(1).max() / rows.std(1)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(
    ("cls", "reference"), [(LearningRateAnnealing, 0), (LearningRateAnnealing, 2), (METHODS[1], 0)]
)
def test_is_its_formula(cls, reference: int, alpha: float):
    options = {"reference": reference} if cls is LearningRateAnnealing else {}
    planted, balancer = make(cls, alpha=alpha, **options)
    generator = torch.Generator().manual_seed(1)
    weights = np.ones(3)
    for _ in range(12):
        gradients = draw(3, generator)
        rows = matrix(gradients).numpy()
        weights = (
            annealed(weights, rows, alpha, reference)
            if cls is LearningRateAnnealing
            else dirichlet(weights, rows, alpha)
        )
        direction = planted.step(balancer, gradients)
        np.testing.assert_allclose(balancer.weights, weights, rtol=1e-10)
        np.testing.assert_allclose(direction, weights @ rows, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose([head.grad for head in planted.heads], weights, rtol=1e-10)


@pytest.mark.parametrize("cls", METHODS)
def test_at_a_fork_with_respect_to_a_layer(cls):
    net = build("linear", 3)
    balancer = cls(net.fork, wrt=net.layer, alpha=0.5)
    weights, layer = np.ones(3), list(net.layer.parameters())
    for x in inputs("linear", 4):
        losses = losses_of(net.outputs([[z] * 3 for z in net.features(x)]), x)
        rows = np.stack(
            [torch.cat([g.flatten() for g in torch.autograd.grad(loss, layer, retain_graph=True)]) for loss in losses]
        )
        weights = annealed(weights, rows, 0.5, 0) if cls is LearningRateAnnealing else dirichlet(weights, rows, 0.5)
        net.zero_grad()
        balancer(losses_of(net(x), x)).backward()
        np.testing.assert_allclose(balancer.weights, weights, rtol=1e-8)
        direction = torch.cat([p.grad.flatten() for p in layer])
        np.testing.assert_allclose(direction, weights @ rows, rtol=1e-7, atol=1e-10)


def test_annealed_means_go_to_the_geometric_mean():
    """With constant gradients, w_i tends to the root of the reference's peak over the mean of ``|g_i|``."""
    planted, balancer = make(LearningRateAnnealing)
    gradients = draw(3, torch.Generator().manual_seed(2), spread=2.0)
    for _ in range(300):
        planted.step(balancer, gradients)
    rows = matrix(gradients).abs()
    torch.testing.assert_close(balancer.weights[1:], (rows[0].amax() / rows.mean(1)[1:]).sqrt())
    assert balancer.weights[0] == 1


def test_inverse_dirichlet_equalises_the_deviations():
    planted, balancer = make(InverseDirichlet)
    gradients = draw(3, torch.Generator().manual_seed(3), spread=3.0)
    for _ in range(80):
        planted.step(balancer, gradients)
    deviations = matrix(gradients).std(1)
    torch.testing.assert_close(balancer.weights * deviations, deviations.amax().expand(3))


@pytest.mark.parametrize("cls", METHODS)
def test_a_zero_gradient_keeps_its_weight(cls):
    planted, balancer = make(cls)
    generator = torch.Generator().manual_seed(4)
    planted.step(balancer, draw(3, generator))
    before, gradients = balancer.weights.clone(), draw(3, generator)
    for gradient in gradients:
        gradient[1] = 0
    planted.step(balancer, gradients)
    assert balancer.weights[1] == before[1]
    assert balancer.weights[2] != before[2]


def test_a_reference_without_a_gradient_changes_no_weight():
    planted, balancer = make(LearningRateAnnealing, alpha=1.0)
    generator = torch.Generator().manual_seed(7)
    planted.step(balancer, draw(3, generator))
    before, gradients = balancer.weights, draw(3, generator)
    for gradient in gradients:
        gradient[0] = 0
    planted.step(balancer, gradients)
    assert torch.equal(balancer.weights, before)


@pytest.mark.parametrize("cls", METHODS)
def test_the_tasks_given_are_weighed_among_themselves(cls):
    planted = Planted(3)
    balancer = cls(None, wrt=planted.shared, tasks=["a", "b", "c"])
    generator = torch.Generator().manual_seed(5)
    planted.step(balancer, draw(3, generator))
    before, gradients = balancer.weights.numpy().copy(), draw(3, generator)
    losses = dict(zip("abc", planted.losses(gradients, torch.ones(3)), strict=True))
    del losses["b"]
    rows = matrix(gradients).numpy()[[0, 2]]
    planted.backward(balancer, losses)
    two = before[[0, 2]]
    expected = annealed(two, rows, 0.1, 0) if cls is LearningRateAnnealing else dirichlet(two, rows, 0.5)
    np.testing.assert_allclose(balancer.weights[[0, 2]], expected, rtol=1e-10)


def test_without_the_reference_all_weights_stay():
    planted = Planted(2)
    balancer = LearningRateAnnealing(None, wrt=planted.shared, tasks=["a", "b"], reference="a")
    generator = torch.Generator().manual_seed(6)
    planted.step(balancer, draw(2, generator))
    before = balancer.weights.clone()
    planted.backward(balancer, {"b": planted.losses(draw(2, generator), torch.ones(2))[1]})
    assert torch.equal(balancer.weights, before)


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.5, math.nan])
@pytest.mark.parametrize("cls", METHODS)
def test_wrong_alpha(cls, alpha: float):
    with pytest.raises(ValueError, match="alpha is"):
        make(cls, alpha=alpha)


@pytest.mark.parametrize("reference", [3, -1, "residual"])
def test_wrong_reference(reference):
    with pytest.raises(ValueError, match="reference is"):
        make(LearningRateAnnealing, reference=reference)


@pytest.mark.parametrize("cls", METHODS)
def test_not_at_the_features(cls):
    with pytest.raises(ValueError, match="does not measure at the features"):
        cls(build("linear").fork)
