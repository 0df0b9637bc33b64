"""MetaBalance, which has a weight for each task and parameter tensor, against its algorithm in NumPy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from balancers import ForkError
from balancers.metabalance import MetaBalance

from ..slow_params import others_slow
from .nets import build, inputs, losses_of
from .planted import Planted, draw, flat, matrix, state

double = torch.float64


def make(num_tasks: int = 3, **options: Any) -> tuple[Planted, MetaBalance]:
    planted = Planted(num_tasks)
    return planted, MetaBalance(None, wrt=planted.shared, tasks=num_tasks, **options)


class Algorithm:
    """The algorithm on gradients of each tensor, ``(T, *shape)``."""

    def __init__(self, target: int = 0, beta: float = 0.9, relax: float = 0.7) -> None:
        self.target, self.beta, self.relax = target, beta, relax
        self.norms: Any = 0.0
        """``(T, number of tensors)``."""

    def weights(self, gradients: list[Tensor]) -> np.ndarray:
        """Return ``(T, number of tensors)``."""
        norms = np.stack([np.linalg.norm(g.flatten(1).numpy(), axis=1) for g in gradients], 1)
        self.norms = self.beta * self.norms + (1 - self.beta) * norms
        return self.relax * self.norms[self.target] / self.norms + 1 - self.relax

    def direction(self, gradients: list[Tensor]) -> Tensor:
        weights = torch.from_numpy(self.weights(gradients))
        return flat([torch.einsum("t,t...->...", w, g) for w, g in zip(weights.T, gradients, strict=True)])


@pytest.mark.parametrize("options", [{}, {"target": 2, "beta": 0.5, "relax": 0.2}, {"beta": 0.0}, {"relax": 0.99}])
@pytest.mark.parametrize("num_tasks", [3, 5])
@pytest.mark.parametrize("steps", others_slow([40, 200], 40))
def test_is_its_algorithm(num_tasks: int, options: dict[str, Any], steps: int) -> None:
    planted, balancer = make(num_tasks, **options)
    algorithm, generator = Algorithm(**options), torch.Generator().manual_seed(1)
    for _ in range(steps):
        gradients = draw(num_tasks, generator)
        expected = algorithm.direction(gradients)
        torch.testing.assert_close(planted.step(balancer, gradients), expected)
        np.testing.assert_allclose(balancer.norms, algorithm.norms, rtol=1e-10)
        assert [head.grad.item() for head in planted.heads] == [1.0] * num_tasks
        assert balancer.weights[options.get("target", 0)] == 1


def test_weights_are_the_means_over_the_tensors() -> None:
    planted, balancer = make()
    algorithm, generator = Algorithm(), torch.Generator().manual_seed(2)
    for _ in range(5):
        gradients = draw(3, generator)
        planted.step(balancer, gradients)
        np.testing.assert_allclose(balancer.weights, algorithm.weights(gradients).mean(1), rtol=1e-10)


def test_at_a_fork_with_the_whole_trunk_and_without_one() -> None:
    directions = []
    for fork in (True, False):
        net = build("linear", 3)
        balancer = MetaBalance(net.fork if fork else None, wrt=net.trunk, tasks=3)
        algorithm, trunk = Algorithm(), list(net.trunk.parameters())
        for x in inputs("linear", 4):
            losses = losses_of(net.outputs([[z] * 3 for z in net.features(x)]), x)
            of_tasks = [torch.autograd.grad(loss, trunk, retain_graph=True) for loss in losses]
            expected = algorithm.direction([torch.stack(of_tensor) for of_tensor in zip(*of_tasks, strict=True)])
            net.zero_grad()
            balancer(losses_of(net(x) if fork else net.outputs([[z] * 3 for z in net.features(x)]), x)).backward()
            direction = flat([p.grad for p in trunk if p.grad is not None])
            torch.testing.assert_close(direction, expected)
        directions.append(direction)
    torch.testing.assert_close(*directions)


@pytest.mark.parametrize("fork", [True, False])
def test_without_scaling_it_is_the_plain_sum(fork: bool) -> None:
    net = build("linear", 3)
    balancer = MetaBalance(net.fork if fork else None, wrt=net.trunk, tasks=3, relax=0.0)
    for x in inputs("linear", 3):
        net.zero_grad()
        torch.stack(losses_of(net(x), x)).sum().backward()
        expected = [p.grad for p in net.parameters()]
        net.zero_grad()
        balancer(losses_of(net(x), x)).backward()
        torch.testing.assert_close([p.grad for p in net.parameters()], expected)
    torch.testing.assert_close(balancer.weights, torch.ones(3, dtype=double))


def test_norms_come_as_close_to_the_targets_as_the_relax_factor_says() -> None:
    """Also where the target's is the smaller or the larger one, in one tensor but not in the other."""
    gradients = draw(2, torch.Generator().manual_seed(3))
    gradients[0][1] *= 100
    gradients[1][1] /= 100
    found = []
    for relax in (0.0, 0.25, 0.9):
        planted, balancer = make(2, relax=relax)
        only_the_auxiliary = planted.step(balancer, gradients) - matrix(gradients)[0]
        found.append([part.norm() for part in only_the_auxiliary.split([g[0].numel() for g in gradients])])
        for norm, gradient in zip(found[-1], gradients, strict=True):
            torch.testing.assert_close(norm, relax * gradient[0].norm() + (1 - relax) * gradient[1].norm())


