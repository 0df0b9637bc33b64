"""A balancer that measures nothing, or something that it can't, says so at that step and names the cause.

Where there is a right value, a step has it: norms, Gramian, weights and gradients equal those of `torch.autograd.grad`
on a graph that no balancer reads.
"""

import copy
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune

from balancers import (
    DBMTL,
    MGDA,
    CAGrad,
    EqualWeighting,
    ExcessMTL,
    Fork,
    ForkError,
    GradientBalancer,
    GradNorm,
    LossBalancer,
    MoCo,
    UncertaintyWeighting,
    UPGrad,
    get,
    names,
)

from . import heads, nets
from .needs import supply

TASKS = 3
OPTIONS: dict[str, dict[str, Any]] = {"ntk": {"update_every": 1}}
"""Options with which few steps change the weights."""
KINDS = pytest.mark.parametrize("kind", ["separate", "batched"])
"""Heads of their own behind a `Fork`, and `LinearHeads`."""
AT_FORK = pytest.mark.parametrize("place", ["features", "layer", "trunk"])
EVERYWHERE = pytest.mark.parametrize("place", ["features", "layer", "trunk", "parameters"])
"""What is measured: the features, the last shared layer, the whole trunk, or the trunk without a fork."""
METHODS = pytest.mark.parametrize("method", [GradNorm, MGDA], ids=lambda method: method.name)
"""One that weighs the losses by the norms of their gradients, and one that combines the gradients by their Gramian."""
TRACKING = pytest.mark.parametrize("method", [MoCo, DBMTL, ExcessMTL], ids=lambda method: method.name)
"""Methods that keep state of the parameters' size."""


