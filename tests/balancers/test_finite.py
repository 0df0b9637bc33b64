"""A step that is not finite leaves a balancer as it was, and finding that out doesn't wait for the device."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from balancers import EqualWeighting, GradNorm, LossBalancer, StaticWeighting, UncertaintyWeighting

from .nets import Net, build, inputs, losses_of

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
    elif what == "nan gradient":
        second = second + 0 * (second - second.detach()).sqrt()  # the same value
    loss = balancer([first, second])
    if what == "overflowing scale":
        loss = loss * 1e308 * 10
    elif what == "zero scale":
        loss = loss * 0
    loss.backward()


def state(balancer: LossBalancer) -> dict[str, Any]:
    saved = {key: value for key, value in balancer.state_dict().items() if key != "weights"}
    extra = saved.pop("_extra_state")
    return {key: value.clone() for key, value in saved.items()} | {
        f"extra {key}": value for key, value in extra.items()
    }


def differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    assert before.keys() == after.keys()
    return [k for k, v in before.items() if not (v.equal(after[k]) if isinstance(v, Tensor) else v == after[k])]


BAD = ["nan loss", "inf loss", "negative loss", "nan gradient", "overflowing scale", "zero scale"]
STEPS = [(kind, bad) for kind in MEASURED for bad in BAD] + [("uncertainty", "nan loss"), ("uncertainty", "inf loss")]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("good_steps", [0, 2])
@pytest.mark.parametrize(("kind", "bad"), STEPS)
def test_a_bad_step_leaves_the_state(kind: str, bad: str, good_steps: int, optimizer: str):
    net = build("linear", 2)
    balancer = make(kind, net, optimizer=optimizer)
    for t in range(good_steps):
        step(balancer, net, t)
    before = state(balancer)
    step(balancer, net, 3, bad)
    # How many steps there were is in the extra state: see the next test.
    assert [key for key in differing(before, state(balancer)) if not key.startswith("extra")] == []


@pytest.mark.parametrize("kind", [*MEASURED, "uncertainty"])
def test_a_bad_step_leaves_the_extra_state(kind: str):
    net = build("linear", 2)
    balancer = make(kind, net)
    step(balancer, net, 0)
    before = state(balancer)
    step(balancer, net, 1, "nan loss")
    assert differing(before, state(balancer)) == []


def test_a_bad_step_is_no_update_to_freeze_after():
    net = build("linear", 2)
    balancer = GradNorm(net.fork, wrt=net.layer, freeze_after=2)
    for t, what in enumerate(["overflowing scale", "overflowing scale", "good", "good", "good"]):
        step(balancer, net, t, what)
    assert balancer.optimizer.step == 2
    frozen = balancer.next_weights.clone()
    assert not frozen.equal(torch.ones(2))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("kind", [*MEASURED, "uncertainty"])
def test_training_goes_on_as_if_there_had_been_no_bad_step(kind: str, optimizer: str):
    net = build("linear", 2)
    disturbed, calm = (make(kind, net, optimizer=optimizer) for _ in range(2))
    for t in range(4):
        step(disturbed, net, 7, "nan loss" if t % 2 else "inf loss")
        step(disturbed, net, t)
        step(calm, net, t)
    assert [key for key in differing(state(disturbed), state(calm)) if not key.startswith("extra")] == []


@pytest.mark.parametrize("kind", MEASURED)
def test_a_bad_pass_spoils_its_window_only(kind: str):
    net = build("linear", 2)
    disturbed, calm = (make(kind, net, accumulate=2) for _ in range(2))
    step(disturbed, net, 6)
    step(disturbed, net, 7, "nan loss")
    for t in range(4):
        step(disturbed, net, t)
        step(calm, net, t)
    assert [key for key in differing(state(disturbed), state(calm)) if not key.startswith("extra")] == []


def test_the_weights_of_a_bad_step_are_those_it_was_weighed_with():
    net = build("linear", 2)
    balancer = GradNorm(net.fork, wrt=net.layer)
    step(balancer, net, 0)
    expected = balancer.next_weights.clone()
    step(balancer, net, 1, "nan loss")
    assert balancer.weights.equal(expected)


@pytest.mark.parametrize("kind", MEASURED)
def test_check_finite(kind: str):
    net = build("linear", 2)
    balancer = make(kind, net, check_finite=True)
    step(balancer, net, 0)
    before = state(balancer)
    with pytest.raises(FloatingPointError, match=r"the loss of task 'depth' is not finite"):
        step(balancer, net, 1, "nan loss")
    with pytest.raises(FloatingPointError, match=r"the loss of task 'normals' is not finite"):
        step(balancer, net, 1, "inf loss")
    for bad in ["overflowing scale", "nan gradient", "negative loss"]:
        with pytest.raises(FloatingPointError, match="state is unchanged"):
            step(balancer, net, 1, bad)
    assert [key for key in differing(before, state(balancer)) if not key.startswith("extra")] == []
    step(balancer, net, 2)
    assert differing(before, state(balancer))


@pytest.mark.parametrize(
    "balancer", [EqualWeighting(NAMES, check_finite=True), UncertaintyWeighting(NAMES, check_finite=True)]
)
def test_check_finite_of_losses(balancer: LossBalancer):
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


class NoWait(TorchDispatchMode):
    """Refuses what would make a program wait for its device: reading a value, and shapes that depend on values."""

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
    def adapt(self, losses: Tensor, gradient_norms: Tensor, given: Tensor | None) -> Tensor:
        if losses.sum() > 0:
            return super().adapt(losses, gradient_norms, given)
        return losses.isfinite().all()


def test_a_wait_would_be_seen():
    net = build("linear", 2)
    waiting, checking = Waiting(net.fork), GradNorm(net.fork, check_finite=True)
    for balancer in (waiting, checking):
        step(balancer, net, 0)
        with NoWait(), pytest.raises(AssertionError, match="waits for the device"):
            step(balancer, net, 1)
