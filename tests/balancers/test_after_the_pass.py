"""What is left of a measured backward pass when it has ended: no graph, no gradients, and no call of a user's hook."""

import copy
import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from balancers import MGDA, AutoLambda, Fork, GradientBalancer, GradNorm, MoCo, NTKWeighting


class Net(nn.Module):
    """A trunk, maybe checkpointed, a fork and two heads; it keeps weak references to the features of all calls."""

    def __init__(self, trunk: nn.Module, checkpointed: bool = False) -> None:
        super().__init__()
        self.trunk, self.checkpointed, self.fork = trunk, checkpointed, Fork(num_tasks=2)
        self.heads = nn.ModuleList([nn.Linear(8, 1), nn.Linear(8, 1)])
        self.features: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor) -> list[Tensor]:
        z = checkpoint(self.trunk, x, use_reentrant=False) if self.checkpointed else self.trunk(x)
        self.features.append(weakref.ref(z))
        return [head(each).square().mean() for head, each in zip(self.heads, self.fork(z), strict=True)]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("wrt", [slice(None), 2], ids=["trunk", "layer"])
def test_a_checkpointed_trunk_leaves_no_graph_behind(wrt: slice | int, accumulate: int) -> None:
    net = Net(mlp(), checkpointed=True)
    balancer = GradNorm(net.fork, wrt=net.trunk[wrt], accumulate=accumulate)
    for _ in range(4):
        balancer(net(torch.ones(3, 4))).backward()
    gc.collect()
    assert [z() for z in net.features] == [None] * 4
    assert (balancer.updates == 4 // accumulate).all()


def test_a_loss_that_is_kept_keeps_no_gradients_of_the_tasks() -> None:
    net = Net(mlp())
    balancer = GradNorm(net.fork, wrt=net.trunk, accumulate=2)
    for _ in range(2):
        loss = balancer(net(torch.ones(3, 4)))
        loss.backward()
    gc.collect()
    shape = (2, *net.trunk[0].weight.shape)
    assert not [each for each in gc.get_objects() if type(each) is Tensor and each.shape == shape]
    assert loss.requires_grad


def stem_and_trunk() -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    return mlp()[:2], mlp()[2:], torch.linspace(-1, 1, 12).reshape(3, 4)


def losses_of(aliases: Sequence[Tensor]) -> list[Tensor]:
    return [(z - k).square().mean() for k, z in enumerate(aliases)]


@pytest.mark.parametrize("num_tasks", [2, 5])
@pytest.mark.parametrize(
    ("method", "options"), [(MGDA, {}), (MGDA, {"exact": True}), (MGDA, {"update_every": 2}), (MoCo, {})], ids=str
)
def test_features_that_the_caller_holds_hold_no_graph(
    method: type[GradientBalancer], options: dict[str, Any], num_tasks: int
) -> None:
    """As with any other loss: two steps' activations would else lie in memory during the next forward pass."""
    stem, trunk, x = stem_and_trunk()
    fork = Fork(num_tasks)
    balancer = method(fork, [*stem.parameters(), *trunk.parameters()], **options)
    for _ in range(2):
        z = trunk(stem(x))
        loss = balancer(losses_of(fork(z)))
        loss.backward(retain_graph=True)
        torch.autograd.grad(z.sum(), stem[0].weight)
        z = trunk(stem(x))
        balancer(losses_of(fork(z))).backward()
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(z.sum(), stem[0].weight)


@pytest.mark.parametrize("num_tasks", [2, 5])
def test_a_loss_from_within_the_trunk_finds_its_part_of_the_graph(num_tasks: int) -> None:
    stem, trunk, x = stem_and_trunk()
    fork, weight = Fork(num_tasks), stem[0].weight
    balancer = MGDA(fork, [*stem.parameters(), *trunk.parameters()])
    found = []
    for others in (False, True):
        weight.grad = None
        h = stem(x)
        loss = balancer(losses_of(fork(trunk(h))))
        (loss + h.square().sum() if others else loss).backward()
        found.append(weight.grad)
    h = stem(x)
    [own] = torch.autograd.grad(h.square().sum(), weight)
    torch.testing.assert_close(found[1] - found[0], own)


@pytest.mark.parametrize("num_tasks", [2, 5])
@pytest.mark.parametrize("by", ["backward", "grad"])
def test_a_pass_to_some_parameters_leaves_the_way_to_others(by: str, num_tasks: int) -> None:
    stem, trunk, x = stem_and_trunk()
    fork = Fork(num_tasks)
    balancer = MGDA(fork, [*stem.parameters(), *trunk.parameters()])
    h = stem(x)
    loss, some = balancer(losses_of(fork(trunk(h)))), list(trunk.parameters())
    if by == "grad":
        torch.autograd.grad(loss, some)
    else:
        loss.backward(inputs=some)
    h.square().sum().backward(inputs=list(stem.parameters()))
    expected = torch.autograd.grad(stem(x).square().sum(), stem[0].weight)
    torch.testing.assert_close(stem[0].weight.grad, *expected)


def test_two_gates_share_a_stem() -> None:
    """Each is the end of a graph of which the other's pass needs a part."""
    stem, trunk, x = stem_and_trunk()
    other, forks, weight = copy.deepcopy(trunk), [Fork(2), Fork(2)], stem[0].weight
    trunks = [trunk, other]
    balancers = [MGDA(f, [*stem.parameters(), *t.parameters()]) for f, t in zip(forks, trunks, strict=True)]
    found = []
    for chosen in ([0], [1], [0, 1]):
        weight.grad = None
        h = stem(x)
        sum(balancers[i](losses_of(forks[i](trunks[i](h)))) for i in chosen).backward()
        found.append(weight.grad)
    torch.testing.assert_close(found[2], found[0] + found[1])


def test_features_go_through_a_fork_twice_behind_one_stem() -> None:
    stem, trunk, x = stem_and_trunk()
    fork = Fork(2)
    balancer = MGDA(fork, [*stem.parameters(), *trunk.parameters()])
    h = stem(x)
    first, second = fork(trunk(h)), fork(trunk(2 * h))
    balancer(losses_of([torch.cat(pair) for pair in zip(first, second, strict=True)])).backward()
    assert stem[0].weight.grad.abs().sum() > 0


def norms(net: Net, exact: bool) -> Tensor:
    balancer = GradNorm(net.fork, wrt=net.trunk, exact=exact)
    balancer(net(torch.linspace(-1, 1, 12).reshape(3, 4))).backward()
    return balancer.statistics["gradient_norms"]


def test_hooks_on_any_parameter_see_the_combined_gradient_alone() -> None:
    """The cheap way to norms differentiates what it can't do itself, such as a LayerNorm."""
    torch.manual_seed(0)
    net = Net(nn.Sequential(nn.Linear(4, 64), nn.LayerNorm(64), nn.Tanh(), nn.Linear(64, 8)))
    expected, calls = norms(net, exact=True), list[Tensor]()

    def larger(gradient: Tensor) -> Tensor:
        calls.append(gradient)
        return 100 * gradient

    net.trunk[1].weight.register_hook(larger)
    torch.testing.assert_close(norms(net, exact=False), expected)
    assert len(calls) == 1


def ntk(net: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
    balancer = NTKWeighting(None, wrt=net, tasks=2, update_every=1)

    def step() -> Tensor:
        out = net(torch.linspace(-1, 1, 12).reshape(3, 4))
        balancer.residuals([out[:, 0], out[:, 1]])
        return balancer([out[:, 0].square().mean(), out[:, 1].square().mean()])

    return step


def auto_lambda(net: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
    balancer = AutoLambda(None, wrt=net, tasks=2)

    def losses() -> list[Tensor]:
        return list(net(torch.linspace(-1, 1, 12).reshape(3, 4)).square().mean(0)[:2])

    balancer.follow(optimizer)
    balancer.second_batch(losses)
    return lambda: balancer(losses())


@pytest.mark.parametrize("make", [ntk, auto_lambda])
def test_a_hook_is_called_once_a_step(make: Callable[[nn.Module, torch.optim.Optimizer], Callable[[], Tensor]]) -> None:
    torch.manual_seed(0)
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    step = make(net, optimizer)
    calls = list[Tensor]()
    net[0].weight.register_hook(calls.append)
    step().backward()
    assert len(calls) == 1


@pytest.mark.parametrize("fork", [True, False])
def test_parameters_may_be_wider_than_the_losses(fork: bool) -> None:
    net = Net(mlp()).double()
    place = net.fork if fork else None
    balancer = GradNorm(place, wrt=net.trunk, exact=True, **({} if fork else {"tasks": 2}))
    balancer([loss.float() for loss in net(torch.ones(3, 4, dtype=torch.float64))]).backward()
    assert (balancer.statistics["gradient_norms"] > 0).all()


class Stacks(TorchDispatchMode):
    """Counts the stacks of tensors of at least ``entries`` numbers."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.entries, self.count = entries, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.stack.default and args[0][0].numel() >= self.entries
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("num_tasks", [3, 4, 10])
def test_gradients_of_many_rows_are_not_kept_for_all_tasks_at_once(num_tasks: int) -> None:
    """Those of the features are there at the fork; those of the other layers' outputs need not be."""
    trunk, fork = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4))), Fork(num_tasks)
    balancer = MGDA(fork, wrt=trunk)
    loss = balancer([(k + 1.0) * z.square().mean() for k, z in enumerate(fork(trunk(torch.ones(1000, 8))))])
    with Stacks(1000 * 8) as stacks:
        loss.backward()
    assert stacks.count <= 1
