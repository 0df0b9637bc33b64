"""A loss may have more than one backward pass, none, one that fails, or one that another balancer makes.

Each method is tried at each place that it is defined for. What must hold: the gradients are right, or the pass is
refused by the method's name, and only the first whole pass changes the state.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

from balancers import (
    FAMO,
    MGDA,
    DynamicWeightAverage,
    EqualWeighting,
    Fork,
    ForkError,
    GeometricLossStrategy,
    GradientBalancer,
    GradNorm,
    LossBalancer,
    MoCo,
    StaticWeighting,
    UncertaintyWeighting,
    get,
    names,
)

from .needs import supply
from .nets import Net, build, inputs, losses_of

PLACES = ("features", "layer", "parameters")
OPTIONS: dict[str, dict[str, Any]] = {"static": {"weights": [0.5, 1.5]}, "m-config": {"takes_turns": False}}
"""What methods need besides the tasks."""


def make(name: str, place: str, net: Net) -> LossBalancer:
    method: Callable[..., LossBalancer] = get(name)
    options = {"tasks": 2} | OPTIONS.get(name, {})
    if place == "parameters":
        balancer = method(None, wrt=net.trunk, **options)
    elif place:
        balancer = method(net.fork, wrt=net.layer if place == "layer" else None, **options)
    else:
        balancer = method(**options)
    supply(balancer, lambda: plain_losses(net, batch(9)))
    return balancer


def cases(keep: Callable[[type[LossBalancer]], bool] = lambda method: True) -> list[Any]:
    """Return the name of each method that is to be kept, with each place."""
    found = []
    for name in names():
        method = get(name)
        if keep(method):
            places = [""]
            if issubclass(method, GradientBalancer):
                places = [place for place in PLACES if place not in method.undefined_for]
            found += [pytest.param(name, place, id=f"{name}-{place}" if place else name) for place in places]
    return found


ALL = pytest.mark.parametrize(("name", "place"), cases())
WEIGHTING = pytest.mark.parametrize(("name", "place"), cases(lambda method: not method.combines))
COMBINING = pytest.mark.parametrize(("name", "place"), cases(lambda method: method.combines))
MEASURING = pytest.mark.parametrize(("name", "place"), cases(lambda method: issubclass(method, GradientBalancer)))
UNMEASURED = pytest.mark.parametrize(("name", "place"), cases(lambda m: not issubclass(m, GradientBalancer)))


def trained(name: str, place: str, steps: int = 2) -> tuple[Net, LossBalancer]:
    """Return a network and its balancer after some steps, always the same ones."""
    net = build("linear", 2)
    balancer = make(name, place, net)
    with torch.no_grad():
        balancer(losses_of(net(batch(0)), batch(0)))  # moves the state to the losses' type
    for t in range(steps):
        backward(net, balancer, batch(t))
    net.zero_grad()
    return net, balancer


def backward(net: Net, balancer: LossBalancer, x: Tensor) -> None:
    losses = losses_of(net(x), x)
    balancer(losses).backward()
    if balancer.looks_again:
        balancer.after_step([0.9 * loss.detach() for loss in losses])


def batch(seed: int = 5) -> Tensor:
    return inputs("linear", seed + 1)[seed]


def gradients(net: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in net.parameters()]


def plain_losses(net: Net, x: Tensor) -> list[Tensor]:
    """Return the losses of a graph that does not go through the fork."""
    return losses_of(net.outputs([(net.trunk(x),) * 2]), x)


def weighted(net: Net, weights: Tensor, x: Tensor) -> list[Tensor]:
    """Return the gradients of the weighted sum of the losses."""
    total = sum(w * loss for w, loss in zip(weights, plain_losses(net, x), strict=True))
    return list(torch.autograd.grad(total, list(net.parameters())))


def close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    torch.testing.assert_close(list(found), list(expected), rtol=1e-12, atol=1e-14)


def state(balancer: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in balancer.state_dict().items()}


def differing(before: dict[str, Tensor], after: dict[str, Tensor], but: Sequence[str] = ()) -> list[str]:
    return [key for key in before if key not in but and not before[key].equal(after[key])]


def shown(name: str) -> tuple[str, ...]:
    """Return the state that a call may change without a backward pass: the weights it shows."""
    return () if get(name).combines else ("last_weights",)


# A second backward pass.


@ALL
@pytest.mark.parametrize("scale", [1.0, -2.0])
def test_a_second_pass(name: str, place: str, scale: float):
    """It gives the same gradients as the first, and changes nothing."""
    net, balancer = trained(name, place)
    loss = balancer(losses_of(net(batch()), batch()))
    loss.backward(retain_graph=True)
    first, once = gradients(net), state(balancer)
    net.zero_grad()
    if balancer.replaces_gradients:
        with pytest.raises(RuntimeError, match=f"second backward pass.* {type(balancer).__name__} returned"):
            (scale * loss).backward(retain_graph=True)
    else:
        (scale * loss).backward(retain_graph=True)
        close(gradients(net), [scale * gradient for gradient in first])
        net.zero_grad()
        loss.backward()
        close(gradients(net), first)
    assert differing(once, state(balancer)) == []


@ALL
def test_a_step_after_a_second_pass(name: str, place: str):
    """The step after it is the one that it would have been."""
    (net, balancer), (twin, expected) = trained(name, place), trained(name, place)
    loss = balancer(losses_of(net(batch()), batch()))
    loss.backward(retain_graph=True)
    if not balancer.replaces_gradients:
        loss.backward()
    expected(losses_of(twin(batch()), batch())).backward()
    for each, its in ((net, balancer), (twin, expected)):
        each.zero_grad()
        its(losses_of(each(batch(6)), batch(6))).backward()
    close(gradients(net), gradients(twin))
    assert differing(state(expected), state(balancer)) == []


@ALL
def test_a_second_pass_in_pieces(name: str, place: str):
    """The gradients of the trunk and of the heads may be asked for one after the other."""
    (net, balancer), (twin, expected) = trained(name, place), trained(name, place)
    expected(losses_of(twin(batch()), batch())).backward()
    loss = balancer(losses_of(net(batch()), batch()))
    trunk = torch.autograd.grad(loss, list(net.trunk.parameters()), retain_graph=True)
    if balancer.replaces_gradients:
        with pytest.raises(RuntimeError, match="second backward pass"):
            torch.autograd.grad(loss, list(net.heads.parameters()))
    else:
        heads = torch.autograd.grad(loss, list(net.heads.parameters()))
        close([*trunk, *heads], gradients(twin))
    assert differing(state(expected), state(balancer)) == []


@pytest.mark.parametrize("name", ["gradnorm", "imtl", "uncertainty"])
def test_a_second_pass_within_a_window(name: str):
    """It is none of the passes that ``accumulate`` counts."""
    nets = [build("linear", 2) for _ in range(2)]
    balancers = [
        get(name)(2, accumulate=2) if name == "uncertainty" else get(name)(net.fork, accumulate=2) for net in nets
    ]
    for t in range(4):
        for k in range(2):
            loss = balancers[k](losses_of(nets[k](batch(t)), batch(t)))
            loss.backward(retain_graph=True)
            if k == 0:
                loss.backward()
    assert differing(*[state(balancer) for balancer in balancers]) == []


# A pass through the losses of two calls.


@ALL
def test_two_calls_in_one_pass(name: str, place: str):
    """Methods that learn refuse, and the next step is as if nothing had been. The others weigh each call by itself."""
    (net, balancer), (twin, expected) = trained(name, place), trained(name, place)
    before = state(balancer)
    first = balancer(losses_of(net(batch()), batch()))
    weights = balancer.weights
    total = first + balancer(losses_of(net(batch(6)), batch(6)))
    if balancer.when != "after_step" and (balancer.combines or hasattr(type(balancer), "update")):
        with pytest.raises(RuntimeError, match=rf"two calls of {type(balancer).__name__} .*balancer\.held\(\)"):
            total.backward()
        assert differing(before, state(balancer), shown(name)) == []
        for each, its in ((net, balancer), (twin, expected)):
            each.zero_grad()
            its(losses_of(each(batch(7)), batch(7))).backward()
        close(gradients(net), gradients(twin))
        assert differing(state(expected), state(balancer)) == []
    else:
        total.backward()
        parts = zip(weighted(net, weights, batch()), weighted(net, balancer.weights, batch(6)), strict=True)
        close(gradients(net), [one + other for one, other in parts])


# A pass that is being differentiated.


def penalty(total: Tensor, x: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(total, x, create_graph=True)
    return slope.square().sum()


@WEIGHTING
def test_create_graph(name: str, place: str):
    """The gradients are right, also those of the gradients, and nothing is learnt."""
    net, balancer = trained(name, place)
    before, x = state(balancer), batch().requires_grad_()
    found = penalty(balancer(losses_of(net(x), x)), x)
    assert differing(before, state(balancer), shown(name)) == []
    total = sum(w * loss for w, loss in zip(balancer.weights, plain_losses(net, x), strict=True))
    expected = penalty(total, x)
    close([found], [expected])
    parameters = list(net.parameters())
    close(
        torch.autograd.grad(found, parameters, materialize_grads=True),
        torch.autograd.grad(expected, parameters, materialize_grads=True),
    )
    assert differing(before, state(balancer), shown(name)) == []


@WEIGHTING
def test_create_graph_and_then_a_backward_pass(name: str, place: str):
    (net, balancer), (twin, expected) = trained(name, place), trained(name, place)
    loss = balancer(losses_of(net(batch()), batch()))
    torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
    loss.backward()
    expected(losses_of(twin(batch()), batch())).backward()
    close(gradients(net), gradients(twin))
    assert differing(state(expected), state(balancer)) == []


@COMBINING
@pytest.mark.parametrize("how", ["grad", "backward"])
def test_create_graph_is_refused_by_methods_that_combine(name: str, place: str, how: str):
    (net, balancer), (twin, expected) = trained(name, place), trained(name, place)
    before = state(balancer)
    loss = balancer(losses_of(net(batch()), batch()))
    differentiate: dict[str, Callable[[], object]] = {
        "grad": lambda: torch.autograd.grad(loss, list(net.parameters()), create_graph=True),
        "backward": lambda: loss.backward(create_graph=True),
    }
    with pytest.raises(RuntimeError, match=f"{type(balancer).__name__} combines .* without create_graph=True"):
        differentiate[how]()
    assert differing(before, state(balancer)) == []
    net.zero_grad()
    balancer(losses_of(net(batch()), batch())).backward()
    expected(losses_of(twin(batch()), batch())).backward()
    close(gradients(net), gradients(twin))
    assert differing(state(expected), state(balancer)) == []


@COMBINING
def test_a_penalty_on_the_plain_losses_beside_a_method_that_combines(name: str, place: str):
    """A pass that does not go through the balancer's loss may be differentiated."""
    net, balancer = trained(name, place)
    before, x = state(balancer), batch().requires_grad_()
    losses = losses_of(net(x), x)
    close([penalty(sum(losses), x)], [penalty(sum(plain_losses(net, x)), x)])
    balancer(losses)
    penalty(sum(losses), x).backward()
    assert differing(before, state(balancer), ("last_weights",)) == []


