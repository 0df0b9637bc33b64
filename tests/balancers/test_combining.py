"""Methods that combine gradients: the network's gradient is the combination, however features come through the fork."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from balancers import (
    MGDA,
    EqualWeighting,
    Fork,
    ForkError,
    GradientBalancer,
    GradVac,
    LinearHeads,
    MoCo,
    PCGrad,
    Read,
    Result,
    StaticWeighting,
    get,
    names,
)

from .nets import Net, build, inputs, losses_of

pytestmark = pytest.mark.on_device

WRT = ("features", "layer", "parameters")
COUNTERS = "_extra_state"
"""The entry of a state that counts random draws and turns."""


def formula(gramian: Tensor) -> Tensor:
    """Return weights that depend on the gradients' lengths and angles."""
    return 1 / gramian.diagonal(dim1=-2, dim2=-1).sqrt() + 0.1 * torch.tanh(gramian.sum(-1))


class InverseNorm(GradientBalancer):
    name, summary, reads = "inverse-norm", "A test.", "gramian"

    def solve(self, gramian: Tensor) -> Tensor:
        return formula(gramian)


class Halves(GradientBalancer):
    """Puts directions in the place of gradients: half their sum."""

    name, summary, reads, replaces_gradients = "halves", "A test.", "gradients", True

    def update(self, read: Read) -> Result:
        return Result(torch.ones_like(read.losses), directions=[each.sum(0) / 2 for each in read.gradients])


def make(net: Net, wrt: str, cls: type[GradientBalancer] = InverseNorm, **options: Any) -> GradientBalancer:
    if wrt == "parameters":
        return cls(None, wrt=net.trunk.parameters(), tasks=net.fork.num_tasks, **options)
    return cls(net.fork, wrt=net.layer if wrt == "layer" else None, **options)


def gramian(net: Net, x: Tensor, wrt: str) -> Tensor:
    """Return the Gramian of each task's ordinary gradient, from the network without its fork."""
    features = net.features(x)
    if wrt == "features":  # each leaf a variable of its own, also where one depends on another
        features = tree_map(lambda leaf: leaf.detach().requires_grad_(), features)
    losses = losses_of(net.outputs([[z] * net.fork.num_tasks for z in features]), x)
    layers = {"layer": net.layer, "parameters": net.trunk}
    of = list(layers[wrt].parameters()) if wrt in layers else tree_leaves(features)
    each = [torch.autograd.grad(loss, of, retain_graph=True, materialize_grads=True) for loss in losses]
    rows = torch.stack([torch.cat([part.flatten() for part in parts]) for parts in each])
    return rows @ rows.T


@pytest.mark.parametrize("wrt", WRT)
@pytest.mark.parametrize("name", ["linear", "nested", "convolution", "twice"])
def test_the_networks_gradient_is_the_combination(name: str, wrt: str) -> None:
    net = build(name, 3)
    balancer = make(net, wrt)
    for x in inputs(name, 3):
        weights = formula(gramian(net, x, wrt))
        plain = losses_of(net(x), x)
        trunk, heads = list(net.trunk.parameters()), list(net.heads.parameters())
        weighted = sum(w * loss for w, loss in zip(weights, plain, strict=True))
        combined = torch.autograd.grad(weighted, trunk + heads, retain_graph=True)
        unweighted = torch.autograd.grad(sum(plain), heads)
        net.zero_grad()
        total = balancer(losses_of(net(x), x))
        torch.testing.assert_close(total, sum(loss.detach() for loss in plain))
        total.backward()
        torch.testing.assert_close(balancer.weights, weights, rtol=1e-9, atol=0)
        torch.testing.assert_close([p.grad for p in trunk], list(combined[: len(trunk)]), rtol=1e-9, atol=1e-12)
        of_heads = list(combined[len(trunk) :]) if wrt == "parameters" else list(unweighted)
        torch.testing.assert_close([p.grad for p in heads], of_heads, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("wrt", WRT)
def test_a_scale_cancels_out(wrt: str) -> None:
    one, other = build("linear", 3), build("linear", 3)
    other.load_state_dict(one.state_dict())
    first, second = make(one, wrt), make(other, wrt)
    for x in inputs("linear", 2):
        first(losses_of(one(x), x)).backward()
        (1024 * second(losses_of(other(x), x))).backward()
        torch.testing.assert_close(second.weights, first.weights, rtol=1e-12, atol=0)
        for ours, scaled in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(scaled.grad, 1024 * ours.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in names() if getattr(get(name), "combines", False)])
@pytest.mark.parametrize("fork", [True, False])
def test_a_pass_with_the_factor_zero_trains_and_teaches_nothing(name: str, fork: bool) -> None:
    net, (first, second) = build("linear", 3), inputs("linear", 2)
    cls, trunk = get(name), tuple(net.trunk.parameters())
    if "parameters" not in cls.undefined_for:
        balancer = cls(net.fork, wrt=trunk) if fork else cls(None, wrt=trunk, tasks=3)
    elif fork:
        balancer = cls(net.fork)
    else:
        pytest.skip("is defined at a fork alone")
    balancer.double()
    with torch.no_grad():
        balancer(losses_of(net(first), first))  # which takes the losses' type
    before = {key: value.clone() for key, value in balancer.state_dict().items()}
    (0.0 * balancer(losses_of(net(first), first))).backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in net.trunk.parameters())
    after = balancer.state_dict()
    assert [key for key, value in before.items() if not torch.equal(value, after[key])] in ([], [COUNTERS])
    balancer(losses_of(net(second), second)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.trunk.parameters())
    # One that takes turns has averages of zero until each task has had its turn.
    assert balancer.takes_turns or any(parameter.grad.any() for parameter in net.trunk.parameters())


