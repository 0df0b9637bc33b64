"""A fork is an identity outside a balancer's own backward pass, and that pass counts once."""

import gc
import weakref
from collections import namedtuple
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

from balancers import (
    EqualWeighting,
    Fork,
    ForkError,
    GradientBalancer,
    GradNorm,
    LinearHeads,
    PCGrad,
    UncertaintyWeighting,
)

from .nets import Net, build, inputs, losses_of

pytestmark = pytest.mark.on_device

Pair = namedtuple("Pair", "near far")


def pair() -> tuple[Net, Net, GradNorm]:
    """Return a network with a balancer on its fork, the same network without one, and the balancer."""
    net, plain = build("linear", 2), build("linear", 2)
    return net, plain, GradNorm(net.fork, wrt=net.layer, optimizer="sgd", lr=0.1)


def batch() -> Tensor:
    return inputs("linear")[0]


def state(balancer: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in balancer.named_buffers()}


def assert_same(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    assert before.keys() == after.keys()
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=0, check_dtype=False)


def gradients(net: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in net.parameters()]


def test_plain_until_a_balancer_reads_it():
    z = torch.randn(2, 3, requires_grad=True)
    assert all(alias is z for alias in Fork(3)(z))


@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "frozen"])
def test_plain_where_nothing_is_learned(how: str):
    net, _, _balancer = pair()
    z = torch.randn(2, 3, requires_grad=True)
    if how == "frozen":
        assert all(alias.equal(z) and not alias.requires_grad for alias in net.fork(z.detach()))
    else:
        with getattr(torch, how)():
            assert all(alias is z for alias in net.fork(z))


def test_a_balancer_reads_the_fork_in_either_mode():
    net, _, _balancer = pair()
    z = torch.randn(2, 3, requires_grad=True)
    for mode in (True, False):
        aliases = net.fork.train(mode)(z)
        assert all(alias is not z and alias.equal(z) for alias in aliases)


def test_nested_features_keep_their_structure():
    net, _, _ = pair()
    leaves = [torch.randn(2, 3, requires_grad=True) for _ in range(4)]
    features = {"scales": [leaves[0], leaves[1]], "pair": Pair(leaves[2], (leaves[3], None)), "size": 7}
    aliases = net.fork(features)
    assert len(aliases) == 2
    for alias in aliases:
        assert alias.keys() == features.keys()
        assert isinstance(alias["pair"], Pair)
        assert alias["size"] == 7
        assert alias["pair"].far[1] is None
        got = [*alias["scales"], alias["pair"].near, alias["pair"].far[0]]
        assert all(one.equal(leaf) and one.requires_grad for one, leaf in zip(got, leaves, strict=True))


