"""The job of `test_combining_distributed`: a few steps of one method under DistributedDataParallel."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from balancers import Fork, GradientBalancer, LossBalancer, get
from balancers.engine import ResidualBalancer

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


OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "auto-lambda": {"optimizer": "sgd", "lr": 0.5},
    "coba": {"window": 4, "warm_up": 1},
    "ntk": {"update_every": 1},
    "sdmgrad": {"lr": 0.1},
    "m-config": {"takes_turns": False},
    "static": {"weights": [0.5, 1.0, 2.0]},
}
"""What methods need to be made, or for their weights to move within a few steps."""


def make(name: str, wrt: str, net: Net, tasks: int | Sequence[str]) -> LossBalancer:
    cls: Any = get(name)
    options = {"tasks": tasks} | dict(OPTIONS.get(name, {}))
    if not issubclass(cls, GradientBalancer):
        balancer: LossBalancer = cls(**options)
        return balancer
    if wrt == "parameters":
        return cls(None, wrt=net.trunk.parameters(), **options)
    return cls(net.fork, wrt=net.trunk[2] if wrt == "layer" else None, **options)


def on_shards(model: nn.Module, shards: Sequence[Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
    """Return each task's losses on the shards that have it, one for each."""
    outputs = model(torch.cat(list(shards)), "".join(task for task in TASKS if any(task in some for some in tasks)))
    losses = {}
    for task, output in outputs.items():
        i = TASKS.index(task)
        parts = zip(output.split(SAMPLES // SHARDS), tasks, strict=True)
        losses[task] = torch.stack([(i + 1) * (part - i).square().mean() for part, some in parts if task in some])
    return losses


def means(on_shards: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """Return each task's loss.

    Its value is the mean over the shards that have it. Its gradient is that of the mean over the ``number`` of shards
    in the batch, in which a shard without the task counts zero.
    """
    shares = {task: len(each) / number for task, each in on_shards.items()}
    return {
        task: shares[task] * each.mean() + (1 - shares[task]) * each.mean().detach() for task, each in on_shards.items()
    }


def second_batch(net: Net, shards: Sequence[Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
    """Return the losses of another batch, which DDP knows nothing of: it takes one forward pass a step."""
    return means(on_shards(net, [-shard for shard in shards], tasks), len(shards))


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
    if balancer.needs_optimizer:
        balancer.follow(optimizer)
    generator = torch.Generator().manual_seed(1)
    record: dict[str, Any] = {"weights": [], "gradients": []}
    for step in range(STEPS):
        x = torch.randn(SAMPLES, 5, generator=generator, dtype=torch.float64)
        shards, tasks = x.split(SAMPLES // SHARDS), tasks_of(case["tasks"], step)
        if world_size > 1:
            shards, tasks = shards[rank : rank + 1], tasks[rank : rank + 1]

        residuals = on_shards(model, shards, tasks)
        losses = means(residuals, len(shards))
        optimizer.zero_grad()
        if balancer.needs_second_batch:
            its = [TASKS] * len(shards) if balancer.needs_optimizer else tasks
            balancer.second_batch(partial(second_batch, net, shards, its))
        if isinstance(balancer, ResidualBalancer):
            balancer.residuals(residuals if case["form"] == "dict" else list(residuals.values()))
        balancer(losses if case["form"] == "dict" else list(losses.values())).backward()
        optimizer.step()
        if balancer.looks_again:
            with torch.no_grad():
                after = means(on_shards(net, shards, tasks), len(shards))
            balancer.after_step(after if case["form"] == "dict" else list(after.values()))

        parameters = list(net.parameters())
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        record["weights"].append(balancer.weights)
        record["gradients"].append(torch.cat([gradient.flatten() for gradient in gradients]))
    record["state"] = balancer.state_dict()
    return record
