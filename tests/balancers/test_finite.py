"""No step waits for the device, not even to find out that it is not finite; and a few steps of GradNorm's own.

`test_contract` checks for all methods that a step which is not finite leaves no trace.
"""

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from balancers import (
    EqualWeighting,
    GradNorm,
    LossBalancer,
    Read,
    Result,
    State,
    StaticWeighting,
    UncertaintyWeighting,
)
from balancers.engine.host_copy import HostCopy

from .nets import Net, build, inputs, losses_of

pytestmark = pytest.mark.on_device

MEASURED = ["layer", "features", "parameters"]
NAMES = ["depth", "normals"]


def make(kind: str, net: Net, **options: Any) -> LossBalancer:
    if kind == "uncertainty":
        return UncertaintyWeighting(NAMES, **options)
    if kind == "parameters":
        return GradNorm(None, wrt=net.layer, tasks=NAMES, **options)
    return GradNorm(net.fork, wrt=net.layer if kind == "layer" else None, tasks=NAMES, **options)


def step(balancer: LossBalancer, net: Net, t: int, what: str = "good") -> None:
    x = inputs("linear", 8)[t]
    first, second = losses_of(net(x), x)
    if what == "nan loss":
        first = first * math.nan
    elif what == "inf loss":
        second = second + math.inf
    elif what == "negative loss":
        first = first - 100
    loss = balancer([first, second])
    if what == "overflowing scale":
        loss = loss * 1e308 * 10
    loss.backward()


def test_a_bad_step_is_no_update_to_freeze_after():
    net = build("linear", 2)
    balancer = GradNorm(net.fork, wrt=net.layer, freeze_after=2)
    for t, what in enumerate(["overflowing scale", "overflowing scale", "good", "good", "good"]):
        step(balancer, net, t, what)
    assert balancer.optimizer_steps == 2
    frozen = balancer.next_weights.clone()
    assert not frozen.equal(torch.ones(2))


@pytest.mark.parametrize(
    "balancer", [EqualWeighting(NAMES, check_finite=True), UncertaintyWeighting(NAMES, check_finite=True)]
)
def test_check_finite_accepts_negative_losses(balancer: LossBalancer):
    net = build("linear", 2)
    step(balancer, net, 0, "negative loss")
    with pytest.raises(FloatingPointError, match=r"the loss of task 'normals' is not finite"):
        step(balancer, net, 1, "inf loss")


def test_a_loss_that_is_zero_at_first_starts_later():
    net = build("linear", 2)
    balancer = GradNorm(net.fork, wrt=net.layer)
    for t in range(3):
        x = inputs("linear", 3)[t]
        first, second = losses_of(net(x), x)
        balancer([first * 0 if t == 0 else first, second]).backward()
        if t == 1:
            initial = first.item()
    ratio = balancer.statistics["loss_ratios"][0].item()
    assert ratio == pytest.approx(first.item() / initial, rel=1e-12)


def test_the_network_takes_a_step_that_the_balancer_skips():
    """The norm of all gradients tells; a user who asks for it can skip the optimiser's step too."""
    net = build("linear", 2)
    balancer = GradNorm(net.fork, wrt=net.layer)
    step(balancer, net, 0)
    before = balancer.next_weights.clone()
    net.zero_grad()
    step(balancer, net, 1, "nan loss")
    assert balancer.next_weights.equal(before)
    gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    assert not torch.nn.utils.get_total_norm(gradients).isfinite()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer.step()
    assert not all(parameter.isfinite().all() for parameter in net.parameters())


class NoWait(TorchDispatchMode):
    """Refuse operators that would make a program wait for its device: reads of a value, and shapes from values."""

    WAITS = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "allclose")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.WAITS:
            raise AssertionError(f"waits for the device: {func}")
        return func(*args, **(kwargs or {}))


BALANCERS = {
    "equal": lambda net, **options: EqualWeighting(NAMES, **options),
    "static": lambda net, **options: StaticWeighting([1.0, 3.0], tasks=NAMES, **options),
} | {kind: (lambda net, kind=kind, **options: make(kind, net, **options)) for kind in [*MEASURED, "uncertainty"]}


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}], ids=["", "accumulate"])
@pytest.mark.parametrize("kind", BALANCERS)
def test_no_wait_for_the_device(kind: str, options: dict[str, Any]):
    net = build("linear", 2)
    balancer = BALANCERS[kind](net, **options)
    x = inputs("linear")[0]

    def named() -> None:
        balancer({"normals": losses_of(net(x), x)[1]}).backward()

    for t in range(2):
        step(balancer, net, t)
        named()
    with NoWait():
        for t, what in enumerate(
            ["good", "nan loss", "good", "inf loss", "negative loss", "overflowing scale", "good"]
        ):
            step(balancer, net, t, what)
            named()
            balancer.close_window()


@pytest.mark.parametrize("kind", ["layer", "features"])
def test_no_wait_with_batched_heads(kind: str):
    net = build("linear", 2)
    balancer = make(kind, net)
    heads = torch.randn(2, 4, 3, dtype=torch.float64)

    def batched() -> None:
        z = torch.stack(net.fork(net.trunk(inputs("linear")[0])))
        balancer(torch.bmm(z, heads).square().mean((1, 2))).backward()

    batched()
    with NoWait():
        batched()
        batched()


class Waiting(GradNorm):
    def update(self, read: Read, state: State) -> Result:
        return super().update(read, state) if read.losses.sum() > 0 else Result()


def test_a_wait_would_be_seen():
    net = build("linear", 2)
    waiting, checking = Waiting(net.fork), GradNorm(net.fork, check_finite=True)
    for balancer in (waiting, checking):
        step(balancer, net, 0)
        with NoWait(), pytest.raises(AssertionError, match="waits for the device"):
            step(balancer, net, 1)


def test_a_method_that_has_settled_is_valid_before_the_host_knows(monkeypatch: pytest.MonkeyPatch):
    """Ranks go on measuring for some steps after the method has settled."""
    monkeypatch.setattr(HostCopy, "is_true", lambda _: False)
    net = build("linear", 2)
    balancer = make("layer", net, check_finite=True, freeze_after=2)
    for t in range(2):
        step(balancer, net, t)
    frozen = balancer.state_dict()["next_weights"].clone()
    for t in range(2, 5):
        step(balancer, net, t)
    assert balancer.state_dict()["next_weights"].equal(frozen)
    with pytest.raises(FloatingPointError):
        step(balancer, net, 5, "nan loss")