class Subject:
    """A network, whose trunk's entry 2 is the last shared layer, and its losses."""

    def __init__(self, kind: str = "separate") -> None:
        self.kind = kind
        self.net: Any = nets.build("linear", TASKS) if kind == "separate" else heads.build(heads.Batched)

    def balancer(self, method: type[GradientBalancer], place: str, **options: Any) -> GradientBalancer:
        if place == "parameters":
            return method(None, wrt=self.net.trunk, tasks=TASKS, **options)
        wrt = {"features": None, "layer": self.net.trunk[2], "trunk": self.net.trunk}[place]
        return method(self.net.fork, wrt=wrt, **options)

    def losses(self, x: Tensor, net: Callable[[Tensor], Any] | None = None) -> list[Tensor]:
        outputs = (net or self.net)(x)
        return self.losses_of(outputs, x)

    def losses_of(self, outputs: Any, x: Tensor) -> list[Tensor]:
        return nets.losses_of(outputs if self.kind == "separate" else outputs.unbind(-2), x)

    def plain(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the features and the losses of a graph that does not go through the fork."""
        net, z = self.net, self.net.trunk(x)
        if self.kind == "separate":
            return z, nets.losses_of(net.outputs([(z,) * TASKS]), x)
        outputs = torch.einsum("...d,tod->...to", z, net.heads.weight) + net.heads.bias
        return z, nets.losses_of(outputs.unbind(-2), x)

    def step(self, balancer: LossBalancer, x: Tensor) -> None:
        self.net.zero_grad()
        balancer(self.losses(x)).backward()

    def check(self, balancer: GradientBalancer, place: str, x: Tensor) -> None:
        """Check what the last step, on ``x``, measured, and the weights and gradients that it gave."""
        z, losses = self.plain(x)
        wrt = {"features": [z], "layer": list(self.net.trunk[2].parameters())}.get(place)
        wrt = [p for p in self.net.trunk.parameters() if p.requires_grad] if wrt is None else wrt
        rows = torch.stack([flat(torch.autograd.grad(loss, wrt, retain_graph=True)) for loss in losses])
        weights = balancer.weights
        if isinstance(balancer, GradNorm):
            close(balancer.statistics["gradient_norms"] / weights, rows.norm(dim=1))
        else:
            close(balancer.statistics["gramian"], rows @ rows.mT)
            close(weights, balancer.solve(rows @ rows.mT), 1e-9)
        heads_weights = weights if isinstance(balancer, GradNorm) or place == "parameters" else torch.ones(TASKS)
        in_trunk = {id(p) for p in self.net.trunk.parameters()}
        for parameter in self.net.parameters():
            if parameter.requires_grad:
                used = weights if id(parameter) in in_trunk else heads_weights
                total = sum(w * loss for w, loss in zip(used, losses, strict=True))
                [expected] = torch.autograd.grad(total, [parameter], retain_graph=True)
                close(parameter.grad, expected)


def flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def close(found: Tensor, expected: Tensor, rtol: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-14)


def batch(seed: int = 0) -> Tensor:
    return nets.inputs("linear", seed + 1)[seed]


def state(balancer: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in balancer.state_dict().items()}


def changed(before: dict[str, Tensor], balancer: nn.Module) -> list[str]:
    """Return the names of the state that changed, but for the weights shown."""
    return [key for key, value in state(balancer).items() if key != "last_weights" and not value.equal(before[key])]


# Where nothing stands in the way: the step is right.


@EVERYWHERE
@METHODS
@KINDS
def test_a_model_in_eval_mode(kind: str, method: type[GradientBalancer], place: str):
    """Batch normalisation and dropout may be frozen in training: the model's mode says nothing about the balancer."""
    subject = Subject(kind)
    balancer = subject.balancer(method, place)
    for mode in (False, True, False):
        subject.net.train(mode)
        subject.step(balancer, batch())
        subject.check(balancer, place, batch())


@EVERYWHERE
@METHODS
@KINDS
def test_calls_without_a_backward_pass(kind: str, method: type[GradientBalancer], place: str):
    """Losses that are only looked at, with or without gradients, leave the next step as it was."""
    subject, other = Subject(kind), Subject(kind)
    balancer, expected = subject.balancer(method, place), other.balancer(method, place)
    for t in range(2):
        balancer(subject.losses(batch(5)))
        with torch.no_grad():
            assert not balancer(subject.losses(batch(6))).requires_grad
        with torch.inference_mode():
            balancer(subject.losses(batch(7)))
        subject.step(balancer, batch(t))
        subject.check(balancer, place, batch(t))
        other.step(expected, batch(t))
    assert not changed(state(expected), balancer)
    close(balancer.weights, expected.weights, 0)


@EVERYWHERE
@METHODS
@KINDS
def test_passes_of_the_model_that_no_balancer_sees(kind: str, method: type[GradientBalancer], place: str):
    """The model may be evaluated, or trained on something else, between the steps."""
    subject, other = Subject(kind), Subject(kind)
    balancer, expected = subject.balancer(method, place), other.balancer(method, place)
    for t in range(3):
        subject.net(batch(5))
        sum(subject.losses(batch(6))).backward()
        subject.step(balancer, batch(t))
        subject.check(balancer, place, batch(t))
        other.step(expected, batch(t))
    close(balancer.weights, expected.weights, 0)


@EVERYWHERE
@METHODS
@KINDS
def test_two_balancers_take_turns(kind: str, method: type[GradientBalancer], place: str):
    subject, other = Subject(kind), Subject(kind)
    one, two = subject.balancer(method, place), subject.balancer(method, place)
    expected = other.balancer(method, place)
    for t in range(3):
        other.step(expected, batch(t))
        for balancer in (one, two):
            subject.step(balancer, batch(t))
            subject.check(balancer, place, batch(t))
            close(balancer.weights, expected.weights, 0)


@EVERYWHERE
@KINDS
def test_balancers_of_two_kinds_take_turns(kind: str, place: str):
    """One that weighs and one that combines: each gets the gradients that it asks for."""
    subject = Subject(kind)
    balancers = [subject.balancer(method, place) for method in (GradNorm, MGDA, UPGrad)]
    equal = EqualWeighting(TASKS)
    for t in range(6):
        subject.step(balancers[t % 3], batch(t))
        subject.check(balancers[t % 3], place, batch(t))
        subject.step(equal, batch(t))
        expected = torch.autograd.grad(sum(subject.plain(batch(t))[1]), list(subject.net.parameters()))
        torch.testing.assert_close([p.grad for p in subject.net.parameters()], list(expected), rtol=1e-12, atol=1e-14)


@EVERYWHERE
@METHODS
@KINDS
@pytest.mark.parametrize("reverse", [False, True])
def test_two_losses_before_their_backward_passes(kind: str, method: type[GradientBalancer], place: str, reverse: bool):
    subject = Subject(kind)
    balancer = subject.balancer(method, place)
    losses = [(balancer(subject.losses(batch(t))), t) for t in range(2)]
    for loss, t in losses[::-1] if reverse else losses:
        subject.net.zero_grad()
        loss.backward()
        if method is not GradNorm:
            subject.check(balancer, place, batch(t))
    if method is GradNorm:  # both losses have the first weights
        expected = sum(subject.plain(batch(t))[1])
        gradients = torch.autograd.grad(expected, list(subject.net.parameters()))
        torch.testing.assert_close([p.grad for p in subject.net.parameters()], list(gradients), rtol=1e-12, atol=1e-14)


@EVERYWHERE
@METHODS
def test_one_loss_of_two_forward_passes(method: type[GradientBalancer], place: str):
    """The losses of one step may come from several passes through the trunk, if the heads run after all of them."""
    subject, x = Subject(), [batch(0), batch(1)]
    net, balancer = subject.net, subject.balancer(method, place)
    features = [net.trunk(each) for each in x]
    aliases = [net.fork(z) for z in features]
    balancer(
        [
            a + b
            for a, b in zip(
                *[nets.losses_of(net.outputs([z]), each) for z, each in zip(aliases, x, strict=True)], strict=True
            )
        ]
    ).backward()
    parts = [subject.plain(each) for each in x]
    losses = [a + b for a, b in zip(parts[0][1], parts[1][1], strict=True)]
    wrt = {"features": [z for z, _ in parts], "layer": list(net.layer.parameters())}.get(
        place, list(net.trunk.parameters())
    )
    rows = torch.stack([flat(torch.autograd.grad(loss, wrt, retain_graph=True)) for loss in losses])
    if method is GradNorm:
        close(balancer.statistics["gradient_norms"], rows.norm(dim=1))
    else:
        close(balancer.statistics["gramian"], rows @ rows.mT)
        total = sum(w * loss for w, loss in zip(balancer.solve(rows @ rows.mT), losses, strict=True))
        for parameter, gradient in zip(
            net.trunk.parameters(), torch.autograd.grad(total, list(net.trunk.parameters())), strict=True
        ):
            close(parameter.grad, gradient, 1e-9)


@EVERYWHERE
@METHODS
@KINDS
def test_a_backward_pass_in_another_thread(kind: str, method: type[GradientBalancer], place: str):
    subject = Subject(kind)
    balancer = subject.balancer(method, place)
    for t in range(2):
        subject.net.zero_grad()
        thread = threading.Thread(target=balancer(subject.losses(batch(t))).backward)
        thread.start()
        thread.join()
        subject.check(balancer, place, batch(t))


@EVERYWHERE
@METHODS
@KINDS
def test_under_anomaly_detection(kind: str, method: type[GradientBalancer], place: str):
    """It keeps its own notes in the metadata of autograd's nodes, where a fork marks the aliases."""
    subject = Subject(kind)
    balancer = subject.balancer(method, place)
    with warnings.catch_warnings(), torch.autograd.detect_anomaly():
        subject.step(balancer, batch())
        subject.check(balancer, place, batch())


@AT_FORK
@METHODS
def test_a_backward_pass_that_stops_at_linear_heads(method: type[GradientBalancer], place: str):
    """Their one node computes the gradients of the features in any case."""
    subject, other = Subject("batched"), Subject("batched")
    balancer, expected = subject.balancer(method, place), other.balancer(method, place)
    loss = balancer(subject.losses(batch()))
    if balancer.combines and place == "trunk":  # whose gate is not reached
        with pytest.raises(ForkError, match="brought no gradient to the fork"):
            loss.backward(inputs=list(subject.net.heads.parameters()))
        return
    loss.backward(inputs=list(subject.net.heads.parameters()))
    other.step(expected, batch())
    assert not changed(state(expected), balancer)
    close(balancer.weights, expected.weights, 0)


@EVERYWHERE
@METHODS
def test_autograd_grad_in_place_of_backward(method: type[GradientBalancer], place: str):
    subject = Subject()
    balancer = subject.balancer(method, place)
    parameters = list(subject.net.parameters())
    for parameter, gradient in zip(
        parameters, torch.autograd.grad(balancer(subject.losses(batch())), parameters), strict=True
    ):
        parameter.grad = gradient
    subject.check(balancer, place, batch())


@EVERYWHERE
@METHODS
@KINDS
def test_a_negative_factor(kind: str, method: type[GradientBalancer], place: str):
    """Whoever maximises the loss, or reverses its gradient, has the same norms, Gramian and weights."""
    subject, other = Subject(kind), Subject(kind)
    balancer, expected = subject.balancer(method, place), other.balancer(method, place)
    for t in range(2):
        subject.net.zero_grad()
        (-3 * balancer(subject.losses(batch(t)))).backward()
        other.step(expected, batch(t))
        pairs = zip(subject.net.parameters(), other.net.parameters(), strict=True)
        for parameter, twin in pairs:
            close(parameter.grad, -3 * twin.grad)
    close(balancer.weights, expected.weights, 1e-9)
    for key in ("gradient_norms", "gramian"):
        if key in expected.statistics:
            close(balancer.statistics[key], expected.statistics[key])


@EVERYWHERE
@METHODS
def test_a_factor_of_zero_is_no_measurement(method: type[GradientBalancer], place: str):
    """A loss that is switched off gives no gradient, and teaches nothing."""
    subject = Subject()
    balancer = subject.balancer(method, place)
    subject.step(balancer, batch())
    before = state(balancer)
    subject.net.zero_grad()
    (0.0 * balancer(subject.losses(batch(1)))).backward()
    assert not changed(before, balancer)
    assert all(p.grad is None or not p.grad.any() for p in subject.net.parameters())
    subject.step(balancer, batch(2))
    subject.check(balancer, place, batch(2))


# Parameters that the losses do not depend on.


def unreached() -> nn.Module:
    return nn.Linear(2, 2).double()


@pytest.mark.parametrize("bare", [False, True], ids=["module", "parameters"])
@pytest.mark.parametrize("method", [GradNorm, CAGrad, MGDA, UPGrad, MoCo, DBMTL, ExcessMTL], ids=lambda m: m.name)
def test_parameters_that_no_loss_reaches(method: type[GradientBalancer], bare: bool):
    subject, module = Subject(), unreached()
    balancer = method(None, wrt=list(module.parameters()) if bare else module, tasks=TASKS)
    with torch.no_grad():
        balancer(subject.losses(batch()))  # moves the state to the losses' type
    before = state(balancer)
    for _ in range(2):
        with pytest.raises(ForkError, match="no loss depends on the parameters that wrt names"):
            subject.step(balancer, batch())
        assert not changed(before, balancer)
        assert method is GradNorm or all(parameter.grad is None for parameter in subject.net.parameters())


@METHODS
@KINDS
def test_parameters_that_the_features_do_not_depend_on(kind: str, method: type[GradientBalancer]):
    subject = Subject(kind)
    balancer = method(subject.net.fork, wrt=unreached())
    for _ in range(2):
        with pytest.raises(ForkError, match="that the fork's features do not depend on"):
            subject.step(balancer, batch())


@pytest.mark.parametrize("method", [GradNorm, MGDA, UPGrad, MoCo, DBMTL, ExcessMTL], ids=lambda method: method.name)
def test_some_parameters_that_no_loss_reaches(method: type[GradientBalancer]):
    """Parameters without a gradient, such as those of a branch that is switched off, count as zero."""
    subject, other, module = Subject(), Subject(), unreached()
    balancer = method(None, wrt=[*subject.net.trunk.parameters(), *module.parameters()], tasks=TASKS)
    expected = other.balancer(method, "parameters")
    for t in range(2):
        subject.step(balancer, batch(t))
        other.step(expected, batch(t))
        for parameter, twin in zip(subject.net.parameters(), other.net.parameters(), strict=True):
            close(parameter.grad, twin.grad)
    close(balancer.weights, expected.weights)
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("used", [False, True], ids=["first step", "later step"])
@EVERYWHERE
@METHODS
@KINDS
def test_assigned_parameters_of_a_module(kind: str, method: type[GradientBalancer], place: str, used: bool):
    """A module is asked for its parameters at each step, so that they may be replaced."""
    subject = Subject(kind)
    balancer = subject.balancer(method, place)
    if used:
        subject.step(balancer, batch())
    saved = {key: 1.1 * value for key, value in subject.net.state_dict().items()}
    subject.net.load_state_dict(saved, assign=True)
    subject.step(balancer, batch(1))
    subject.check(balancer, place, batch(1))


@pytest.mark.parametrize("used", [False, True], ids=["first step", "later step"])
@METHODS
@KINDS
def test_assigned_parameters_given_as_such_at_a_fork(kind: str, method: type[GradientBalancer], used: bool):
    subject = Subject(kind)
    balancer = method(subject.net.fork, wrt=list(subject.net.trunk[2].parameters()))
    if used:
        subject.step(balancer, batch())
    subject.net.load_state_dict({key: value.clone() for key, value in subject.net.state_dict().items()}, assign=True)
    before = state(balancer)
    with pytest.raises(ForkError, match="replaced" if used else "features do not depend on"):
        subject.step(balancer, batch(1))
    assert not changed(before, balancer)


@pytest.mark.parametrize("method", [GradNorm, MGDA, MoCo, DBMTL, ExcessMTL], ids=lambda method: method.name)
def test_assigned_parameters_given_as_such_without_a_fork(method: type[GradientBalancer]):
    subject = Subject()
    balancer = method(None, wrt=list(subject.net.trunk.parameters()), tasks=TASKS)
    subject.step(balancer, batch())
    subject.net.load_state_dict({key: value.clone() for key, value in subject.net.state_dict().items()}, assign=True)
    before = state(balancer)
    with pytest.raises(ForkError, match=r"load_state_dict\(assign=True\)"):
        subject.step(balancer, batch(1))
    assert not changed(before, balancer)


@EVERYWHERE
@METHODS
def test_a_parametrised_and_a_pruned_layer(method: type[GradientBalancer], place: str):
    """The layer's parameters are other ones after that; what is measured are those that are trained."""
    subject = Subject()
    balancer = subject.balancer(method, place)
    subject.step(balancer, batch())
    parametrizations.weight_norm(subject.net.trunk[2])
    subject.step(balancer, batch(1))
    subject.check(balancer, place, batch(1))
    prune.l1_unstructured(subject.net.trunk[0], "weight", 0.5)
    subject.step(balancer, batch(2))
    subject.check(balancer, place, batch(2))


@METHODS
@KINDS
def test_other_parameters_in_a_functional_call(kind: str, method: type[GradientBalancer]):
    """Features are measured whatever parameters they come from; the module's own parameters got no gradient."""
    subject = Subject(kind)
    net = subject.net
    parameters = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}

    def losses() -> list[Tensor]:
        return subject.losses(batch(), lambda x: functional_call(net, parameters, (x,)))

    at_features = subject.balancer(method, "features")
    found = torch.autograd.grad(at_features(losses()), list(parameters.values()))
    net.zero_grad()
    subject.step(expected := subject.balancer(method, "features"), batch())
    torch.testing.assert_close(list(found), [p.grad for p in net.parameters()], rtol=1e-12, atol=1e-14)
    close(at_features.weights, expected.weights)
    for place in ("layer", "trunk", "parameters"):
        with pytest.raises(ForkError, match="wrt"):
            torch.autograd.grad(subject.balancer(method, place)(losses()), list(parameters.values()))