def test_one_task() -> None:
    planted, balancer = make(1)
    for seed in range(3):
        gradients = draw(1, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(planted.step(balancer, gradients), matrix(gradients)[0])
        assert balancer.weights.tolist() == [1]


# Gradients of zero.


def test_gradients_that_are_all_zero() -> None:
    planted, balancer = make()
    zeros = [torch.zeros_like(gradient) for gradient in draw(3, torch.Generator().manual_seed(4))]
    assert not planted.step(balancer, zeros).any()
    assert balancer.weights.tolist() == [1, 1, 1]
    gradients = draw(3, torch.Generator().manual_seed(5))
    torch.testing.assert_close(planted.step(balancer, gradients), Algorithm().direction(gradients))


def test_a_tensor_that_the_target_does_not_reach_is_trained_by_the_others() -> None:
    """The official code divides zero by zero there, for the target."""
    planted, balancer = make(relax=0.7)
    gradients = draw(3, torch.Generator().manual_seed(6))
    gradients[1][0] = 0
    direction = planted.step(balancer, gradients)[-gradients[1][0].numel() :]
    torch.testing.assert_close(direction, 0.3 * gradients[1].sum(0))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, double])
def test_an_auxiliary_task_that_is_silent_for_long(dtype: torch.dtype) -> None:
    """Its average falls to zero, but no weight grows beyond the numbers that a type has."""
    planted = Planted(2, dtype)
    balancer = MetaBalance(None, wrt=planted.shared, tasks=2, beta=0.1)
    generator = torch.Generator().manual_seed(7)
    for t in range(400):
        gradients = [gradient.to(dtype) for gradient in draw(2, generator)]
        if t > 0:
            for gradient in gradients:
                gradient[1] = 0
        direction = planted.step(balancer, gradients, torch.ones(2, dtype=dtype))
        if t > 0:
            torch.testing.assert_close(direction, matrix(gradients)[0])
            assert balancer.weights.tolist() == [1, 1]
    assert (
        planted.step(balancer, [g.to(dtype) for g in draw(2, generator)], torch.ones(2, dtype=dtype)).isfinite().all()
    )


# Tasks that are left out.


def test_a_task_left_out_keeps_its_norms() -> None:
    planted = Planted(3)
    balancer = MetaBalance(None, wrt=planted.shared, tasks=["a", "b", "c"])
    algorithm, generator = Algorithm(), torch.Generator().manual_seed(8)
    gradients = draw(3, generator)
    planted.step(balancer, gradients)
    algorithm.weights(gradients)
    before, gradients = state(balancer), draw(3, generator)
    losses = dict(zip("abc", planted.losses(gradients, torch.ones(3)), strict=True))
    del losses["b"]
    algorithm.norms = algorithm.norms[[0, 2]]
    direction = planted.backward(balancer, losses)
    torch.testing.assert_close(direction, algorithm.direction([gradient[[0, 2]] for gradient in gradients]))
    assert torch.equal(balancer.norms[1], before["norms"][1])
    assert balancer.weights[1] == before["last_weights"][1]


@pytest.mark.parametrize("target", ["b", 1])
def test_a_step_without_the_target_changes_nothing(target: int | str) -> None:
    planted = Planted(3)
    balancer = MetaBalance(None, wrt=planted.shared, tasks=["a", "b", "c"], target=target)
    generator = torch.Generator().manual_seed(9)
    planted.step(balancer, draw(3, generator))
    before, gradients = state(balancer), draw(3, generator)
    losses = dict(zip("abc", planted.losses(gradients, torch.ones(3)), strict=True))
    del losses["b"]
    direction = planted.backward(balancer, losses)
    assert all(torch.equal(value, before[key]) for key, value in state(balancer).items())
    torch.testing.assert_close(direction, balancer.weights[[0, 2]] @ matrix(gradients)[[0, 2]])


# What it refuses.


def test_parameters_that_are_frozen_after_it_was_made() -> None:
    net = build("linear", 2)
    balancer = MetaBalance(None, wrt=net.trunk, tasks=2)
    next(net.trunk.parameters()).requires_grad_(False)
    [x] = inputs("linear")
    with pytest.raises(ForkError, match="keeps state for each parameter of wrt, but other parameters"):
        balancer(losses_of(net(x), x)).backward()


def test_not_at_features_or_one_layer() -> None:
    net = build("linear")
    with pytest.raises(ValueError, match="does not measure at the features"):
        MetaBalance(net.fork)
    [x] = inputs("linear")
    with pytest.raises(ForkError, match="all parameters that are trained upstream of its fork"):
        MetaBalance(net.fork, wrt=net.layer)(losses_of(net(x), x)).backward()


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 1.0},
        {"beta": -0.1},
        {"relax": 1.0},
        {"relax": -0.1},
        {"relax": math.nan},
        {"update_every": 2},
        {"target": 3},
        {"target": -1},
        {"target": "click"},
    ],
)
def test_wrong_input(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        make(**options)


def test_parameters_of_any_shape() -> None:
    """A scalar's gradients are a vector of one number for each task."""
    scalar, vector = nn.Parameter(torch.zeros((), dtype=double)), nn.Parameter(torch.zeros(3, dtype=double))
    balancer = MetaBalance(None, wrt=[scalar, vector], tasks=2)
    balancer([2 * scalar + vector.sum(), -scalar + 4 * vector.sum()]).backward()
    torch.testing.assert_close(scalar.grad, torch.tensor(2 - (0.7 * 2 + 0.3), dtype=double))
    torch.testing.assert_close(vector.grad, torch.full((3,), 1 + 0.7 + 0.3 * 4, dtype=double))
