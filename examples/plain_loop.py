"""Train a network on two tasks with GradNorm in a loop of your own, and go on from a checkpoint.

Each loss is first divided by what a constant predictor scores on its task, which brings them to one scale. GradNorm
then learns the weights in the one backward pass that trains the network. Its state is saved beside the network's:

    python examples/plain_loop.py
"""

import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from balancers import Fork, GradNorm

PRICE_VARIANCE = 5.0**2  # of the training targets: the mean squared error of a constant predictor
KINDS = 5  # log(KINDS) is the cross-entropy of a constant predictor, where all kinds are equally frequent
Parts = tuple["Net", GradNorm, torch.optim.Optimizer]


class Net(nn.Module):
    """A trunk and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32))
        self.fork = Fork(num_tasks=2)  # hands each head its own alias of the features
        self.price, self.kind = nn.Linear(32, 1), nn.Linear(32, KINDS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for_price, for_kind = self.fork(self.trunk(x).relu())
        return self.price(for_price).squeeze(1), self.kind(for_kind)


def make() -> Parts:
    torch.manual_seed(0)
    net = Net()
    balancer = GradNorm(net.fork, wrt=net.trunk[-1], tasks=["price", "kind"], alpha=0.12)
    return net, balancer, torch.optim.Adam(net.parameters(), lr=0.003)  # a balancer trains its own weights


def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(step))
    return x, 5 * x[:, 0], x[:, :KINDS].argmax(1)


def train(net: Net, balancer: GradNorm, optimizer: torch.optim.Optimizer, steps: range) -> list[dict]:
    history = []
    for step in steps:
        x, price, kind = batch(step)
        price_out, kind_out = net(x)
        losses = {
            "price": F.mse_loss(price_out, price) / PRICE_VARIANCE,
            "kind": F.cross_entropy(kind_out, kind) / math.log(KINDS),
        }
        optimizer.zero_grad()
        balancer(losses).backward()  # it was sum(losses.values())
        optimizer.step()
        history.append(balancer.scalars())  # waits for the device: on a GPU, log every so many steps
    print(f"step {steps[-1]}:", {name: round(value, 3) for name, value in history[-1].items()})
    return history


def main(steps: int = 200) -> tuple[list[dict], list[dict]]:
    """Return what each step logs, and what the second half of the steps logs when it goes on from a checkpoint."""
    parts, again = make(), make()
    with tempfile.TemporaryDirectory() as folder:
        history = train(*parts, range(steps // 2))
        torch.save([part.state_dict() for part in parts], Path(folder, "checkpoint.pt"))
        history += train(*parts, range(steps // 2, steps))
        for part, state in zip(again, torch.load(Path(folder, "checkpoint.pt"), weights_only=True), strict=True):
            part.load_state_dict(state)
    return history, train(*again, range(steps // 2, steps))


if __name__ == "__main__":
    main()
