"""MoCo and DB-MTL, which keep moving averages of the gradients, against their algorithms in NumPy."""

import math

import numpy as np
import pytest
import torch

from balancers import Fork, ForkError
from balancers.db_mtl import DBMTL
from balancers.moco import MoCo
from balancers.solvers.simplex import project

from .nets import build, inputs, losses_of
from .planted import Planted, draw, matrix, random_losses, state

METHODS = (MoCo, DBMTL)


def make(cls, num_tasks: int = 3, **options):
    planted = Planted(num_tasks)
    return planted, cls(None, wrt=planted.shared, tasks=num_tasks, **options)


def projected(point: np.ndarray, total: float = 1.0) -> np.ndarray:
    """Project on the simplex by bisection for the number to subtract from each entry."""
    low, high = point.min() - total, point.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(point - middle, 0).sum() > total else (low, middle)
    return np.maximum(point - low, 0)


@pytest.mark.parametrize("total", [1.0, 0.3])
def test_projection(total: float):
    generator = torch.Generator().manual_seed(1)
    for k in range(200):
        point = (1 + k % 5) * torch.randn(1 + k % 7, dtype=torch.float64, generator=generator)
        found = project(point, torch.tensor(total, dtype=torch.float64))
        np.testing.assert_allclose(found, projected(point.numpy(), total), atol=1e-10)


def test_projection_on_a_point():
    assert project(torch.tensor([0.5, -1.0]), torch.tensor(0.0)).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", range(3, 13))
def test_projection_of_large_numbers(exponent: int, dtype: torch.dtype):
    """The result depends on the differences alone, which are small for the first two, and adds up to the total."""
    for total in (1.0, 0.3):
        point = torch.full((4,), 1.0, dtype=torch.float64)
        point[1:] -= torch.tensor([0.25 * total, 10.0, 1e3])
        near = project(point, torch.tensor(total))
        torch.testing.assert_close(near, total * torch.tensor([0.625, 0.375, 0.0, 0.0], dtype=torch.float64))
        for sign in (-1, 1):
            far = sign * 10.0**exponent * torch.tensor([1.0, 1.3, 1.3, 0.9], dtype=dtype)
            found = project(far, torch.tensor(total))
            expected = [0.0, 0.0, 0.0, total] if sign < 0 else [0.0, total / 2, total / 2, 0.0]
            torch.testing.assert_close(found, torch.tensor(expected, dtype=dtype))


def test_projection_keeps_its_sum():
    generator = torch.Generator().manual_seed(12)
    for scale in (1.0, 1e3, 1e6, 1e9):
        shares = torch.full((5,), 0.2)
        for _ in range(1000):
            shares = project(shares - scale * torch.rand(5, generator=generator), shares.sum())
            torch.testing.assert_close(shares.sum().item(), 1.0, rtol=0, atol=1e-6)


def test_moco_without_the_tasks_that_have_weight():
    """The tasks of a step share the sum that they had before, also if it is zero."""
    planted = Planted(3)
    balancer = MoCo(None, wrt=planted.shared, tasks=["a", "b", "c"])
    generator = torch.Generator().manual_seed(14)
    planted.step(balancer, draw(3, generator))
    balancer.shares.copy_(torch.tensor([1.0, 0.0, 0.0]))
    losses = dict(zip("abc", planted.losses(draw(3, generator), torch.ones(3)), strict=True))
    del losses["a"]
    assert not planted.backward(balancer, losses).any()
    assert balancer.shares.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("options", [{}, {"beta": 0.2, "gamma": 0.01, "sigma": 0.0, "rho": 0.3}])
