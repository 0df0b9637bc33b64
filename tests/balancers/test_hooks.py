"""Hooks of a user see the gradient that training takes, once a step, and measurements do not depend on them."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from balancers import DBMTL, MGDA, ExcessMTL, Fork, GradientBalancer, GradNorm, MoCo, MomentumConFIG, PCGrad
from balancers.engine.steps.combining_step import CombiningStep

TASKS = 2


class Net(nn.Module):
    def __init__(self, width: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(width, width), nn.Tanh()).double()
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(TASKS)).double()
        self.fork = Fork(TASKS)

    def losses(self, x: Tensor, use_fork: bool, checkpointed: bool = False) -> list[Tensor]:
        z = checkpoint(self.trunk, x, use_reentrant=False) if checkpointed else self.trunk(x)
        aliases = self.fork(z) if use_fork else [z] * TASKS
        pairs = zip(self.heads, aliases, strict=True)
        return [(i + 1) * (head(z) - i).square().mean() for i, (head, z) in enumerate(pairs)]


def x(rows: int = 8, width: int = 5) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


REPLACING: dict[str, Callable[..., GradientBalancer]] = {
    "m-config": lambda *args, **options: MomentumConFIG(*args, takes_turns=False, **options),
    "moco": MoCo,
    "db-mtl": DBMTL,
}


def run(make: Callable[..., GradientBalancer], use_fork: bool, hook: Callable[[Tensor], Tensor] | None) -> list[Tensor]:
    """Return the trunk's gradients of three steps."""
    net, found = Net(), []
    balancer = make(net.fork, wrt=net.trunk) if use_fork else make(None, wrt=net.trunk, tasks=TASKS)
    if hook is not None:
        for parameter in net.trunk.parameters():
            parameter.register_hook(lambda gradient: gradient * 1.0)
            parameter.register_hook(hook)
    for _ in range(3):
        net.zero_grad()
        balancer(net.losses(x(), use_fork)).backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in net.trunk.parameters()]))
    return found


@pytest.mark.parametrize("use_fork", [True, False], ids=["gate", "no fork"])
@pytest.mark.parametrize("name", REPLACING)
def test_a_hook_sees_the_direction(name: str, use_fork: bool) -> None:
    plain = run(REPLACING[name], use_fork, None)
    bound = plain[-1].abs().median().item()
    seen: list[int] = []

    def clamp(gradient: Tensor) -> Tensor:
        seen.append(1)
        return gradient.clamp(-bound, bound)

    clamped = run(REPLACING[name], use_fork, clamp)
    assert len(seen) == 3 * 2
    torch.testing.assert_close(clamped, [each.clamp(-bound, bound) for each in plain])


WAYS: dict[str, dict[str, Any]] = {
    "no fork": {"use_fork": False},
    "no fork, checkpoint": {"use_fork": False, "checkpointed": True},
    "fork": {"use_fork": True},
    "fork, checkpoint": {"use_fork": True, "checkpointed": True},
}


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("rows", [2, 64])
@pytest.mark.parametrize("way", WAYS)
def test_norms_are_those_of_gradients_before_hooks(way: str, rows: int, exact: bool) -> None:
    found, calls = [], list[int]()
    for hooked in (False, True):
        net = Net(30)
        weight = net.trunk[0].weight
        fork = net.fork if WAYS[way]["use_fork"] else None
        balancer = GradNorm(fork, wrt=[weight], tasks=TASKS, exact=exact)
        if hooked:
            weight.register_hook(lambda gradient: calls.append(1) or gradient * 0)
        for _ in range(2):
            net.zero_grad()
            balancer(net.losses(x(rows, 30), **WAYS[way])).backward()
        found.append(balancer.statistics["gradient_norms"].clone())
        assert bool(weight.grad.any()) != hooked
    torch.testing.assert_close(*found, rtol=1e-6, atol=0)
    assert len(calls) == 2


@pytest.mark.parametrize("use_fork", [True, False], ids=["gate", "no fork"])
def test_a_checkpoint_that_is_gone_is_forgotten(use_fork: bool) -> None:
    net = Net()
    balancer = MGDA(net.fork if use_fork else None, wrt=net.trunk, tasks=TASKS, exact=True)
    found = []
    for checkpointed in (True, True, False, False, True, True, False):
        balancer(net.losses(x(), use_fork, checkpointed)).backward()
        found.append(balancer.recomputes)
    assert found == [True, True, False, False, True, True, False]


