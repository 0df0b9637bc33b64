"""Accumulate gradients over four batches for each step, where one task has labels in one batch of four only.

With `accumulate=4` the balancer makes one update out of four backward passes, and the weights hold until then. A task
that a pass leaves out counts with its mean loss over the passes that have it. The epoch's last window has two batches
only: the balancer follows the optimiser, whose step ends every window, however short:

    python examples/accumulation.py
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from balancers import Fork, GradNorm

ACCUMULATE = 4
BATCHES = 18  # in an epoch: four windows of four batches, and one of two


class Net(nn.Module):
    """A trunk and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32))
        self.fork = Fork(num_tasks=2)
        self.depth, self.normal = nn.Linear(32, 1), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for_depth, for_normal = self.fork(self.trunk(x).relu())
        return self.depth(for_depth).squeeze(1), self.normal(for_normal)


def losses_of(net: Net, index: int) -> dict[str, Tensor]:
    """Return the losses of a batch: surface normals are labelled in every fourth batch."""
    x = torch.randn(16, 8)
    depth, normal = net(x)
    losses = {"depth": F.mse_loss(depth, x.sum(1)) / 8}
    if index % 4 == 1:
        losses["normal"] = F.mse_loss(normal, F.normalize(x[:, :3])) * 3
    return losses


def main(steps: int = 60) -> list[dict[str, float]]:
    """Return, for each step of the optimiser, its number of passes, the weights, and the tasks' mean losses."""
    torch.manual_seed(0)
    net = Net()
    balancer = GradNorm(net.fork, wrt=net.trunk[-1], tasks=["depth", "normal"], accumulate=ACCUMULATE)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    balancer.follow(optimizer)

    history: list[dict[str, float]] = []
    while len(history) < steps:  # epochs
        found: dict[str, list[float]] = {"depth": [], "normal": []}
        for index in range(BATCHES):
            losses = losses_of(net, index)
            passes = min(ACCUMULATE, BATCHES - index // ACCUMULATE * ACCUMULATE)  # of this window
            (balancer(losses) / passes).backward()  # their gradients add up to their mean
            for task, loss in losses.items():
                found[task].append(loss.item())
            if (index + 1) % ACCUMULATE and index + 1 < BATCHES:
                continue
            optimizer.step()  # ends the window: the balancer learns here
            optimizer.zero_grad()
            shown = {name: value for name, value in balancer.scalars().items() if name.startswith("weight/")}
            means = {f"loss/{task}": sum(each) / len(each) for task, each in found.items() if each}
            history.append({"passes": len(found["depth"])} | shown | means)
            found = {"depth": [], "normal": []}
            if len(history) in (1, 5, 10, steps):
                print(f"step {len(history)}:", {name: round(value, 3) for name, value in history[-1].items()})
            if len(history) == steps:
                break
    passes = sum(int(step["passes"]) for step in history)
    print(f"{int(balancer.updates.max())} updates out of {passes} backward passes")
    return history


if __name__ == "__main__":
    main()
