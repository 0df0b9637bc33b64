"""GradDrop, against its formula in NumPy, and against TorchJD's aggregator with the same random numbers.

Differences from TorchJD: the function f is always the identity; the leak may be one number, or a dict by name.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from balancers import Draws, Fork
from balancers.grad_drop import GradDrop


class Forked:
    """Features of a given shape, and losses with given gradients with respect to them."""

    def __init__(self, num_tasks: int, shape: tuple[int, ...] = (5, 4), dtype: torch.dtype = torch.float64) -> None:
        self.fork = Fork(num_tasks)
        self.source = nn.Parameter(torch.zeros(shape, dtype=dtype))

    def step(self, balancer: GradDrop, gradients: Tensor) -> Tensor:
        self.source.grad = None
        balancer(
            [(z * gradient).sum() for z, gradient in zip(self.fork(self.source * 1), gradients, strict=True)]
        ).backward()
        return self.source.grad


def draw(num_tasks: int, seed: int, shape: tuple[int, ...] = (5, 4)) -> Tensor:
    return torch.randn(num_tasks, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def uniform(seed: int, shape: tuple[int, ...] = (5, 4)) -> Tensor:
    """Return the random numbers of a balancer's first step."""
    return Draws(seed, 0, torch.zeros((), dtype=torch.float64)).uniform(*shape)


@pytest.mark.parametrize("leak", [0.0, 0.3, [0.0, 0.5, 1.0]])
def test_is_its_formula(leak):
    forked = Forked(3)
    for seed in range(30):
        g, u = draw(3, seed).numpy(), uniform(seed).numpy()
        purity = (1 + g.sum(0) / np.abs(g).sum(0)) / 2
        mask = (purity > u) * (g > 0) + (purity < u) * (g < 0)
        leaks = np.broadcast_to(leak, 3)[:, None, None]
        balancer = GradDrop(forked.fork, leak=leak, seed=seed)
        found = forked.step(balancer, torch.tensor(g))
        np.testing.assert_allclose(found, ((leaks + (1 - leaks) * mask) * g).sum(0), rtol=1e-12, atol=1e-14)
        assert balancer.weights.tolist() == [1, 1, 1]


@pytest.mark.slow
def test_like_torchjd(monkeypatch):
    aggregation = pytest.importorskip("torchjd.aggregation")
    for seed in range(250):
        num_tasks = 2 + seed % 4
        forked = Forked(num_tasks)
        gradients = draw(num_tasks, seed)
        leak = torch.rand(num_tasks, dtype=torch.float64) if seed % 2 else None
        u = uniform(seed).flatten()
        with monkeypatch.context() as patch:
            patch.setattr(torch, "rand", lambda *_, u=u, **__: u)
            expected = aggregation.GradDrop(leak=leak)(gradients.flatten(1))
        balancer = GradDrop(forked.fork, leak=0.0 if leak is None else leak.tolist(), seed=seed)
        torch.testing.assert_close(forked.step(balancer, gradients).flatten(), expected, rtol=1e-4, atol=1e-8)


def test_the_direction_has_one_sign():
    forked, gradients = Forked(4), draw(4, 1)
    positive, negative = gradients.clamp(min=0).sum(0), gradients.clamp(max=0).sum(0)
    balancer, found = GradDrop(forked.fork), []
    for _ in range(200):
        direction = forked.step(balancer, gradients)
        assert ((direction - positive).abs().minimum((direction - negative).abs()) < 1e-12).all()
        found.append(direction)
    purity = (1 + gradients.sum(0) / gradients.abs().sum(0)) / 2
    expected = purity * positive + (1 - purity) * negative
    spread = (purity * (1 - purity)).sqrt() * (positive - negative)
    assert ((torch.stack(found).mean(0) - expected).abs() <= 4.5 * spread / 200**0.5 + 1e-12).all()


def test_where_tasks_agree_nothing_is_dropped():
    forked, gradients = Forked(3), draw(3, 2).abs()
    torch.testing.assert_close(forked.step(GradDrop(forked.fork), gradients), gradients.sum(0))


def test_a_leak_of_one_drops_nothing():
    forked, gradients = Forked(3), draw(3, 3)
    torch.testing.assert_close(forked.step(GradDrop(forked.fork, leak=1.0), gradients), gradients.sum(0))


def test_zeros_stay_zero():
    forked = Forked(2)
    assert not forked.step(GradDrop(forked.fork), torch.zeros(2, 5, 4, dtype=torch.float64)).any()


def test_leaks_by_name_and_tasks_left_out():
    forked, gradients = Forked(3), draw(3, 4)
    balancer = GradDrop(forked.fork, tasks=["a", "b", "c"], leak={"c": 1.0, "a": 0.0, "b": 0.5}, seed=4)
    two = Forked(2)
    expected = two.step(GradDrop(two.fork, leak=[0.0, 1.0], seed=4), gradients[[0, 2]])
    z = forked.fork(forked.source * 1)
    balancer({"a": (z[0] * gradients[0]).sum(), "c": (z[2] * gradients[2]).sum()}).backward()
    torch.testing.assert_close(forked.source.grad, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"leak": -0.1}, "leak is"),
        ({"leak": 1.1}, "leak is"),
        ({"leak": [0.0]}, "leak has 1 entry"),
        ({"leak": {"a": 0.0, "b": 0.0}}, "leak goes by names"),
        ({"seed": -1}, "seed is"),
    ],
)
def test_wrong_input(options, message):
    with pytest.raises(ValueError, match=message):
        GradDrop(Fork(2), **options)


def test_only_at_the_features():
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="with respect to a layer"):
        GradDrop(Fork(2), wrt=layer)
    with pytest.raises(ValueError, match="without a fork"):
        GradDrop(None, wrt=layer, tasks=2)