# Frozen parameters.


@METHODS
@KINDS
@pytest.mark.parametrize("place", ["features", "layer", "trunk"])
@pytest.mark.parametrize("used", [False, True], ids=["first step", "later step"])
def test_a_frozen_trunk(kind: str, method: type[GradientBalancer], place: str, used: bool):
    subject = Subject(kind)
    balancer = subject.balancer(method, place)
    if used:
        subject.step(balancer, batch())
    subject.net.trunk.requires_grad_(False)
    before = state(balancer)
    with pytest.raises(ForkError, match="is the whole trunk frozen"):
        subject.step(balancer, batch(1))
    assert not changed(before, balancer)
    subject.net.trunk.requires_grad_(True)
    subject.step(balancer, batch(2))
    subject.check(balancer, place, batch(2))


@METHODS
@KINDS
@pytest.mark.parametrize("how", ["no_grad", "detach"])
def test_features_without_a_gradient(kind: str, method: type[GradientBalancer], how: str):
    subject = Subject(kind)
    balancer = subject.balancer(method, "layer")
    net, x = subject.net, batch()
    with torch.set_grad_enabled(how != "no_grad"):
        z = net.trunk(x).detach()
    outputs = net.outputs([net.fork(z)]) if kind == "separate" else net.outputs(z)
    with pytest.raises(ForkError, match=r"don't require grad.*detached, or run under no_grad"):
        balancer(subject.losses_of(outputs, x)).backward()