def test_moco_is_its_algorithm(options):
    planted, balancer = make(MoCo, **options)
    beta, gamma, sigma, rho = (
        options.get(key, default) for key, default in (("beta", 0.5), ("gamma", 0.1), ("sigma", 0.5), ("rho", 0.0))
    )
    generator = torch.Generator().manual_seed(2)
    y, shares = 0.0, np.full(3, 1 / 3)
    for k in range(1, 15):
        gradients = draw(3, generator)
        y = y - beta / k**sigma * (y - matrix(gradients).numpy())
        shares = projected(shares - gamma / k**sigma * (y @ y.T + rho * np.eye(3)) @ shares)
        direction = planted.step(balancer, gradients)
        np.testing.assert_allclose(balancer.weights, shares, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(direction, shares @ y, rtol=1e-8, atol=1e-10)
        assert [head.grad.item() for head in planted.heads] == [1.0] * 3


@pytest.mark.slow
def test_moco_tends_to_the_shortest_combination():
    planted, balancer = make(MoCo, beta=0.5, gamma=0.05, sigma=0.0)
    gradients = draw(3, torch.Generator().manual_seed(3), spread=0.3)
    for _ in range(1000):
        direction = planted.step(balancer, gradients)
    rows, shares = matrix(gradients), balancer.weights
    products = rows @ direction
    torch.testing.assert_close(direction, shares @ rows)
    # It is the shortest if no gradient's product with it is smaller than its squared norm.
    torch.testing.assert_close(products.amin(), direction.square().sum(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"beta": 0.5, "sigma": 0.5}, {"beta": 0.0}])
def test_db_mtl_is_its_algorithm(options):
    planted, balancer = make(DBMTL, **options)
    beta, sigma = options.get("beta", 0.9), options.get("sigma", 0.0)
    generator = torch.Generator().manual_seed(4)
    y = 0.0
    for k in range(1, 15):
        gradients, losses = draw(3, generator), random_losses(3, generator)
        logs = matrix(gradients).numpy() / losses.numpy()[:, None]
        y = beta / k**sigma * y + (1 - beta / k**sigma) * logs
        norms = np.linalg.norm(y, axis=1)
        direction = planted.step(balancer, gradients, losses)
        np.testing.assert_allclose(direction, norms.max() * (y / norms[:, None]).sum(0), rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(balancer.weights, norms.max() / norms / losses.numpy(), rtol=1e-8)
        np.testing.assert_allclose([head.grad for head in planted.heads], 1 / losses, rtol=1e-10)


def test_a_losss_scale_cancels_out_of_db_mtl():
    generator = torch.Generator().manual_seed(5)
    (one, plain), (other, scaled) = make(DBMTL), make(DBMTL)
    scales = torch.tensor([1e-3, 1.0, 1e4], dtype=torch.float64)
    for _ in range(5):
        gradients, losses = draw(3, generator), random_losses(3, generator)
        of_plain = one.step(plain, gradients, losses)
        larger = [g * scales.view(-1, *[1] * (g.ndim - 1)) for g in gradients]
        torch.testing.assert_close(other.step(scaled, larger, losses * scales), of_plain)


def test_db_mtl_with_a_gradient_of_zero():
    planted, balancer = make(DBMTL)
    gradients = draw(3, torch.Generator().manual_seed(6))
    for gradient in gradients:
        gradient[1] = 0
    assert planted.step(balancer, gradients).isfinite().all()
    assert balancer.weights[1] == 1
    planted, balancer = make(DBMTL)
    assert not planted.step(balancer, [torch.zeros_like(gradient) for gradient in gradients]).any()


def test_a_scaled_loss_and_any_dtype():
    """A GradScaler's scale multiplies the direction, also in float32."""
    for cls in METHODS:
        gradients = [g.float() for g in draw(2, torch.Generator().manual_seed(7))]
        directions = []
        for scale in (1.0, 1024.0):
            planted = Planted(2, torch.float32)
            balancer = cls(None, wrt=planted.shared, tasks=2)
            (scale * balancer(planted.losses(gradients, torch.ones(2)))).backward()
            directions.append(torch.cat([p.grad.flatten() for p in planted.shared]) / scale)
        torch.testing.assert_close(*directions)


def test_half_gradients_whose_sum_overflows_are_not_learnt_from():
    parameter = torch.nn.Parameter(torch.ones(5, dtype=torch.float16))
    balancer = MoCo(None, wrt=[parameter], tasks=3, check_finite=True)
    before = state(balancer)
    losses = [3e4 * parameter.float().sum() for _ in range(3)]  # each gradient fits into half precision
    with pytest.raises(FloatingPointError):
        balancer(losses).backward()
    assert state(balancer).keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in state(balancer).items())