def test_values_and_gradients_without_the_balancer():
    """A network that has a balancer can also be trained, or differentiated, without it."""
    net, plain, balancer = pair()
    x = batch()
    balancer(losses_of(net(x), x)).backward()
    net.zero_grad()
    before = state(balancer)
    sum(losses_of(net(x), x)).backward()
    sum(losses_of(plain(x), x)).backward()
    torch.testing.assert_close(gradients(net), gradients(plain), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(net(x), plain(x), rtol=0, atol=0)
    assert_same(before, state(balancer))


def of_parameters(net: Net) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    return lambda parameters, x: torch.stack(losses_of(functional_call(net, parameters, (x,)), x)).sum()


def func_grad(net: Net, x: Tensor):
    return grad(of_parameters(net))(dict(net.named_parameters()), x)


def func_per_sample(net: Net, x: Tensor):
    """Return a gradient for each sample."""
    each = vmap(grad(of_parameters(net)), in_dims=(None, 0))
    return each({key: p.detach() for key, p in net.named_parameters()}, x[:, None])


def func_vmap(net: Net, x: Tensor):
    return vmap(lambda row: torch.stack(net(row[None])))(x)


def func_jvp(net: Net, x: Tensor):
    return jvp(lambda x: torch.stack(net(x)), (x,), (torch.ones_like(x),))


def func_jacrev(net: Net, x: Tensor):
    return jacrev(lambda x: torch.stack(net(x)))(x)


def forward_mode(net: Net, x: Tensor):
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        return [torch.autograd.forward_ad.unpack_dual(output).tangent for output in net(dual)]


def hessian_vector(net: Net, x: Tensor):
    parameters = list(net.parameters())
    first = torch.autograd.grad(sum(losses_of(net(x), x)), parameters, create_graph=True)
    return list(torch.autograd.grad(sum(g.sum() for g in first), parameters, allow_unused=True))


@pytest.mark.parametrize(
    "transform",
    [func_grad, func_per_sample, func_vmap, func_jvp, func_jacrev, forward_mode, hessian_vector],
    ids=lambda f: f.__name__,
)
def test_transforms(transform):
    net, plain, balancer = pair()
    x = batch()
    balancer(losses_of(net(x), x)).backward()
    before = state(balancer)
    torch.testing.assert_close(transform(net, x), transform(plain, x), rtol=1e-12, atol=1e-15)
    assert_same(before, state(balancer))


@pytest.mark.parametrize("wrt", ["layer", "features", "parameters"])
@pytest.mark.parametrize("through", ["outputs", "loss"])
def test_gradient_penalty(wrt: str, through: str):
    """The loss may get a penalty on its own gradient, or on the outputs' gradient, with respect to the input."""
    net, plain, _ = pair()
    if wrt == "parameters":
        balancer = GradNorm(None, wrt=net.layer, tasks=2, optimizer="sgd", lr=0.1)
    else:
        balancer = GradNorm(net.fork, wrt=None if wrt == "features" else net.layer, optimizer="sgd", lr=0.1)
    for t in range(3):
        x = inputs("linear", 3)[t].requires_grad_()

        def penalty(of: Tensor, x: Tensor = x) -> Tensor:
            (slope,) = torch.autograd.grad(of, x, create_graph=True)
            return 0.1 * slope.square().sum()

        outputs = net(x)
        loss = balancer(losses_of(outputs, x))
        net.zero_grad()
        (loss + penalty(sum(outputs).sum() if through == "outputs" else loss)).backward()

        # Compute the same without a fork: each head has its own copy of the features to differentiate by.
        z = plain.trunk(x)
        aliases = [z.clone(), z.clone()]
        outputs = plain.outputs([aliases])
        weighted = [w * loss for w, loss in zip(balancer.weights, losses_of(outputs, x), strict=True)]
        total = sum(weighted)
        full = total + penalty(sum(outputs).sum() if through == "outputs" else total)
        plain.zero_grad()
        measured = [[arriving] for arriving in torch.autograd.grad(full, aliases, retain_graph=True)]
        layer = list(plain.layer.parameters())
        if wrt == "layer":
            measured = [torch.autograd.grad(z, layer, arriving, retain_graph=True) for (arriving,) in measured]
        if wrt == "parameters":
            measured = [torch.autograd.grad(each, layer, retain_graph=True) for each in weighted]
        full.backward()
        torch.testing.assert_close(gradients(net), gradients(plain), rtol=1e-12, atol=1e-15)
        assert balancer.updates.equal(torch.full((2,), t + 1.0))
        # A fork measures all gradients that arrive in this pass, including the penalty's; without one, the losses'.
        norms = torch.stack([torch.cat([g.flatten() for g in each]).norm() for each in measured])
        torch.testing.assert_close(balancer.statistics["gradient_norms"], norms, rtol=1e-12, atol=0)


def test_a_pass_that_is_being_differentiated_does_not_count():
    net, _, balancer = pair()
    x = batch()
    before = state(balancer)
    loss = balancer(losses_of(net(x), x))
    torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
    assert_same(before, state(balancer))
    loss.backward()
    assert not state(balancer)["next_weights"].equal(before["next_weights"])


@pytest.mark.on_cpu
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_whole_model_compiled(backend: str):
    """A fork that no balancer reads is part of the graph; of one that is read, see `test_compiled`."""
    net, plain = build("linear", 2), build("linear", 2)
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    x = batch()
    EqualWeighting(2)(losses_of(compiled(x), x)).backward()
    sum(losses_of(plain(x), x)).backward()
    torch.testing.assert_close(gradients(net), gradients(plain), rtol=1e-12, atol=1e-15)


@pytest.mark.on_cpu
@pytest.mark.usefixtures("fresh_compiler")
def test_whole_model_compiled_with_gradients_of_parameters():
    """Without a fork, GradNorm works on a model that is compiled as one graph."""
    net, plain = build("linear", 2), build("linear", 2)
    one = GradNorm(None, wrt=net.layer, tasks=2)
    other = GradNorm(None, wrt=plain.layer, tasks=2)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for x in inputs("linear", 2):
        one(losses_of(compiled(x), x)).backward()
        other(losses_of(plain(x), x)).backward()
    torch.testing.assert_close(one.next_weights, other.next_weights, rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", ["layer", "features", "parameters", "uncertainty"])
def test_a_second_backward_does_not_count(method: str):
    net, _, _ = pair()
    balancer = {
        "layer": lambda: GradNorm(net.fork, wrt=net.layer),
        "features": lambda: GradNorm(net.fork),
        "parameters": lambda: GradNorm(None, wrt=net.layer, tasks=2),
        "uncertainty": lambda: UncertaintyWeighting(2),
    }[method]()
    x = batch()
    loss = balancer(losses_of(net(x), x))
    loss.backward(retain_graph=True)
    once = state(balancer)
    first = [g.clone() for g in gradients(net)]
    loss.backward()
    assert_same(once, state(balancer))
    torch.testing.assert_close(gradients(net), [2 * g for g in first], rtol=1e-12, atol=0)


@pytest.mark.parametrize("learning", [True, False])
def test_a_forward_pass_alone_changes_nothing(learning: bool):
    net, _, balancer = pair()
    x = batch()
    balancer(losses_of(net(x), x)).backward()
    balancer(losses_of(net(x), x))  # applies this step's weights, so that later calls have nothing to change
    before = state(balancer)
    with torch.set_grad_enabled(learning):
        for _ in range(3):
            balancer(losses_of(net(x), x))
    assert_same(before, state(balancer))


@pytest.mark.slow
def test_a_forward_pass_alone_leaves_nothing_behind():
    net, _, balancer = pair()
    x = batch()
    balancer(losses_of(net(x), x)).backward()
    for backward in (False, True):
        z = net.trunk(x)
        seen = weakref.ref(z)
        loss = balancer(losses_of(net.outputs([net.fork(z)]), x))
        if backward:
            loss.backward()
        del z, loss
        gc.collect()
        assert seen() is None


@pytest.mark.parametrize("kind", ["linear", "convolution", "nested"])
@pytest.mark.parametrize("method", [GradNorm, PCGrad])
@pytest.mark.parametrize("wrt", ["features", "layer"])
def test_features_of_an_earlier_call_are_not_left_out_in_silence(kind: str, method: type[GradientBalancer], wrt: str):
    """A call measures the features since the call before."""
    net = build(kind, 2)
    balancer = method(net.fork, wrt=net.layer if wrt == "layer" else None)
    x, y = inputs(kind, 2)
    first = losses_of(net(x), x)
    balancer(first)  # shown to a user, say
    second = losses_of(net(y), y)
    with pytest.raises(ForkError, match="before an earlier call"):
        balancer([a + b for a, b in zip(first, second, strict=True)]).backward()
    balancer(losses_of(net(x), x)).backward()


def test_one_call_after_two_forward_passes_measures_both():
    net, _, balancer = pair()
    losses = [losses_of(net(x), x) for x in inputs("linear", 2)]
    both = [a + b for a, b in zip(*losses, strict=True)]
    rows = [torch.autograd.grad(loss, list(net.layer.parameters()), retain_graph=True) for loss in both]
    balancer(both).backward()
    norms = torch.stack([torch.cat([g.flatten() for g in row]).norm() for row in rows])
    torch.testing.assert_close(balancer.statistics["gradient_norms"], norms, rtol=1e-9, atol=0, check_dtype=False)


@pytest.mark.parametrize("method", [GradNorm, PCGrad])
def test_features_of_an_earlier_call_and_heads_as_one_product(method: type[GradientBalancer]):
    trunk, heads = nn.Linear(3, 4), LinearHeads(2, 4, 1)
    balancer = method(heads.fork)
    first = heads(trunk(torch.randn(5, 3))).square().mean((0, 2))
    balancer(first)
    second = heads(trunk(torch.randn(5, 3))).square().mean((0, 2))
    with pytest.raises(ForkError, match="before an earlier call"):
        balancer(first + second).backward()


def test_a_call_that_no_backward_pass_follows_is_no_error():
    net, _, balancer = pair()
    x = batch()
    balancer(losses_of(net(x), x))
    balancer(losses_of(net(x), x)).backward()


def test_a_failed_backward_pass_is_followed_by_a_good_one():
    net, _, balancer = pair()
    fresh = GradNorm(net.fork, wrt=net.layer, optimizer="sgd", lr=0.1)
    x = batch()

    def fail(gradient: Tensor) -> None:
        raise RuntimeError("stop")

    handle = net.trunk[0].weight.register_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        balancer(losses_of(net(x), x)).backward()
    handle.remove()
    balancer(losses_of(net(x), x)).backward()
    fresh(losses_of(net(x), x)).backward()
    torch.testing.assert_close(balancer.next_weights, fresh.next_weights, rtol=1e-12, atol=0)


def test_two_balancers_take_turns_at_a_fork():
    net, _, one = pair()
    other = GradNorm(net.fork, wrt=net.layer, optimizer="sgd", lr=0.1)
    x = batch()
    for balancer in (one, other):
        balancer(losses_of(net(x), x)).backward()
    torch.testing.assert_close(one.next_weights, other.next_weights, rtol=1e-12, atol=0)
    assert not one.next_weights.equal(torch.ones(2))