@METHODS
@pytest.mark.parametrize("used", [False, True], ids=["first step", "later step"])
def test_a_frozen_layer_at_a_fork(method: type[GradientBalancer], used: bool):
    """The features have a gradient, but what is to be measured has none."""
    subject = Subject()
    balancer = subject.balancer(method, "layer")
    if used:
        subject.step(balancer, batch())
    subject.net.trunk[2].requires_grad_(False)
    before = state(balancer)
    with pytest.raises(ForkError, match=r"wrt.*frozen"):
        subject.step(balancer, batch(1))
    assert not changed(before, balancer)


@pytest.mark.parametrize("bare", [False, True], ids=["module", "parameters"])
@pytest.mark.parametrize("used", [False, True], ids=["first step", "later step"])
@pytest.mark.parametrize("method", [GradNorm, MGDA, MoCo, DBMTL, ExcessMTL], ids=lambda method: method.name)
def test_frozen_parameters_without_a_fork(method: type[GradientBalancer], used: bool, bare: bool):
    subject = Subject()
    trunk = subject.net.trunk
    balancer = method(None, wrt=list(trunk.parameters()) if bare else trunk, tasks=TASKS)
    with torch.no_grad():
        balancer(subject.losses(batch()))  # moves the state to the losses' type
    if used:
        subject.step(balancer, batch())
    trunk.requires_grad_(False)
    before = state(balancer)
    with pytest.raises(ForkError, match="frozen"):
        subject.step(balancer, batch(1))
    assert not changed(before, balancer)