# A pass that fails.


def out_of_memory(_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory (simulated)")


def parts(net: Net) -> dict[str, nn.Parameter]:
    """Return a parameter that a backward pass reaches before the fork's aliases, and one that it reaches last."""
    return {"head": net.heads[1][1].weight, "trunk": net.trunk[0].weight}


def fail(net: Net, loss: Tensor, where: str) -> None:
    """Run a backward pass that an exception ends where it reaches a parameter."""
    handle = parts(net)[where].register_hook(out_of_memory)
    with pytest.raises(torch.OutOfMemoryError, match="simulated"):
        loss.backward(retain_graph=True)
    handle.remove()
    net.zero_grad()


WHERE = pytest.mark.parametrize("where", ["head", "trunk"])


@ALL
@WHERE
def test_a_pass_that_fails_leaves_the_state(name: str, place: str, where: str):
    net, balancer = trained(name, place)
    before = state(balancer)
    fail(net, balancer(losses_of(net(batch()), batch())), where)
    assert differing(before, state(balancer), shown(name)) == []


@ALL
@WHERE
@pytest.mark.parametrize("same", [False, True], ids=["new graph", "same graph"])
def test_a_plain_pass_after_one_that_failed(name: str, place: str, where: str, same: bool):
    """No hook of the failed pass is left that would change it."""
    net, balancer = trained(name, place)
    losses = losses_of(net(batch()), batch())
    fail(net, balancer(losses), where)
    sum(losses if same else losses_of(net(batch()), batch())).backward()
    close(gradients(net), weighted(net, torch.ones(2), batch()))


@ALL
@WHERE
@pytest.mark.parametrize("how", ["next step", "same loss"])
def test_a_step_after_one_that_failed(name: str, place: str, where: str, how: str):
    """A step may be tried again, with its own graph or with that of the failed pass, as if nothing had been."""
    (net, balancer), (twin, expected) = trained(name, place), trained(name, place)
    loss = balancer(losses_of(net(batch()), batch()))
    fail(net, loss, where)
    (loss if how == "same loss" else balancer(losses_of(net(batch()), batch()))).backward()
    expected(losses_of(twin(batch()), batch())).backward()
    close(gradients(net), gradients(twin))
    assert differing(state(expected), state(balancer)) == []


@MEASURING
def test_half_a_batch_after_a_pass_that_failed(name: str, place: str):
    """What people do when memory runs out: the same samples again, in a smaller batch."""
    (net, balancer), (twin, expected) = trained(name, place), trained(name, place)
    fail(net, balancer(losses_of(net(batch()), batch())), "trunk")
    half = batch()[:2]
    balancer(losses_of(net(half), half)).backward()
    expected(losses_of(twin(half), half)).backward()
    close(gradients(net), gradients(twin))


@pytest.mark.parametrize("name", ["gradnorm", "uncertainty"])
def test_a_pass_that_fails_within_a_window(name: str):
    """It is none of the passes that ``accumulate`` counts."""
    nets = [build("linear", 2) for _ in range(2)]
    balancers = [
        get(name)(2, accumulate=2) if name == "uncertainty" else get(name)(net.fork, accumulate=2) for net in nets
    ]
    for t in range(4):
        fail(nets[0], balancers[0](losses_of(nets[0](batch(6)), batch(6))), "trunk")
        for net, balancer in zip(nets, balancers, strict=True):
            balancer(losses_of(net(batch(t)), batch(t))).backward()
    assert differing(*[state(balancer) for balancer in balancers]) == []


@COMBINING
def test_an_exception_in_the_method_itself(name: str, place: str, monkeypatch: pytest.MonkeyPatch):
    """A plain pass after it is plain, and the next step is right."""
    (net, balancer), (twin, expected) = trained(name, place), trained(name, place)
    function = "update" if hasattr(type(balancer), "update") else "solve"
    losses = losses_of(net(batch()), batch())
    with monkeypatch.context() as patch:
        patch.setattr(type(balancer), function, lambda *_, **__: out_of_memory(None))
        with pytest.raises(torch.OutOfMemoryError):
            balancer(losses).backward(retain_graph=True)
    net.zero_grad()
    sum(losses).backward()
    close(gradients(net), weighted(net, torch.ones(2), batch()))
    net.zero_grad()
    balancer(losses_of(net(batch()), batch())).backward()
    expected(losses_of(twin(batch()), batch())).backward()
    close(gradients(net), gradients(twin))


# A balancer whose loss is one of another balancer's losses.


class Nested(nn.Module):
    """Three heads, of which the first two share an alias: their losses are weighed first, and then with the third's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
        self.fork = Fork(2)
        self.heads = nn.ModuleList(nn.Linear(4, 3) for _ in range(3))
        self.double()

    def losses(self, x: Tensor, plain: bool = False) -> list[Tensor]:
        z = self.trunk(x)
        one, other = (z, z) if plain else self.fork(z)
        outputs = [head(each) for head, each in zip(self.heads, (one, one, other), strict=True)]
        return losses_of(outputs, x)


Make = Callable[[Nested], LossBalancer]
WEIGHERS: dict[str, Make] = {
    "equal": lambda _: EqualWeighting(2),
    "static": lambda _: StaticWeighting([0.5, 1.5], tasks=2),
    "uncertainty": lambda _: UncertaintyWeighting(2),
    "gls": lambda _: GeometricLossStrategy(2),
    "dwa": lambda _: DynamicWeightAverage(2),
    "famo": lambda _: FAMO(2),
}
NORMS: dict[str, Make] = {
    "gradnorm features": lambda net: GradNorm(net.fork),
    "gradnorm layer": lambda net: GradNorm(net.fork, wrt=net.trunk[2]),
    "gradnorm parameters": lambda net: GradNorm(None, wrt=net.trunk, tasks=2),
}
COMBINERS: dict[str, Make] = {
    "mgda features": lambda net: MGDA(net.fork),
    "mgda layer": lambda net: MGDA(net.fork, wrt=net.trunk[2]),
    "mgda parameters": lambda net: MGDA(None, wrt=net.trunk, tasks=2),
}
INNER = {**WEIGHERS, "gradnorm parameters": NORMS["gradnorm parameters"]}


def flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("outer", [*WEIGHERS, *NORMS, *COMBINERS])
def test_a_weighting_balancer_within_another(outer: str, inner: str):
    """The outer one measures the loss that the inner one returned, and the inner one learns as it does alone."""
    net = Nested()
    one, other = ({**WEIGHERS, **NORMS, **COMBINERS}[outer](net), INNER[inner](net))
    alone = INNER[inner](net)
    for t in range(3):
        x = batch(t)
        first, second, third = net.losses(x)
        total = one([other([first, second]), third])
        net.zero_grad()
        total.backward()

        # The same by hand.
        z = net.trunk(x)
        outputs = [head(z) for head in net.heads]
        plain = losses_of(outputs, x)
        group = sum(w * loss for w, loss in zip(other.weights, plain[:2], strict=True))
        own = [group, plain[2]]
        wrt = {"features": [z], "layer": list(net.trunk[2].parameters())}.get(outer.split()[-1])
        wrt = list(net.trunk.parameters()) if wrt is None else wrt
        rows = torch.stack([flat(torch.autograd.grad(loss, wrt, retain_graph=True)) for loss in own])
        shares = heads = one.weights
        if outer in NORMS:
            close([one.statistics["gradient_norms"] / shares], [rows.norm(dim=1)])
        if outer in COMBINERS:
            close([one.statistics["gramian"]], [rows @ rows.mT])
            shares = one.solve(rows @ rows.mT)
            heads = shares if outer == "mgda parameters" else torch.ones(2)
        trunk_total = sum(w * loss for w, loss in zip(shares, own, strict=True))
        heads_total = sum(w * loss for w, loss in zip(heads, own, strict=True))
        trunk = torch.autograd.grad(trunk_total, list(net.trunk.parameters()), retain_graph=True)
        rest = torch.autograd.grad(heads_total, list(net.heads.parameters()))
        torch.testing.assert_close(gradients(net), [*trunk, *rest], rtol=1e-9, atol=1e-12)

        # The inner balancer learns what it learns alone: norms don't depend on the factor that comes from outside.
        alone(net.losses(x)[:2]).backward()
        for each, its in ((other, plain[:2]), (alone, plain[:2]), (one, own)):
            if each.looks_again:
                each.after_step([0.9 * loss.detach() for loss in its])
        for key, value in state(alone).items():
            torch.testing.assert_close(other.state_dict()[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("inner", ["mgda parameters", "moco parameters"])
@pytest.mark.parametrize("outer", WEIGHERS)
def test_a_combining_balancer_within_one_that_measures_nothing(outer: str, inner: str):
    """The gradients of the group are combined, and then multiplied by the group's weight."""
    method = MGDA if inner == "mgda parameters" else MoCo
    net, twin = Nested(), Nested()
    one = WEIGHERS[outer](net)
    other, alone = (method(None, wrt=each.trunk, tasks=2) for each in (net, twin))
    for t in range(3):
        x = batch(t)
        first, second, third = net.losses(x)
        net.zero_grad()
        one([other([first, second]), third]).backward()
        w = one.weights
        if one.looks_again:
            one.after_step([torch.ones(()), torch.ones(())])
        twin.zero_grad()
        first, second, third = twin.losses(x)
        (w[0] * alone([first, second]) + w[1] * third).backward()
        torch.testing.assert_close(gradients(net), gradients(twin), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(other.weights, alone.weights, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("inner", ["mgda", "moco"])
@pytest.mark.parametrize("outer", ["gradnorm", "mgda", "moco"])
def test_a_combining_balancer_within_one_that_measures_parameters(outer: str, inner: str):
    """What the outer one would measure is the plain sum, and not what the inner one makes of it."""
    net = Nested()
    one, other = (get(name)(None, wrt=net.trunk, tasks=2) for name in (outer, inner))
    before = state(one), state(other)
    first, second, third = net.losses(batch())
    loss = one([other([first, second]), third])
    with pytest.raises(RuntimeError, match=f"{type(other).__name__} returned.*outermost"):
        loss.backward()
    for balancer, its in zip((one, other), before, strict=True):
        values = {key: value.to(balancer.state_dict()[key].dtype) for key, value in its.items()}
        for key, value in values.items():
            torch.testing.assert_close(balancer.state_dict()[key], value, rtol=1e-6, atol=0)
    net.zero_grad()
    sum(net.losses(batch())).backward()
    expected = torch.autograd.grad(sum(net.losses(batch(), plain=True)), list(net.parameters()))
    close(gradients(net), expected)


@pytest.mark.parametrize("outer", [*NORMS, *COMBINERS])
def test_a_balancer_that_replaces_gradients_within_one_that_measures(outer: str):
    """At a fork, too: what arrives there is the plain sum, and the trunk receives something else."""
    net = Nested()
    one, other = {**NORMS, **COMBINERS}[outer](net), MoCo(None, wrt=net.trunk, tasks=2)
    first, second, third = net.losses(batch())
    with pytest.raises((RuntimeError, ForkError), match="MoCo"):
        one([other([first, second]), third]).backward()


@pytest.mark.parametrize("outer", [name for name in (*NORMS, *COMBINERS) if not name.endswith("parameters")])
def test_a_combining_balancer_of_parameters_within_one_at_a_fork(outer: str):
    """What arrives at the fork is what the inner one made of the losses."""
    net = Nested()
    one, other = {**NORMS, **COMBINERS}[outer](net), MGDA(None, wrt=net.trunk, tasks=2)
    x = batch()
    first, second, third = net.losses(x)
    one([other([first, second]), third]).backward()
    z = net.trunk(x)
    plain = losses_of([head(z) for head in net.heads], x)
    trunk = list(net.trunk.parameters())
    inner = torch.stack([flat(torch.autograd.grad(loss, trunk, retain_graph=True)) for loss in plain[:2]])
    inner_shares = other.solve(inner @ inner.mT)
    group = sum(w * loss for w, loss in zip(inner_shares, plain[:2], strict=True))
    wrt = [z] if outer.endswith("features") else list(net.trunk[2].parameters())
    rows = torch.stack([flat(torch.autograd.grad(loss, wrt, retain_graph=True)) for loss in (group, plain[2])])
    shares = torch.ones(2)
    if outer in NORMS:
        torch.testing.assert_close(one.statistics["gradient_norms"], rows.norm(dim=1), rtol=1e-9, atol=0)
    else:
        torch.testing.assert_close(one.statistics["gramian"], rows @ rows.mT, rtol=1e-9, atol=1e-12)
        shares = one.solve(rows @ rows.mT)
    expected = torch.autograd.grad(shares[0] * group + shares[1] * plain[2], trunk)
    torch.testing.assert_close(gradients(net.trunk), list(expected), rtol=1e-8, atol=1e-12)


class TwoForks(nn.Module):
    """A trunk that splits in two, one of whose branches splits again."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh())
        self.branch = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.outer, self.inner = Fork(2), Fork(2)
        self.heads = nn.ModuleList(nn.Linear(4, 3) for _ in range(3))
        self.double()

    def losses(self, x: Tensor) -> list[Tensor]:
        z, other = self.outer(self.trunk(x))
        first, second = self.inner(self.branch(z))
        return losses_of([head(y) for head, y in zip(self.heads, (first, second, other), strict=True)], x)


@pytest.mark.parametrize("inner", ["gradnorm", "mgda"])
@pytest.mark.parametrize("outer", ["gradnorm", "mgda"])
@pytest.mark.parametrize("layer", [False, True], ids=["features", "layer"])
def test_a_balancer_at_each_of_two_forks(outer: str, inner: str, layer: bool):
    """What arrives at the outer fork is what the inner balancer made of the branch's gradients."""
    net = TwoForks()
    one = get(outer)(net.outer, wrt=net.trunk[2] if layer else None)
    other = get(inner)(net.inner)
    for t in range(2):
        x = batch(t)
        first, second, third = net.losses(x)
        net.zero_grad()
        one([other([first, second]), third]).backward()

        z = net.trunk(x)
        y = net.branch(z)
        plain = losses_of([head(each) for head, each in zip(net.heads, (y, y, z), strict=True)], x)
        rows = [torch.autograd.grad(loss, y, retain_graph=True)[0] for loss in plain[:2]]
        matrix = torch.stack([row.flatten() for row in rows])
        weights = other.weights
        if inner == "mgda":
            torch.testing.assert_close(other.statistics["gramian"], matrix @ matrix.mT, rtol=1e-9, atol=1e-12)
        if inner == "gradnorm":
            torch.testing.assert_close(other.statistics["gradient_norms"] / weights, matrix.norm(dim=1))
        direction = sum(w * row for w, row in zip(weights, rows, strict=True))
        of_branch = torch.autograd.grad(y, z, direction, retain_graph=True)[0]
        of_third = torch.autograd.grad(plain[2], z, retain_graph=True)[0]
        arriving = [of_branch, of_third]
        wrt = list(net.trunk[2].parameters()) if layer else [z]
        each = [
            flat(torch.autograd.grad(z, wrt, gradient, retain_graph=True)) if layer else gradient.flatten()
            for gradient in arriving
        ]
        matrix = torch.stack(each)
        shares = one.weights
        if outer == "mgda":
            torch.testing.assert_close(one.statistics["gramian"], matrix @ matrix.mT, rtol=1e-9, atol=1e-12)
        else:
            torch.testing.assert_close(one.statistics["gradient_norms"] / shares, matrix.norm(dim=1))
        total = sum(w * gradient for w, gradient in zip(shares, arriving, strict=True))
        expected = torch.autograd.grad(z, list(net.trunk.parameters()), total)
        torch.testing.assert_close(gradients(net.trunk), list(expected), rtol=1e-9, atol=1e-12)


def test_three_balancers_one_within_the_other():
    net = Nested()
    balancers = [GeometricLossStrategy(2), UncertaintyWeighting(2), MGDA(None, wrt=net.trunk, tasks=2)]
    x = batch()
    first, second, third = net.losses(x)
    inner, middle, outer = balancers
    outer([middle([inner([first, second]), third]), 2 * third]).backward()
    plain = net.losses(x, plain=True)
    group = sum(w * loss for w, loss in zip(inner.weights, plain[:2], strict=True))
    both = sum(w * loss for w, loss in zip(middle.weights, (group, plain[2]), strict=True))
    trunk = list(net.trunk.parameters())
    own = [both, 2 * plain[2]]
    rows = torch.stack([flat(torch.autograd.grad(loss, trunk, retain_graph=True)) for loss in own])
    shares = outer.solve(rows @ rows.mT)
    expected = torch.autograd.grad(sum(w * loss for w, loss in zip(shares, own, strict=True)), trunk)
    torch.testing.assert_close(gradients(net.trunk), list(expected), rtol=1e-8, atol=1e-12)


# Function transforms.


def function_of(net: Net, balancer: LossBalancer) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    return lambda parameters, x: balancer(losses_of(functional_call(net, parameters, (x,)), x))


def func_grad(net: Net, balancer: LossBalancer) -> tuple[Tensor, list[Tensor]]:
    parameters = {key: p.detach() for key, p in net.named_parameters()}
    found, total = torch.func.grad_and_value(function_of(net, balancer))(parameters, batch())
    return total, list(found.values())


def func_vjp(net: Net, balancer: LossBalancer) -> tuple[Tensor, list[Tensor]]:
    parameters = {key: p.detach() for key, p in net.named_parameters()}
    total, pull_back = vjp(function_of(net, balancer), parameters, batch())
    return total, list(pull_back(torch.ones_like(total))[0].values())


def func_jacrev(net: Net, balancer: LossBalancer) -> tuple[Tensor, list[Tensor]]:
    parameters = {key: p.detach() for key, p in net.named_parameters()}
    function = function_of(net, balancer)
    found = jacrev(function)(parameters, batch())
    return vjp(function, parameters, batch())[0], list(found.values())


def func_jvp(net: Net, balancer: LossBalancer) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients by one pass in forward mode for each entry of the last bias, and zeros for the rest."""
    parameters = {key: p.detach() for key, p in net.named_parameters()}
    function = function_of(net, balancer)
    *rest, last = parameters
    found = []
    for k in range(len(parameters[last])):
        tangents = {key: torch.zeros_like(p) for key, p in parameters.items()}
        tangents[last][k] = 1.0
        total, slope = jvp(lambda p: function(p, batch()), (parameters,), (tangents,))
        found.append(slope)
    return total, [*(torch.full_like(parameters[key], torch.nan) for key in rest), torch.stack(found)]


def forward_mode(net: Net, balancer: LossBalancer) -> tuple[Tensor, list[Tensor]]:
    parameters = {key: p.detach() for key, p in net.named_parameters()}
    *rest, last = parameters
    found = []
    for k in range(len(parameters[last])):
        tangent = torch.zeros_like(parameters[last])
        tangent[k] = 1.0
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(parameters[last], tangent)
            total = function_of(net, balancer)({**parameters, last: dual}, batch())
            total, slope = torch.autograd.forward_ad.unpack_dual(total)
        found.append(slope)
    return total, [*(torch.full_like(parameters[key], torch.nan) for key in rest), torch.stack(found)]


TRANSFORMS = pytest.mark.parametrize(
    "transform", [func_grad, func_vjp, func_jacrev, func_jvp, forward_mode], ids=lambda f: f.__name__
)


@UNMEASURED
@TRANSFORMS
@pytest.mark.parametrize("steps", [0, 2], ids=["new", "used"])
def test_function_transforms(name: str, place: str, transform: Callable, steps: int):
    """Value and gradients are those of an ordinary step, and nothing is recorded."""
    (net, balancer), (twin, expected) = trained(name, place, steps), trained(name, place, steps)
    before, statistics = state(balancer), dict(balancer.statistics)
    total, found = transform(net, balancer)
    assert differing(before, state(balancer)) == []
    assert balancer.statistics.keys() == statistics.keys()
    assert all(balancer.statistics[key] is value for key, value in statistics.items())

    loss = expected(losses_of(twin(batch()), batch()))
    loss.backward()
    close([total.detach()], [loss.detach()])
    for one, other in zip(found, gradients(twin), strict=True):
        if not one.isnan().any():
            close([one], [other])

    # An ordinary step after it is what it would have been.
    net.zero_grad()
    balancer(losses_of(net(batch()), batch())).backward()
    close(gradients(net), gradients(twin))
    assert differing(state(expected), state(balancer)) == []


@MEASURING
@TRANSFORMS
def test_methods_that_measure_refuse_function_transforms(name: str, place: str, transform: Callable):
    """Hooks see nothing there; a plain or an old weighted sum in place of it would be silence."""
    net, balancer = trained(name, place)
    before = state(balancer)
    with pytest.raises(RuntimeError, match=rf"(?s){type(balancer).__name__}.*torch\.func"):
        transform(net, balancer)
    assert differing(before, state(balancer)) == []
    twin, expected = trained(name, place)
    for each, its in ((net, balancer), (twin, expected)):
        each.zero_grad()
        its(losses_of(each(batch()), batch())).backward()
    close(gradients(net), gradients(twin))
    assert differing(state(expected), state(balancer)) == []


@ALL
def test_function_transforms_in_eval_mode(name: str, place: str):
    """A balancer in eval mode has fixed weights, so that any of them can be differentiated."""
    net, balancer = trained(name, place)
    balancer.eval()
    before = state(balancer)
    _, found = func_grad(net, balancer)
    close(found, weighted(net, balancer.weights, batch()))
    assert differing(before, state(balancer)) == []


@ALL
def test_a_vmap_over_batches_without_gradients(name: str, place: str):
    net, balancer = trained(name, place)
    if balancer.random:
        pytest.skip("vmap wants to be told what random numbers it is to draw")
    before, both = state(balancer), torch.stack([batch(6), batch(7)])
    with torch.no_grad():
        found = vmap(lambda x: balancer(losses_of(net(x), x)))(both)
        assert differing(before, state(balancer)) == []
        close(found, [balancer(losses_of(net(x), x)) for x in both])


@UNMEASURED
def test_function_transforms_with_a_task_left_out(name: str, place: str):
    """The method sees the tasks that take part, as in an ordinary step."""
    net, twin = build("linear", 2), build("linear", 2)
    options = OPTIONS.get(name, {})
    balancer, expected = (get(name)(**options, tasks=["a", "b"]) for _ in range(2))
    supply(expected, lambda: plain_losses(twin, batch()))

    def total(parameters: dict[str, Tensor]) -> Tensor:
        return balancer({"b": losses_of(functional_call(net, parameters, (batch(),)), batch())[1]})

    with torch.no_grad():
        for each in (balancer, expected):
            each({"b": losses_of(twin(batch()), batch())[1]})  # moves the state to the losses' type
    found = grad(total)({key: p.detach() for key, p in net.named_parameters()})
    expected({"b": losses_of(twin(batch()), batch())[1]}).backward()
    for (key, parameter), gradient in zip(twin.named_parameters(), found.values(), strict=True):
        assert gradient.isfinite().all(), key
        close([gradient], [torch.zeros_like(gradient) if parameter.grad is None else parameter.grad])


@pytest.mark.parametrize("name", ["gls", "scale-invariant", "famo", "cov"])
def test_function_transforms_of_losses_out_of_the_domain(name: str):
    """The weights stay as they were, as in an ordinary step."""
    balancer, expected = get(name)(2), get(name)(2)

    def losses(x: Tensor) -> list[Tensor]:
        return [x.square().sum(), -x.sum()]

    x = torch.ones(3, dtype=torch.float64)
    found = grad(lambda x: balancer(losses(x)))(x)
    leaf = x.clone().requires_grad_()
    expected(losses(leaf)).backward()
    close([found], [leaf.grad])


# Others.


@ALL
def test_a_step_inside_a_checkpoint(name: str, place: str):
    """The balancer is called again when the backward pass recomputes the step: that call is none."""
    (net, balancer), (twin, expected) = trained(name, place), trained(name, place)
    for t in (5, 6):
        x = batch(t)
        net.zero_grad()
        twin.zero_grad()
        checkpoint(lambda x: balancer(losses_of(net(x), x)), x, use_reentrant=False).backward()
        expected(losses_of(twin(x), x)).backward()
        close(gradients(net), gradients(twin))
        assert differing(state(expected), state(balancer)) == []


@ALL
def test_batched_gradients_of_the_loss(name: str, place: str):
    """``is_grads_batched`` makes several passes at once, which are no step of training."""
    net, balancer = trained(name, place)
    before, parameters = state(balancer), list(net.parameters())
    loss = balancer(losses_of(net(batch()), batch()))
    factors = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    if balancer.combines:
        with pytest.raises(RuntimeError, match=type(balancer).__name__):
            torch.autograd.grad(loss, parameters, factors, is_grads_batched=True)
    else:
        found = torch.autograd.grad(loss, parameters, factors, is_grads_batched=True)
        for rows, one in zip(found, weighted(net, balancer.weights, batch()), strict=True):
            close(rows.unbind(), [factor * one for factor in factors])
    assert differing(before, state(balancer), shown(name)) == []
