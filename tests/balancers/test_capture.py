"""A step captured in a CUDA graph trains as the step itself does, and steps that can't be captured are refused."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from balancers import CapturedStep, EqualWeighting, GradNorm, LossBalancer, UncertaintyWeighting
from balancers.engine import captured_step
from balancers.engine.captured_step import _Layout

from .nets import Net, build, inputs, losses_of

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]
BALANCERS: dict[str, Callable[[Net], LossBalancer]] = {
    "equal": lambda net: EqualWeighting(2),
    "uncertainty": lambda net: UncertaintyWeighting(2),
    "layer": lambda net: GradNorm(net.fork, wrt=net.layer),
    "features": lambda net: GradNorm(net.fork),
    "parameters": lambda net: GradNorm(None, wrt=net.layer, tasks=2),
}


def training(kind: str, device: str) -> tuple[Net, LossBalancer, Callable[[Tensor], Tensor]]:
    net = build("linear", 2).to(device)
    balancer = BALANCERS[kind](net).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, capturable=device == "cuda")

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = balancer(losses_of(net(x), x))
        loss.backward()
        optimizer.step()
        return loss.detach()

    return net, balancer, step


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", BALANCERS)
def test_trains_as_the_step_does(kind: str, device: str):
    net, balancer, step = training(kind, device)
    other, other_balancer, other_step = training(kind, device)
    captured = CapturedStep(other_step, [other_balancer])
    for x in inputs("linear", 30):
        x = x.to(device)
        torch.testing.assert_close(captured(x).clone(), step(x), rtol=1e-9, atol=1e-12)
    for (name, one), two in zip(balancer.state_dict().items(), other_balancer.state_dict().values(), strict=True):
        if isinstance(one, Tensor):
            torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-12, msg=name)
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"accumulate": 2}, "accumulate=2"),
        ({"check_finite": True}, "check_finite"),
        ({"update_every": 3}, "update_every=3"),
        ({"freeze_after": 5}, "freeze_after"),
    ],
)
def test_refuses_steps_that_are_not_alike(options: dict[str, Any], reason: str):
    net = build("linear", 2)
    with pytest.raises(ValueError, match=f"GradNorm can't be captured in a CUDA graph: with {reason}"):
        CapturedStep(print, [EqualWeighting(2), GradNorm(net.fork, **options)])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_refuses_a_batch_of_another_shape():
    _, balancer, step = training("layer", "cuda")
    captured = CapturedStep(step, [balancer])
    x = inputs("linear")[0].cuda()
    for _ in range(14):
        captured(x)
    with pytest.raises(ValueError, match="the step was captured with"):
        captured(x[:1])


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((torch.ones(2), {"b": torch.ones(3), "a": torch.ones(3)}, 1, "x"), "keys of a dict in another order"),
        ((torch.ones(2), {"a": torch.ones(3), "b": torch.ones(3)}, 2, "x"), r"has the numbers \[2\]"),
        ((torch.ones(2), {"a": torch.ones(3), "b": torch.ones(4)}, 1, "x"), "tensors of shapes and types"),
    ],
)
def test_batches_must_be_alike_in_all_that_the_captured_step_keeps(batch: tuple[object, ...], words: str):
    def layout(batch: tuple[object, ...]) -> _Layout:
        return _Layout.of(*tree_flatten(batch))

    first = layout((torch.ones(2), {"a": torch.ones(3), "b": torch.ones(3)}, 1, "x"))
    first.check(layout((torch.zeros(2), {"a": torch.zeros(3), "b": torch.zeros(3)}, 1, "y")))
    with pytest.raises(ValueError, match=words):
        first.check(layout(batch))


@pytest.mark.parametrize("on_gpu", [True, False])
def test_a_batch_that_is_not_on_the_balancers_device_is_told_once(on_gpu: bool, monkeypatch: pytest.MonkeyPatch):
    _, balancer, step = training("layer", "cpu")
    monkeypatch.setattr(captured_step, "_is_on_gpu", lambda each: on_gpu and each is balancer)
    captured = CapturedStep(step, [balancer])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for x in inputs("linear", 3):
            captured(x)
    told = [each for each in caught if "CapturedStep captures nothing" in str(each.message)]
    assert [each.filename for each in told] == [__file__] * on_gpu