@EVERYWHERE
@METHODS
def test_layers_that_are_frozen_and_thawed(method: type[GradientBalancer], place: str):
    """What is frozen does not count, from that step on."""
    subject = Subject()
    balancer = subject.balancer(method, place)
    for t, frozen in enumerate([False, True, False]):
        subject.net.trunk[0].requires_grad_(not frozen)
        subject.step(balancer, batch(t))
        subject.check(balancer, place, batch(t))


@TRACKING
@pytest.mark.parametrize("change", ["freeze", "thaw", "swap", "grow"])
def test_tracked_parameters_that_change(method: type[GradientBalancer], change: str):
    """The state of one parameter must not be taken for that of another, which has the same shape here."""
    layers = [nn.Linear(4, 4).double() for _ in range(3)]
    trunk = nn.Sequential(*layers)
    if change in ("thaw", "swap"):
        trunk[0].requires_grad_(False)
    balancer = method(None, wrt=trunk, tasks=2)

    def losses() -> list[Tensor]:
        z = trunk(torch.ones(3, 4, dtype=torch.float64))
        return [z[:, 0].square().mean(), (z[:, 1] - 1).square().mean()]

    balancer(losses()).backward()
    if change == "freeze":
        trunk[0].requires_grad_(False)
    if change in ("thaw", "swap"):
        trunk[0].requires_grad_(True)
    if change == "swap":
        trunk[1].requires_grad_(False)
    if change == "grow":
        trunk.append(nn.Linear(4, 4).double())
    before = state(balancer)
    with pytest.raises((ForkError, RuntimeError), match=r"(?s)wrt.*(frozen|replaced|other parameters|were)"):
        balancer(losses()).backward()
    assert not changed(before, balancer)


# Models that are not the one that the balancer was made for.


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "average": lambda net: torch.optim.swa_utils.AveragedModel(net).module,
}


@pytest.mark.parametrize("stray", [False, True], ids=["", "after a pass of the original"])
@pytest.mark.parametrize("used", [False, True], ids=["first step", "later step"])
@pytest.mark.parametrize("how", COPIES)
@EVERYWHERE
@METHODS
@KINDS
def test_a_copied_model_with_the_old_balancer(
    kind: str, method: type[GradientBalancer], place: str, how: str, used: bool, stray: bool
):
    subject = Subject(kind)
    balancer = subject.balancer(method, place)
    if used:
        subject.step(balancer, batch())
    copied = COPIES[how](subject.net)
    if stray:
        subject.net(batch())
    before = state(balancer)
    with pytest.raises(ForkError, match="copied model"):
        balancer(subject.losses(batch(1), copied)).backward()
    assert not changed(before, balancer)
    subject.step(balancer, batch(2))
    subject.check(balancer, place, batch(2))


@EVERYWHERE
@METHODS
@KINDS
def test_a_model_that_is_copied_with_its_balancer(kind: str, method: type[GradientBalancer], place: str):
    subject = Subject(kind)
    balancer = subject.balancer(method, place)
    subject.step(balancer, batch())
    other = Subject(kind)
    other.net, own = copy.deepcopy((subject.net, balancer))
    other.step(own, batch(1))
    other.check(own, place, batch(1))


@EVERYWHERE
@METHODS
def test_a_copied_model_with_a_balancer_of_its_own(method: type[GradientBalancer], place: str):
    """The copy's fork forgets the balancers of the original."""
    subject = Subject()
    balancer = subject.balancer(method, place)
    subject.step(balancer, batch())
    other = Subject()
    other.net = copy.deepcopy(subject.net)
    own = other.balancer(method, place)
    for t in range(2):
        for each, its in ((subject, balancer), (other, own)):
            each.step(its, batch(t))
            each.check(its, place, batch(t))


@AT_FORK
@METHODS
@KINDS
def test_two_balancers_on_one_forward_pass(kind: str, method: type[GradientBalancer], place: str):
    """The pass belongs to the balancer that was called first; the other one is refused when it goes backward."""
    subject = Subject(kind)
    one, two = subject.balancer(method, place), subject.balancer(method, place)
    subject.step(one, batch())
    subject.step(two, batch())
    losses = subject.losses(batch(1))
    first, second = one(losses), two(losses)
    before = state(two)
    with pytest.raises(ForkError, match="Two balancers can't measure the same forward pass"):
        second.backward(retain_graph=True)
    assert not changed(before, two)
    subject.net.zero_grad()
    first.backward()
    subject.check(one, place, batch(1))


@METHODS
def test_two_balancers_on_one_forward_pass_without_a_fork(method: type[GradientBalancer]):
    """Each measures the losses by itself, so that both can be used, also in one sum."""
    subject = Subject()
    one, two = (subject.balancer(method, "parameters") for _ in range(2))
    expected = Subject()
    own = expected.balancer(method, "parameters")
    losses = subject.losses(batch())
    (one(losses) + 2 * two(losses)).backward()
    expected.step(own, batch())
    for balancer in (one, two):
        close(balancer.weights, own.weights)
    for parameter, twin in zip(subject.net.parameters(), expected.net.parameters(), strict=True):
        close(parameter.grad, 3 * twin.grad)


@pytest.mark.parametrize("others", [EqualWeighting, UncertaintyWeighting], ids=lambda method: method.name)
@EVERYWHERE
@METHODS
def test_a_balancer_of_losses_beside_one_of_gradients(
    method: type[GradientBalancer], place: str, others: type[LossBalancer]
):
    """Balancers that measure nothing never get in the way."""
    subject = Subject()
    balancer, other = subject.balancer(method, place), others(TASKS)
    losses = subject.losses(batch())
    loss, plain = balancer(losses), other(losses)
    plain.backward(retain_graph=True)
    subject.net.zero_grad()
    loss.backward()
    subject.check(balancer, place, batch())


