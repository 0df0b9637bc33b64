"""Compile the model with `torch.compile`, and the balancer's update with `compile=True`; compare both with eager.

A fork that a balancer reads breaks the model's graph in two, one for the trunk and one for the heads. The balancer
itself runs outside of both, and `fullgraph=True` is refused. At a layer of a compiled trunk, the balancer takes each
task's gradient on its own. PyTorch must then keep the buffers of the compiled backward pass: the setting
`donated_buffer = False` says so. Steps as small as these gain little when compiled, or nothing:

    python examples/compiled.py
"""

import time

import torch
import torch._functorch.config
from torch import Tensor, nn

from balancers import Fork, GradNorm

TASKS = ["sine", "product"]


class Net(nn.Module):
    """A trunk and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 32))
        self.fork = Fork(num_tasks=2)
        self.heads = nn.ModuleList([nn.Linear(32, 1), nn.Linear(32, 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        return [head(z).squeeze(1) for head, z in zip(self.heads, self.fork(self.trunk(x).relu()), strict=True)]


def train(steps: int, compiled: bool) -> list[dict[str, float]]:
    """Return what the balancer logs in each step."""
    torch.manual_seed(0)
    net = Net()
    model = torch.compile(net) if compiled else net
    # The balancer takes fork and layer of the network as it is: both models share them.
    balancer = GradNorm(net.fork, wrt=net.trunk[-1], tasks=TASKS, compile=compiled)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    history, begin = [], time.perf_counter()
    for step in range(steps):
        x = torch.randn(64, 4)
        sine, product = model(x)
        losses = {
            "sine": (sine - x.sum(1).sin()).square().mean(),
            "product": (product - x[:, 0] * x[:, 1]).square().mean(),
        }
        optimizer.zero_grad()
        balancer(losses).backward()
        optimizer.step()
        history.append(balancer.scalars())
        if step == 0:  # which compiles
            first, begin = time.perf_counter() - begin, time.perf_counter()
    later = 1000 * (time.perf_counter() - begin) / max(1, steps - 1)
    print(f"{'compiled' if compiled else 'eager':>8}: first step {first:.2f} s, {later:.2f} ms for each of the others")
    return history


def main(steps: int = 100) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Return what each step logs in eager mode, and what it logs compiled."""
    with torch._functorch.config.patch(donated_buffer=False):  # or once, before you compile: donated_buffer = False
        eager, compiled = train(steps, compiled=False), train(steps, compiled=True)
    for step in (0, steps // 2, steps - 1):
        for name in (f"weight/{TASKS[0]}", f"loss/{TASKS[0]}", f"loss/{TASKS[1]}"):
            print(f"step {step}, {name}: {eager[step][name]:.5f} in eager mode, {compiled[step][name]:.5f} compiled")
    return eager, compiled


if __name__ == "__main__":
    main()
