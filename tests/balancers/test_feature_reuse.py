"""A tensor of features that heads use twice is one variable: its gradients add up before anything is measured."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from balancers import MGDA, Fork, ForkError, GradientBalancer, GradNorm, LinearHeads

TASKS = 2


def parts() -> tuple[nn.Sequential, nn.ModuleList, Tensor]:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 5), nn.Tanh()).double()
    heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(TASKS)).double()
    return trunk, heads, torch.randn(8, 4, dtype=torch.float64)


def losses_of(heads: nn.ModuleList, first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
    """Return losses in which a head's two outputs belong together."""
    return [(head(a) + 2 * head(b).tanh()).square().mean() for head, a, b in zip(heads, first, second, strict=True)]


def gramian(trunk: nn.Sequential, heads: nn.ModuleList, x: Tensor, at_layer: bool) -> Tensor:
    """Return the inner products of the losses' gradients with respect to the features, or to the first layer."""
    z = trunk(x)
    wrt = list(trunk[0].parameters()) if at_layer else [z]
    rows = [
        torch.cat([part.flatten() for part in torch.autograd.grad(loss, wrt, retain_graph=True)])
        for loss in losses_of(heads, [z] * TASKS, [z] * TASKS)
    ]
    return torch.stack(rows) @ torch.stack(rows).mT


def measured(balancer: GradientBalancer) -> Tensor:
    if balancer.reads == "gramian":
        return balancer.statistics["gramian"]
    return balancer.statistics["gradient_norms"].square()


each_method = pytest.mark.parametrize("method", [MGDA, GradNorm])
NESTED = {
    "tuple": (lambda z: (z, z), lambda alias: alias),
    "dict": (lambda z: {"a": z, "b": [z]}, lambda alias: (alias["a"], alias["b"][0])),
}


@each_method
@pytest.mark.parametrize("at_layer", [False, True], ids=["features", "layer"])
@pytest.mark.parametrize("form", NESTED)
def test_in_two_places_of_one_structure(form: str, at_layer: bool, method: Any) -> None:
    trunk, heads, x = parts()
    nested, pair = NESTED[form]
    fork = Fork(TASKS)
    balancer = method(fork, wrt=trunk[0] if at_layer else None)
    aliases = [pair(alias) for alias in fork(nested(trunk(x)))]
    balancer(losses_of(heads, [a for a, _ in aliases], [b for _, b in aliases])).backward()
    expected = gramian(trunk, heads, x, at_layer)
    expected = expected if balancer.reads == "gramian" else expected.diagonal()
    torch.testing.assert_close(measured(balancer), expected)


def run_twice(method: Any, how: str, at_layer: bool, checkpointed: bool = False) -> tuple[GradientBalancer, Tensor]:
    """Make a step in which the fork is called twice on one tensor; return the balancer and what it should measure."""
    trunk, heads, x = parts()
    fork = Fork.attach(list(heads)) if how == "attached" else Fork(TASKS)
    balancer = method(fork, wrt=trunk[0] if at_layer else None)
    z = checkpoint(trunk, x, use_reentrant=False) if checkpointed else trunk(x)
    if how == "attached":
        first, second = [head(z) for head in heads], [head(z) for head in heads]
        losses = [(a + 2 * b.tanh()).square().mean() for a, b in zip(first, second, strict=True)]
    else:
        losses = losses_of(heads, fork(z), fork(z))
    balancer(losses).backward()
    fork.detach()
    return balancer, gramian(trunk, heads, x, at_layer)


@each_method
@pytest.mark.parametrize("how", ["called twice", "attached"])
def test_twice_in_a_step_is_refused_at_the_features(how: str, method: Any) -> None:
    with pytest.raises(ForkError, match="one tensor of features went through the fork twice in this step"):
        run_twice(method, how, at_layer=False)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("how", ["called twice", "attached"])
def test_twice_in_a_step_adds_up_at_a_layer(how: str, checkpointed: bool) -> None:
    balancer, expected = run_twice(GradNorm, how, at_layer=True, checkpointed=checkpointed)
    torch.testing.assert_close(measured(balancer), expected.diagonal())


def test_linear_heads_that_run_twice_are_refused_at_the_features() -> None:
    trunk, _, x = parts()
    heads = LinearHeads(TASKS, 5, 1).double()
    balancer, z = GradNorm(heads.fork), trunk(x)
    with pytest.raises(ForkError, match="one tensor of features went through the fork twice in this step"):
        balancer((heads(z) + heads(z).tanh()).square().mean((0, 2)))


def test_outputs_that_were_dropped_count_no_more() -> None:
    trunk, heads, x = parts()
    fork = Fork(TASKS)
    balancer, z = GradNorm(fork), trunk(x)
    losses_of(heads, fork(z), fork(z))
    aliases = fork(z)
    balancer(losses_of(heads, aliases, aliases)).backward()
    torch.testing.assert_close(measured(balancer), gramian(trunk, heads, x, at_layer=False).diagonal())