@AT_FORK
@METHODS
def test_a_backward_pass_that_stops_before_the_fork(method: type[GradientBalancer], place: str):
    subject = Subject()
    balancer = subject.balancer(method, place)
    before = state(balancer)
    with pytest.raises(ForkError, match="for all parameters"):
        balancer(subject.losses(batch())).backward(inputs=list(subject.net.heads.parameters()))
    assert not changed(before, balancer)
    subject.step(balancer, batch())
    subject.check(balancer, place, batch())


@AT_FORK
@METHODS
@KINDS
def test_losses_that_were_computed_before_the_balancer_was_made(kind: str, method: type[GradientBalancer], place: str):
    subject = Subject(kind)
    losses = subject.losses(batch())
    with pytest.raises(ForkError, match="made after the forward pass"):
        subject.balancer(method, place)(losses).backward()


@pytest.fixture
def one_rank() -> Iterator[None]:
    """Run the test as the only rank of ``torch.distributed``."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("bare", [False, True], ids=["module", "parameters"])
@pytest.mark.parametrize("used", [False, True], ids=["first step", "later step"])
@pytest.mark.parametrize("place", ["layer", "parameters"])
@pytest.mark.parametrize("method", [GradNorm, MGDA], ids=lambda method: method.name)
def test_a_model_that_is_sharded_after_its_balancer_was_made(
    method: type[GradientBalancer], place: str, used: bool, bare: bool
):
    from torch.distributed.fsdp import fully_shard

    subject = Subject()
    layer = subject.net.trunk[2]
    fork = subject.net.fork if place == "layer" else None
    balancer = method(fork, wrt=list(layer.parameters()) if bare else layer, tasks=TASKS)
    if used:
        subject.step(balancer, batch())
    fully_shard(layer)
    fully_shard(subject.net)
    before = state(balancer)
    with pytest.raises((ForkError, RuntimeError), match="fully_shard"):
        subject.step(balancer, batch(1))
    assert not changed(before, balancer)


# Losses without a gradient, and tasks that are left out.


@pytest.mark.parametrize("form", ["list", "dict", "tensor"])
@pytest.mark.parametrize("used", [False, True], ids=["first step", "later step"])
@EVERYWHERE
@METHODS
def test_a_detached_loss(method: type[GradientBalancer], place: str, used: bool, form: str):
    """The message says how to leave the task out. A zero row would make MGDA train for that task alone."""
    subject = Subject()
    balancer = subject.balancer(method, place)

    def given(losses: list[Tensor]) -> Any:
        return {"list": losses, "dict": dict(zip("abc", losses, strict=True)), "tensor": torch.stack(losses)}[form]

    if used:
        balancer(given(subject.losses(batch()))).backward()
    before = state(balancer)
    first, second, third = subject.losses(batch(1))
    with pytest.raises(ValueError, match=r"(?s)does not require grad.*leave it out of a {task: loss} dict"):
        balancer(given([first, second.detach(), third])).backward()
    assert not changed(before, balancer)


@pytest.mark.parametrize("form", ["list", "tensor"])
@pytest.mark.parametrize("name", ["equal", "uncertainty", "dwa"])
def test_a_detached_loss_of_a_method_that_measures_nothing(name: str, form: str):
    subject = Subject()
    losses = subject.losses(batch())
    losses[1] = losses[1].detach()
    with pytest.raises(ValueError, match=r"(?s)does not require grad.*leave it out of a {task: loss} dict"):
        get(name)(TASKS)(torch.stack(losses) if form == "tensor" else losses)


@pytest.mark.parametrize("used", [False, True], ids=["first step", "later step"])
@pytest.mark.parametrize("head", [0, 1, 2])
@AT_FORK
@METHODS
def test_a_head_that_changes_its_features_in_place(method: type[GradientBalancer], place: str, head: int, used: bool):
    """Autograd then sees other views than the fork made; the cause is the operator, and not a skip connection."""
    subject = Subject()
    balancer = subject.balancer(method, place)
    if used:
        subject.step(balancer, batch())
    subject.net.heads[head] = nn.Sequential(nn.ReLU(inplace=True), subject.net.heads[head])
    if used:  # the audit is over: autograd itself finds it, where the trunk needs its output
        with pytest.raises((ForkError, RuntimeError), match=r"in ?place"):
            subject.step(balancer, batch(1))
        return
    with pytest.raises(ForkError, match=r"in place.*ReLU\(inplace=True\)"):
        subject.step(balancer, batch(1))


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda z: nn.functional.relu(z, inplace=True),
    "dropout": lambda z: nn.functional.dropout(z, 0.5, inplace=True),
    "mul": lambda z: z.mul_(2),
    "add": lambda z: z.add_(1),
    "tanh": lambda z: z.tanh_(),
    "part": lambda z: z[:, :2].zero_().sum() + z,
}


@pytest.mark.parametrize("change", CHANGES)
@METHODS
def test_each_way_to_change_features_in_place(method: type[GradientBalancer], change: str):
    subject = Subject()
    balancer = subject.balancer(method, "layer")
    net, x = subject.net, batch()
    aliases = list(net.fork(net.trunk(x)))
    aliases[1] = CHANGES[change](aliases[1])
    with pytest.raises(ForkError, match="in place"):
        balancer(nets.losses_of(net.outputs([aliases]), x)).backward()


@pytest.mark.parametrize("used", [False, True], ids=["first step", "later step"])
@AT_FORK
@pytest.mark.parametrize("method", [MGDA, UPGrad, CAGrad], ids=lambda method: method.name)
def test_one_forward_pass_a_task_at_a_fork(method: type[GradientBalancer], place: str, used: bool):
    """The first task's gradient has gone on into the trunk before the second one's is there."""
    subject = Subject()
    balancer = subject.balancer(method, place)
    if used:
        subject.step(balancer, batch())
    with pytest.raises(ForkError, match="fork=None, wrt=the trunk"):
        balancer([subject.losses(batch(task))[task] for task in range(TASKS)]).backward()


@METHODS
def test_one_forward_pass_a_task_without_a_fork(method: type[GradientBalancer]):
    """What the message above advises works."""
    subject = Subject()
    balancer = subject.balancer(method, "parameters")
    balancer([subject.losses(batch(task))[task] for task in range(TASKS)]).backward()
    losses = [subject.plain(batch(task))[1][task] for task in range(TASKS)]
    parameters = list(subject.net.trunk.parameters())
    rows = torch.stack([flat(torch.autograd.grad(loss, parameters, retain_graph=True)) for loss in losses])
    if method is GradNorm:
        close(balancer.statistics["gradient_norms"], rows.norm(dim=1))
        shares = torch.ones(TASKS)
    else:
        close(balancer.statistics["gramian"], rows @ rows.mT)
        shares = balancer.solve(rows @ rows.mT)
    total = sum(w * loss for w, loss in zip(shares, losses, strict=True))
    for parameter, expected in zip(parameters, torch.autograd.grad(total, parameters), strict=True):
        close(parameter.grad, expected, 1e-9)


@pytest.mark.parametrize("place", ["features", "layer", "parameters"])
def test_one_task_a_step_warns_and_names_the_remedy(place: str):
    """GradNorm compares the tasks of one update, and moves no weight where it sees one."""
    subject = Subject()
    balancer = subject.balancer(GradNorm, place)
    named = "abc"

    def run(balancer: LossBalancer, steps: int) -> None:
        for t in range(steps):
            balancer({named[t % TASKS]: subject.losses(batch(t % 4))[t % TASKS]}).backward()

    with torch.no_grad():  # the first dict names the tasks
        balancer(dict(zip(named, subject.losses(batch()), strict=True)))
    with pytest.warns(RuntimeWarning, match=r"saw one task alone.*accumulate=3"):
        run(balancer, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(balancer, 12)  # told once
    close(balancer.weights, torch.ones(TASKS, dtype=torch.float64))

    follows = subject.balancer(GradNorm, place, accumulate=TASKS)
    with torch.no_grad():
        follows(dict(zip(named, subject.losses(batch()), strict=True)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(follows, 12)
    assert (follows.weights - 1).abs().max() > 0.01


INDEPENDENT = ("uncertainty", "revised-uncertainty", "imtl-l")
"""Methods that learn each task's weight by itself: one task a step is all that they need."""


