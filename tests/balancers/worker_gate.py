"""The job of the distributed tests of `test_gate`: a few steps of a method that reads the whole trunk."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from balancers import Fork, GradientBalancer, get
from balancers.engine.forks import fork as forks
from balancers.engine.forks.gate import close

TASKS = "abc"
STEPS, SAMPLES, SHARDS = 3, 8, 2


class Net(nn.Module):
    """A trunk and three heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(5, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.fork = Fork(len(TASKS))
        self.heads = nn.ModuleList(nn.Linear(16, 2) for _ in TASKS)
        self.double()

    def forward(self, x: Tensor, tasks: str = TASKS) -> dict[str, Tensor]:
        """Return the outputs of the heads of ``tasks``."""
        each = zip(TASKS, self.heads, self.fork(self.trunk(x)), strict=True)
        return {task: head(z) for task, head, z in each if task in tasks}


def losses_of(model: nn.Module, x: Tensor, tasks: str, share: float) -> dict[str, Tensor]:
    """Return the losses of ``tasks``; ``share`` is the part of the batch that has labels for task "b"."""
    losses = {}
    for task, output in model(x, tasks).items():
        i = TASKS.index(task)
        each = (i + 1) * (output - i).square().mean(1)
        if share < 1 and task == "b":  # the second shard has no labels for it
            mean = each[: SAMPLES // SHARDS].mean()
            losses[task] = share * mean + (1 - share) * mean.detach()
        else:
            losses[task] = each.mean()
    return losses


def run(case: Mapping[str, Any], rank: int, world_size: int) -> dict[str, Any]:
    """Do what `train` does, and record whether there was a gate in each pass."""
    gated: list[bool] = []

    def recorded(*arguments: Any) -> Any:
        found = close(*arguments)
        gated.append(found is not None)
        return found

    forks.close = recorded
    try:
        return {"gated": gated, **train(case, rank, world_size)}
    finally:
        forks.close = close


def train(case: Mapping[str, Any], rank: int, world_size: int) -> dict[str, Any]:
    """Train with one method.

    Args:
        case: its ``name``; ``model``, "ddp", "ddp trunk" (only the trunk is wrapped) or "fsdp"; options of ``ddp``;
            ``lacks``, whether the second shard has no labels for a task; and ``passes``, the number of backward passes
            before each step.
        rank: the shard of each batch that this process trains on.
        world_size: the number of processes. One alone trains on the whole batch.
    """
    net = Net()
    model: nn.Module = net
    cls: Any = get(case["name"])
    if world_size > 1 and case["model"] == "fsdp":
        fully_shard(net.trunk)
        fully_shard(net)
    balancer: GradientBalancer = cls(net.fork, net.trunk, tasks=list(TASKS))
    if world_size > 1 and case["model"] == "ddp":
        model = DistributedDataParallel(net, **case["ddp"])
    elif world_size > 1 and case["model"] == "ddp trunk":
        net.trunk = DistributedDataParallel(net.trunk, **case["ddp"])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    record: dict[str, Any] = {"weights": [], "gradients": []}
    for _ in range(STEPS):
        optimizer.zero_grad()
        for k in range(case["passes"]):
            x = torch.randn(SAMPLES, 5, generator=generator, dtype=torch.float64)
            tasks, share = TASKS, 1.0
            if world_size > 1:
                x = x.split(SAMPLES // SHARDS)[rank]
                tasks = TASKS.replace("b", "") if case["lacks"] and rank else TASKS
            elif case["lacks"]:
                share = 0.5
            waits = k + 1 < case["passes"] and isinstance(model, DistributedDataParallel)
            with model.no_sync() if waits else nullcontext():
                balancer(losses_of(model, x, tasks, share)).backward()
            record["weights"].append(balancer.weights)
        if world_size > 1 and case["model"] == "ddp trunk":
            for parameter in net.heads.parameters():
                dist.all_reduce(parameter.grad)
                parameter.grad /= world_size
        for parameter in net.trunk.parameters():
            gradient = parameter.grad
            record["gradients"].append(gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient.clone())
        optimizer.step()
    return record
