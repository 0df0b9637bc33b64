"""Train three tasks on a data set each: of different lengths, and with labels missing.

Each task's batch goes through the network on its own. A task without a label in a step is left out of the dict of
losses: its weight stays, and the others are balanced among themselves:

    python examples/loader_per_task.py
"""

from collections.abc import Iterator
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from balancers import Fork, GradNorm

LENGTHS = {"sum": 240, "distance": 208, "product": 80}
"""The number of samples in each task's data set."""
Batch = tuple[Tensor, ...]
"""Inputs and labels."""


class Net(nn.Module):
    """A trunk, and a head for each task."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32))
        self.fork = Fork(num_tasks=len(LENGTHS))
        self.heads = nn.ModuleDict({task: nn.Linear(32, 1) for task in LENGTHS})

    def forward(self, x: Tensor, task: str) -> Tensor:
        aliases = dict(zip(self.heads, self.fork(self.trunk(x).relu()), strict=True))
        return self.heads[task](aliases[task]).squeeze(1)


def make_loader(task: str) -> DataLoader[Batch]:
    """Return a task's batches, in which half of the labels are missing: they are NaN."""
    x = torch.randn(LENGTHS[task], 4)
    labels = {"sum": x.sum(1), "distance": x.norm(dim=1), "product": x[:, 0] * x[:, 1]}[task]
    labels[torch.rand(len(labels)) < 0.5] = torch.nan
    return DataLoader(TensorDataset(x, labels), batch_size=8, shuffle=True)


def draw(loaders: dict[str, DataLoader[Batch]]) -> Iterator[dict[str, Batch]]:
    """Yield the labelled samples of each task's next batch, for ever. In an epoch, shorter data sets run out first."""
    while True:
        for batches in zip_longest(*loaders.values()):
            drawn = {task: batch for task, batch in zip(loaders, batches, strict=True) if batch is not None}
            known = {task: ~labels.isnan() for task, (_, labels) in drawn.items()}
            labelled = {task: (x[known[task]], y[known[task]]) for task, (x, y) in drawn.items() if known[task].any()}
            if labelled:
                yield labelled


def main(steps: int = 60) -> list[dict[str, float]]:
    """Return what the balancer logs in each step: for a task that is left out, its weight alone."""
    torch.manual_seed(0)
    net = Net()
    balancer = GradNorm(net.fork, wrt=net.trunk[-1], tasks=list(LENGTHS))  # by name, as a dict may lack some tasks
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    history = []
    for step, batches in zip(range(steps), draw({task: make_loader(task) for task in LENGTHS}), strict=False):
        optimizer.zero_grad()
        balancer({task: (net(x, task) - y).square().mean() for task, (x, y) in batches.items()}).backward()
        optimizer.step()
        history.append(balancer.scalars())
        if step in (0, 12, 24, steps - 1):
            weights = {name: round(value, 3) for name, value in history[-1].items() if name.startswith("weight/")}
            print(f"step {step}: {weights}")
    return history


if __name__ == "__main__":
    main()