@pytest.mark.parametrize("name", INDEPENDENT)
def test_one_task_a_step_of_a_method_that_compares_none(name: str):
    subject = Subject()
    balancer = get(name)(list("abc"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for t in range(12):
            balancer({"abc"[t % TASKS]: subject.losses(batch())[t % TASKS]}).backward()


@pytest.mark.parametrize("method", [MGDA, UPGrad, CAGrad], ids=lambda method: method.name)
def test_one_task_a_step_of_a_method_that_combines(method: type[GradientBalancer]):
    """``accumulate`` makes no difference to these, so that the advice must be another."""
    subject = Subject()
    balancer = method(None, wrt=subject.net.trunk, tasks=list("abc"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for t in range(12):
            balancer({"abc"[t % TASKS]: subject.losses(batch())[t % TASKS]}).backward()
    assert all("accumulate" not in str(warning.message) for warning in told)


# Complex numbers.


class ComplexLinear(nn.Module):
    """``x W^T + b`` of complex numbers, which are complex tensors, or real ones with a last dimension of two parts."""

    def __init__(self, inputs: int, outputs: int, pairs: bool) -> None:
        super().__init__()
        weight = torch.randn(outputs, inputs, dtype=torch.complex128)
        bias = torch.randn(outputs, dtype=torch.complex128)
        self.pairs = pairs
        self.weight = nn.Parameter(torch.view_as_real(weight).clone() if pairs else weight)
        self.bias = nn.Parameter(torch.view_as_real(bias).clone() if pairs else bias)

    def forward(self, x: Tensor) -> Tensor:
        if not self.pairs:
            return x @ self.weight.mT + self.bias
        (x_re, x_im), (w_re, w_im) = x.unbind(-1), (part.mT for part in self.weight.unbind(-1))
        return torch.stack([x_re @ w_re - x_im @ w_im, x_re @ w_im + x_im @ w_re], -1) + self.bias


class ComplexNet(nn.Module):
    """A complex trunk with real heads, whose features are complex or real."""

    def __init__(self, pairs: bool, features: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.pairs, self.features = pairs, features
        self.trunk = nn.Sequential(ComplexLinear(5, 6, pairs), ComplexLinear(6, 4, pairs))
        self.real = nn.Linear(4, 4).double()
        self.fork = Fork(TASKS)
        width = 8 if features == "complex" else 4
        self.heads = nn.ModuleList(nn.Linear(width, 3).double() for _ in range(TASKS))

    def forward(self, x: Tensor) -> list[Tensor]:
        parts = torch.stack([x, x.flip(-1)], -1)
        z = self.trunk[0](parts if self.pairs else torch.view_as_complex(parts))
        z = self.trunk[1](z * 0.3)
        if self.features == "real":
            parts = z if self.pairs else torch.view_as_real(z)
            z = torch.tanh(self.real(parts.square().sum(-1)))
        aliases = self.fork(z)
        if self.features == "complex":
            aliases = [(z if self.pairs else torch.view_as_real(z)).flatten(1) for z in aliases]
        return [head(z) for head, z in zip(self.heads, aliases, strict=True)]

    def gradients(self) -> list[Tensor]:
        """Return the gradients, complex ones as pairs."""
        found = [p.grad for p in self.parameters() if p.grad is not None]
        return [torch.view_as_real(each) if each.is_complex() else each for each in found]


def complex_cases() -> Iterator[Any]:
    for name in names():
        method = get(name)
        if issubclass(method, GradientBalancer):
            for place in ("features", "layer", "trunk", "parameters"):
                if ("layer" if place == "trunk" else place) not in method.undefined_for:
                    for features in ("real", "complex"):
                        for accumulate in (1,) if method.combines else (1, 2):
                            label = f"{name}-{place}-{features}-{accumulate}"
                            yield pytest.param(method, place, features, accumulate, id=label)


@pytest.mark.parametrize(("method", "place", "features", "accumulate"), list(complex_cases()))
def test_complex_numbers(method: type[GradientBalancer], place: str, features: str, accumulate: int):
    """A complex number is a pair of real ones: norms, inner products, weights and gradients are those of the pairs."""
    twins = [ComplexNet(pairs, features) for pairs in (False, True)]
    balancers = []
    for net in twins:
        wrt: Any = {"features": None, "layer": net.trunk[1], "trunk": net.trunk, "parameters": net.trunk}[place]
        fork = None if place == "parameters" else net.fork
        balancers.append(method(fork, wrt=wrt, tasks=TASKS, accumulate=accumulate, **OPTIONS.get(method.name, {})))
        supply(balancers[-1], lambda net=net: nets.losses_of(net(batch(9)), batch(9)))
    for t in range(2 * accumulate):
        for net, balancer in zip(twins, balancers, strict=True):
            net.zero_grad()
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # "Casting complex values to real discards the imaginary part"
                balancer(nets.losses_of(net(batch(t)), batch(t))).backward()
        close(balancers[0].weights, balancers[1].weights, 1e-9)
        for found, expected in zip(twins[0].gradients(), twins[1].gradients(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("features", ["real", "complex"])
@pytest.mark.parametrize("place", ["features", "layer", "parameters"])
def test_held_weights_of_complex_numbers(place: str, features: str):
    found = []
    for pairs in (False, True):
        net = ComplexNet(pairs, features)
        wrt = None if place == "features" else net.trunk
        balancer = MGDA(None if place == "parameters" else net.fork, wrt=wrt, tasks=TASKS)
        for t in range(2):
            with balancer.held():
                balancer(nets.losses_of(net(batch(t)), batch(t))).backward()
        found.append(balancer.weights)
    close(*found, 1e-9)


# Sparse gradients.


class Words(nn.Module):
    """A trunk that begins with an embedding."""

    def __init__(self, sparse: bool, bag: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.bag = bag
        self.embedding: nn.Module = (
            nn.EmbeddingBag(10, 6, mode="sum", sparse=sparse) if bag else nn.Embedding(10, 6, sparse=sparse)
        )
        self.last = nn.Linear(6, 4)
        self.fork = Fork(TASKS)
        self.heads = nn.ModuleList(nn.Linear(4, 3) for _ in range(TASKS))
        self.double()

    @property
    def trunk(self) -> nn.ModuleList:
        return nn.ModuleList([self.embedding, self.last])

    def forward(self, x: Tensor) -> list[Tensor]:
        words = (3 * x.abs()).long().clamp(max=9)
        z = self.embedding(words) if self.bag else self.embedding(words).sum(1)
        return [head(each) for head, each in zip(self.heads, self.fork(self.last(z.tanh())), strict=True)]


def sparse_cases() -> Iterator[Any]:
    for name in names():
        method = get(name)
        if issubclass(method, GradientBalancer):
            for place in ("features", "layer", "trunk", "parameters"):
                if ("layer" if place in ("layer", "trunk") else place) not in method.undefined_for:
                    yield pytest.param(method, place, id=f"{name}-{place}")


@pytest.mark.parametrize("bag", [False, True], ids=["embedding", "bag"])
@pytest.mark.parametrize(("method", "place"), list(sparse_cases()))
def test_sparse_gradients_of_an_embedding(method: type[GradientBalancer], place: str, bag: bool):
    """They stay sparse, and count as the dense ones; methods that replace gradients refuse them."""
    twins = [Words(sparse, bag) for sparse in (True, False)]
    balancers = []
    for net in twins:
        wrt: Any = {"features": None, "layer": net.embedding}.get(place, net.trunk)
        fork = None if place == "parameters" else net.fork
        balancers.append(method(fork, wrt=wrt, tasks=TASKS, **OPTIONS.get(method.name, {})))
        supply(balancers[-1], lambda net=net: nets.losses_of(net(batch(9)), batch(9)))
    if method.replaces_gradients and place == "parameters":
        with pytest.raises(TypeError, match=r"sparse: make the embedding with sparse=False"):
            balancers[0](nets.losses_of(twins[0](batch()), batch())).backward()
        return
    for t in range(3):
        for net, balancer in zip(twins, balancers, strict=True):
            net.zero_grad()
            balancer(nets.losses_of(net(batch(t)), batch(t))).backward()
        close(balancers[0].weights, balancers[1].weights, 1e-9)
        assert twins[0].embedding.weight.grad.is_sparse
        for found, expected in zip(twins[0].parameters(), twins[1].parameters(), strict=True):
            close(found.grad.to_dense(), expected.grad, 1e-9)


@pytest.mark.parametrize("method", [MoCo, DBMTL], ids=lambda method: method.name)
def test_a_refused_sparse_gradient_leaves_the_state(method: type[GradientBalancer]):
    net = Words(True, False)
    balancer = method(None, wrt=net.trunk, tasks=TASKS)
    with torch.no_grad():
        balancer(nets.losses_of(net(batch()), batch()))
    before = state(balancer)
    with pytest.raises(TypeError, match="sparse"):
        balancer(nets.losses_of(net(batch()), batch())).backward()
    assert not changed(before, balancer)
    net.zero_grad()
    sum(nets.losses_of(net(batch()), batch())).backward()
    assert net.embedding.weight.grad.is_sparse
