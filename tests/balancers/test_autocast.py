"""What a balancer computes itself is not rounded by the caller's autocast, and keeps to the scale of a GradScaler."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from balancers import MGDA, AlignedMTL, AutoLambda, Fork, GradientBalancer, GradNorm, MoDo, NashMTL, SDMGrad

HALVES = [torch.bfloat16, torch.float16]


class Net(nn.Module):
    """A trunk and three heads, whose losses differ in scale."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16))
        self.fork = Fork(3)
        self.heads = nn.ModuleList(nn.Linear(16, 2) for _ in range(3))
        self.scale = scale

    def losses(self, seed: int = 0) -> list[Tensor]:
        x = torch.randn(32, 8, generator=torch.Generator().manual_seed(seed))
        aliases = self.fork(self.trunk(x))
        factors = (self.scale, 3 * self.scale, 0.1 * self.scale)
        return [
            factor * (head(z).float() - i).square().mean()
            for i, (factor, head, z) in enumerate(zip(factors, self.heads, aliases, strict=True))
        ]


MAKERS: dict[str, Callable[[Net], GradientBalancer]] = {
    "aligned-mtl": lambda net: AlignedMTL(net.fork, wrt=net.trunk),
    "nash-mtl": lambda net: NashMTL(net.fork),
    "mgda": lambda net: MGDA(None, wrt=net.trunk, tasks=3),
    "gradnorm": lambda net: GradNorm(net.fork, wrt=net.trunk[2]),
    "modo": lambda net: MoDo(None, wrt=net.trunk, tasks=3, gamma=1e-6),
    "sdmgrad": lambda net: SDMGrad(None, wrt=net.trunk, tasks=3, lr=0.01),
    "auto-lambda": lambda net: AutoLambda(None, wrt=net.trunk, tasks=3, lr=0.1),
}


def trained(net: Net, balancer: GradientBalancer, backward: Callable[[Callable[[], Tensor]], None]) -> Tensor:
    """Return the weights after three steps that change the network little."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-9)
    if balancer.needs_second_batch:
        batches = iter(range(100, 200))
        balancer.second_batch(lambda: net.losses(next(batches)))
    if balancer.needs_optimizer:
        balancer.follow(optimizer)
    for step in range(3):
        optimizer.zero_grad()
        losses = net.losses(step)
        backward(lambda losses=losses: balancer(losses))  # type: ignore[misc]
        optimizer.step()
    return balancer.weights


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("method", MAKERS)
def test_a_call_and_a_pass_within_autocast_are_not_rounded(method: str, half: torch.dtype) -> None:
    def within(call: Callable[[], Tensor]) -> None:
        with torch.autocast("cpu", half):
            call().backward()

    # Squares of these gradients are beyond the largest number of float16.
    plain, other = Net(1e3), Net(1e3)
    expected = trained(plain, MAKERS[method](plain), lambda call: call().backward())
    found = trained(other, MAKERS[method](other), within)
    assert found.dtype == torch.float32
    assert expected.max() > 1.001 * expected.min()
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=0)  # the network's own products are


SCALE = 2.0**24
"""That of the passes in half precision."""


@pytest.mark.parametrize("method", ["modo", "sdmgrad", "auto-lambda"])
def test_a_second_batch_keeps_to_the_scale_of_the_last_pass(method: str) -> None:
    net = Net(1e-6)
    balancer: Any = MAKERS[method](net)
    expected = torch.cat([each.flatten(1) for each in balancer.gradients(net.losses(7), None)], 1)
    assert balancer.pass_scale == 1

    def scaled(call: Callable[[], Tensor]) -> None:
        (SCALE * call()).backward()

    trained(net, balancer, scaled)
    assert balancer.pass_scale == SCALE
    with torch.autocast("cpu", torch.float16):
        losses = net.losses(7)
    found = torch.cat([each.flatten(1) for each in balancer.gradients(losses, None)], 1) / SCALE
    assert ((found - expected).norm(dim=1) < 0.01 * expected.norm(dim=1)).all()


def test_a_block_of_held_keeps_to_the_scale_of_its_pass() -> None:
    def weights(half: bool) -> Tensor:
        net = Net(1e-6)
        balancer = MGDA(net.fork)
        with balancer.held():
            with torch.autocast("cpu", torch.float16, enabled=half):
                loss = balancer(net.losses())
            (SCALE * loss if half else loss).backward()
        return balancer.weights

    expected = weights(half=False)
    assert expected.max() > 1.5 * expected.min()
    torch.testing.assert_close(weights(half=True), expected, rtol=0.02, atol=1e-3)