@pytest.mark.parametrize("cls", [PCGrad, GradVac, MoCo, MGDA], ids=lambda cls: cls.name)
def test_tasks_that_a_weighting_leaves_out_are_trained_on_nothing(cls: type[GradientBalancer]) -> None:
    net, [x] = build("linear", 2), inputs("linear", 1)
    weighting = StaticWeighting([2.0, 0.0], tasks=["a", "b"])
    balancer = cls(net.fork, wrt=net.trunk, tasks=["a", "b"], weighting=weighting, check_finite=True)
    balancer({"b": losses_of(net(x), x)[1]}).backward()
    assert balancer.weights[1] == 0
    assert not any(parameter.grad.any() for parameter in net.trunk.parameters())


def test_linear_heads_are_separate_heads() -> None:
    torch.manual_seed(0)
    trunk, heads = nn.Linear(5, 4).double(), LinearHeads(3, 4, 2).double()
    other, apart = nn.Linear(5, 4).double(), nn.ModuleList(nn.Linear(4, 2) for _ in range(3)).double()
    other.load_state_dict(trunk.state_dict())
    for i, head in enumerate(apart):
        head.load_state_dict({"weight": heads.weight[i].detach(), "bias": heads.bias[i].detach()})
    fork = Fork(3)
    x = torch.randn(6, 5, dtype=torch.float64)
    for wrt in (None, "layer"):
        one = InverseNorm(heads.fork, wrt=trunk if wrt else None)
        two = InverseNorm(fork, wrt=other if wrt else None)
        for module in (trunk, heads, other, apart):
            module.zero_grad()
        one(heads(trunk(x)).square().mean((0, 2))).backward()
        two([head(z).square().mean() for head, z in zip(apart, fork(other(x)), strict=True)]).backward()
        torch.testing.assert_close(one.weights, two.weights, rtol=1e-9, atol=0)
        torch.testing.assert_close(trunk.weight.grad, other.weight.grad, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(heads.weight.grad[1], apart[1].weight.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("wrt", ["features", "parameters"])
def test_directions_replace_gradients(wrt: str) -> None:
    net = build("linear", 3)
    balancer = make(net, wrt, Halves)
    (x,) = inputs("linear")
    trunk, heads = list(net.trunk.parameters()), list(net.heads.parameters())
    plain = torch.autograd.grad(sum(losses_of(net(x), x)), trunk + heads)
    (8 * balancer(losses_of(net(x), x))).backward()
    torch.testing.assert_close([p.grad for p in trunk], [4 * g for g in plain[: len(trunk)]], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close([p.grad for p in heads], [8 * g for g in plain[len(trunk) :]], rtol=1e-9, atol=1e-12)
    net.zero_grad()
    sum(losses_of(net(x), x)).backward()  # the balancer left no hook behind
    torch.testing.assert_close([p.grad for p in trunk], list(plain[: len(trunk)]), rtol=1e-9, atol=1e-12)


def test_linear_heads_applied_twice_are_refused() -> None:
    trunk, heads = nn.Linear(5, 4), LinearHeads(2, 4, 4)
    balancer = InverseNorm(heads.fork)
    z = heads(trunk(torch.randn(3, 5)))
    again = heads(z.mean(1))
    with pytest.raises(ForkError):
        balancer((z + again).square().mean((0, 2))).backward()


def test_another_balancer_takes_the_fork_over() -> None:
    net = build("linear", 2)
    reader = make(net, "features")
    (x,) = inputs("linear")
    losses = losses_of(net(x), x)
    expected = torch.autograd.grad(sum(losses), list(net.parameters()), retain_graph=True)
    EqualWeighting(2)(losses).backward()
    torch.testing.assert_close([p.grad for p in net.parameters()], list(expected), rtol=1e-12, atol=0)
    assert reader.weights.tolist() == [1, 1]


class Nothing(GradientBalancer):
    name, summary = "nothing", "A test."


class NothingOfTheGramian(GradientBalancer):
    name, summary, reads = "nothing-of-the-gramian", "A test.", "gramian"


class NothingOfTheGradients(GradientBalancer):
    name, summary, reads = "nothing-of-the-gradients", "A test.", "gradients"


@pytest.mark.parametrize(
    ("cls", "what"), [(Nothing, "weigh"), (NothingOfTheGramian, "update"), (NothingOfTheGradients, "update")]
)
def test_a_method_that_overrides_nothing_says_what_to_override(cls: type[GradientBalancer], what: str) -> None:
    net = build("linear", 2)
    (x,) = inputs("linear")
    with pytest.raises(NotImplementedError, match=f"{cls.__name__} must override {what}"):
        make(net, "features", cls)(losses_of(net(x), x)).backward()
