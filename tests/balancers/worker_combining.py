"""The job of `test_combining_distributed`: a few steps of one method under DistributedDataParallel."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from balancers import Fork, GradientBalancer, LossBalancer, get

TASKS = "abc"
STEPS, SHARDS, SAMPLES = 4, 2, 8
"""Number of steps, of parts of a batch, and of samples in a batch."""


class Net(nn.Module):
    """A linear trunk and three heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
        self.fork = Fork(len(TASKS))
        self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in TASKS)
        self.double()

    def forward(self, x: Tensor, tasks: str = TASKS) -> dict[str, Tensor]:
        """Return the outputs of the heads of ``tasks``."""
        each = zip(TASKS, self.heads, self.fork(self.trunk(x)), strict=True)
        return {task: head(z) for task, head, z in each if task in tasks}


def tasks_of(which: str, step: int) -> list[str]:
    """Return the tasks that each shard of a batch has labels for."""
    if which == "one missing":
        return [TASKS, TASKS.replace(TASKS[step % 3], "")]
    if which == "one each":
        return [TASKS[step % 3], TASKS[(step + 1) % 3]]
    return [TASKS] * SHARDS


def make(name: str, wrt: str, net: Net, tasks: int | Sequence[str]) -> LossBalancer:
    cls: Any = get(name)
    if not issubclass(cls, GradientBalancer):
        options = {"weights": [0.5, 1.0, 2.0]} if name == "static" else {}
        balancer: LossBalancer = cls(tasks=tasks, **options)
        return balancer
    if wrt == "parameters":
        return cls(None, wrt=net.trunk.parameters(), tasks=tasks)
    return cls(net.fork, wrt=net.trunk[2] if wrt == "layer" else None, tasks=tasks)


def losses_of(model: nn.Module, shards: Sequence[Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
    """Return each task's loss on the shards that have it.

    Its value is the mean over these shards. Its gradient is that of the mean over all shards of the batch, in which a
    shard without the task counts zero.
    """
    outputs = model(torch.cat(list(shards)), "".join(task for task in TASKS if any(task in some for some in tasks)))
    losses = {}
    for task, output in outputs.items():
        i = TASKS.index(task)
        parts = zip(output.split(SAMPLES // SHARDS), tasks, strict=True)
        on_shards = [(i + 1) * (part - i).square().mean() for part, some in parts if task in some]
        mean, share = sum(on_shards) / len(on_shards), len(on_shards) / len(shards)
        losses[task] = share * mean + (1 - share) * mean.detach()
    return losses


def run(case: Mapping[str, Any], rank: int, world_size: int) -> dict[str, Any]:
    """Train with one method.

    Args:
        case: its ``name``; ``wrt``, where it measures; the ``form`` of the losses, list or dict; ``tasks``, those that
            the shards of a batch have: see `tasks_of`; and options of ``ddp``.
        rank: the shard of each batch that this process trains on.
        world_size: the number of processes. One alone trains on the whole batch.

    Returns:
        The weights and the network's gradient of each step, and the balancer's state at the end.
    """
    net = Net()
    balancer = make(case["name"], case["wrt"], net, list(TASKS) if case["form"] == "dict" else len(TASKS))
    model: nn.Module = DistributedDataParallel(net, **case["ddp"]) if world_size > 1 else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    record: dict[str, Any] = {"weights": [], "gradients": []}
    for step in range(STEPS):
        x = torch.randn(SAMPLES, 5, generator=generator, dtype=torch.float64)
        shards, tasks = x.split(SAMPLES // SHARDS), tasks_of(case["tasks"], step)
        if world_size > 1:
            shards, tasks = shards[rank : rank + 1], tasks[rank : rank + 1]

        losses = losses_of(model, shards, tasks)
        optimizer.zero_grad()
        balancer(losses if case["form"] == "dict" else list(losses.values())).backward()
        optimizer.step()
        if balancer.looks_again:
            with torch.no_grad():
                after = losses_of(net, shards, tasks)
            balancer.after_step(after if case["form"] == "dict" else list(after.values()))

        parameters = list(net.parameters())
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        record["weights"].append(balancer.weights)
        record["gradients"].append(torch.cat([gradient.flatten() for gradient in gradients]))
    record["state"] = balancer.state_dict()
    return record