@pytest.mark.parametrize("cls", METHODS)
def test_the_direction_is_that_of_the_tasks_given(cls):
    planted = Planted(3)
    balancer = cls(None, wrt=planted.shared, tasks=["a", "b", "c"])
    generator = torch.Generator().manual_seed(8)
    planted.step(balancer, draw(3, generator))
    gradients = draw(3, generator)
    losses = dict(zip("abc", planted.losses(gradients, torch.ones(3)), strict=True))
    del losses["b"]
    direction = planted.backward(balancer, losses)
    after = state(balancer)
    memory = [after[key] for key in sorted(after) if key.startswith(("tracked", "averages"))]
    rows = matrix(memory)[[0, 2]]
    torch.testing.assert_close(direction, balancer.weights[[0, 2]] @ rows)
    if cls is MoCo:
        torch.testing.assert_close(balancer.weights.sum(), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_db_mtl_without_a_logarithm_uses_the_weights_before(bad: float):
    planted, balancer = make(DBMTL)
    generator = torch.Generator().manual_seed(10)
    planted.step(balancer, draw(3, generator), random_losses(3, generator))
    before, gradients = balancer.weights.clone(), draw(3, generator)
    losses = torch.tensor([bad, 1.0, 2.0], dtype=torch.float64)
    direction = planted.step(balancer, gradients, losses)
    torch.testing.assert_close(direction, before @ matrix(gradients))


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (MoCo, {"beta": 0.0}),
        (MoCo, {"beta": 1.5}),
        (MoCo, {"gamma": 0.0}),
        (MoCo, {"gamma": math.inf}),
        (MoCo, {"sigma": -1.0}),
        (MoCo, {"rho": math.nan}),
        (DBMTL, {"beta": 1.0}),
        (DBMTL, {"beta": -0.1}),
        (DBMTL, {"sigma": -1.0}),
    ],
)
def test_wrong_input(cls, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        make(cls, **options)


@pytest.mark.parametrize("cls", METHODS)
def test_not_at_features_or_one_layer(cls):
    net = build("linear")
    with pytest.raises(ValueError, match="does not measure at the features"):
        cls(net.fork)
    [x] = inputs("linear")
    with pytest.raises(ForkError, match="all parameters that are trained upstream of its fork"):
        cls(net.fork, wrt=net.layer)(losses_of(net(x), x)).backward()


@pytest.mark.parametrize("ratio", [1e5, 1e7])
def test_a_direction_at_a_gate_keeps_its_digits_beside_gradients_that_are_much_larger(ratio: float):
    torch.manual_seed(0)
    layer, heads, fork = torch.nn.Linear(8, 16), [torch.nn.Linear(16, 1) for _ in range(2)], Fork(2)
    balancer = MoCo(fork, wrt=layer)
    a, b = fork(layer(torch.randn(32, 8)))
    balancer([heads[0](a).square().mean(), ratio * heads[1](b).square().mean()]).backward()
    for parameter, tracked in zip(layer.parameters(), (balancer.tracked_0, balancer.tracked_1), strict=True):
        expected = torch.tensordot(balancer.shares, tracked, 1)
        assert (parameter.grad - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("how", ["option", "state"])
def test_an_option_of_moco_applies_from_the_next_step_on(how: str):
    generator = torch.Generator().manual_seed(3)
    planted, balancer = make(MoCo, beta=0.5, sigma=0.0)
    planted.step(balancer, draw(3, generator))
    if how == "option":
        balancer.beta = 0.1
    else:
        before, (planted, balancer) = balancer, make(MoCo, beta=0.1, sigma=0.0)
        balancer.load_state_dict(before.state_dict())
    kept = balancer.tracked_0.clone()
    rows = draw(3, generator)
    planted.step(balancer, rows)
    torch.testing.assert_close(balancer.tracked_0, 0.9 * kept + 0.1 * rows[0].to(kept).view_as(kept))
