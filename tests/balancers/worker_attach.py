"""The job of the distributed tests of `test_attach`: a few steps with a written or an attached fork on each rank."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from balancers import Fork, get

TASKS = ("a", "b", "c")
STEPS, SAMPLES = 3, 6


class Net(nn.Module):
    """A trunk and three heads, with a fork in its code or without."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(8, 2) for _ in TASKS)
        self.fork = Fork(len(TASKS)) if written else None
        self.double()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        z = self.trunk(x)
        aliases = [z] * len(TASKS) if self.fork is None else self.fork(z)
        return [head(alias) for head, alias in zip(self.heads, aliases, strict=True)]


def run(case: Mapping[str, Any], rank: int, world_size: int) -> list[torch.Tensor]:
    """Return the weights and the trained parameters."""
    net = Net(case["written"])
    if case["how"] == "fsdp":
        for part in (net.trunk, *net.heads, net):
            fully_shard(part)
    fork = Fork.attach(list(net.heads)) if net.fork is None else net.fork
    wrt = net.trunk if case["wrt"] == "trunk" else net.trunk[2] if case["wrt"] == "layer" else None
    model: nn.Module = DistributedDataParallel(net) if case["how"] == "ddp" else net
    balancer = get(case["method"])(fork, wrt, tasks=TASKS)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(STEPS):
        x = torch.randn(SAMPLES, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(10 * step + rank))
        losses = [(i + 1) * output.square().mean() for i, output in enumerate(model(x))]
        optimizer.zero_grad()
        balancer(losses).backward()
        optimizer.step()
    parameters = [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in net.parameters()]
    return [balancer.weights, *parameters]