def test_a_second_pass_leaves_nothing_behind() -> None:
    net = Net()
    balancer = MGDA(net.fork)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            total = balancer(net.losses(x(), use_fork=True))
            total.backward(retain_graph=True)
            total.backward()
            del total
        steps = [each for each in gc.get_objects() if type(each) is CombiningStep]
    finally:
        gc.enable()
    assert [step for step in steps if step.balancer is balancer] == []


def shrink(layer: nn.Module) -> None:
    """Multiply the gradient that comes to the layer's output by a tenth."""

    def hook(_: nn.Module, inputs: object, output: Tensor) -> None:
        output.register_hook(lambda gradient: 0.1 * gradient)

    layer.register_forward_hook(hook)


@pytest.mark.parametrize("hooked", [0, 1], ids=["first layer", "last layer"])
@pytest.mark.parametrize("rows", [3, 64], ids=["few rows", "many rows"])
@pytest.mark.parametrize("exact", [False, True], ids=["", "exact"])
@pytest.mark.parametrize("make", [ExcessMTL, MGDA, MoCo, PCGrad], ids=lambda make: make.name)
def test_a_hook_on_a_layers_output_changes_the_gradients_of_its_own_parameters_too(
    make: Callable[..., GradientBalancer], exact: bool, rows: int, hooked: int
) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(16, 16).double() for _ in range(2)]
    trunk, heads, fork = nn.Sequential(*layers), nn.ModuleList(nn.Linear(16, 1).double() for _ in range(2)), Fork(2)
    shrink(layers[hooked])
    features = x(rows, 16)

    def losses(*aliases: Tensor) -> list[Tensor]:
        return [(head(z) - k).square().mean() for k, (head, z) in enumerate(zip(heads, aliases, strict=True))]

    balancer = make(fork, wrt=trunk, exact=exact)
    balancer(losses(*fork(trunk(features)))).backward()

    z = trunk(features)
    parameters = tuple(trunk.parameters())
    gradients = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses(z, z)]
    if make is MGDA:
        rows_ = torch.stack([torch.cat([part.flatten() for part in each]) for each in gradients])
        assert torch.allclose(balancer.statistics["gramian"], rows_ @ rows_.mT, rtol=1e-9, atol=1e-12)
    if make is MoCo:
        expected = [torch.tensordot(balancer.shares.double(), y, 1) for y in (balancer.tracked_0, balancer.tracked_1)]
        found = [parameters[0].grad, parameters[1].grad]
    else:
        weights = balancer.weights.double()
        expected = [
            sum(w * part for w, part in zip(weights, parts, strict=True)) for parts in zip(*gradients, strict=True)
        ]
        found = [parameter.grad for parameter in parameters]
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-13)


def test_ghost_norms_see_a_hook_on_a_layers_output() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64).double() for _ in range(4)]
    trunk, heads, fork = nn.Sequential(*layers), nn.ModuleList(nn.Linear(64, 1).double() for _ in range(2)), Fork(2)
    shrink(layers[1])
    shared = [*layers[0].parameters(), *layers[1].parameters()]

    norms = []
    for exact in (False, True):
        balancer = GradNorm(fork, wrt=shared, exact=exact)
        losses = [head(z).square().mean() for head, z in zip(heads, fork(trunk(x(4, 64))), strict=True)]
        balancer(losses).backward()
        norms.append(balancer.statistics["gradient_norms"])

    assert torch.allclose(norms[0], norms[1], rtol=1e-9)


@pytest.mark.parametrize("exact", [False, True], ids=["", "exact"])
def test_the_norm_at_a_layer_sees_a_hook_on_its_features(exact: bool) -> None:
    torch.manual_seed(0)
    layer, heads, fork = nn.Linear(8, 8).double(), nn.ModuleList(nn.Linear(8, 1).double() for _ in range(2)), Fork(2)
    shrink(layer)
    balancer = GradNorm(fork, wrt=layer, exact=exact)

    z = layer(x(4, 8))
    losses = [head(alias).square().mean() for head, alias in zip(heads, fork(z), strict=True)]
    expected = [torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True) for loss in losses]
    balancer(losses).backward()

    norms = torch.stack([torch.cat([part.flatten() for part in each]).norm() for each in expected])
    assert torch.allclose(balancer.statistics["gradient_norms"], norms, rtol=1e-9)
