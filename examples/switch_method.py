"""Train one network with several methods, each made by its name, and compare the losses on held-out data.

`create` takes the fork for every method: one that reads losses takes its tasks from it and needs no `wrt`. The class's
`default_wrt` names the place that the method's paper measures. The loop stays the same. One seed and one learning rate
choose no method: for a problem of your own, `lossbench try` compares them:

    python examples/switch_method.py
    python examples/switch_method.py pcgrad dwa
"""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from balancers import Fork, LossBalancer, create, get

TASKS = ["sum", "kind", "product"]
KINDS = 5
METHODS = ("equal", "gradnorm", "uncertainty", "nash-mtl")
OPTIONS = {"uncertainty": {"likelihoods": ["gaussian", "softmax", "gaussian"]}}  # by method


class Net(nn.Module):
    """A trunk and three heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32))
        self.fork = Fork(num_tasks=len(TASKS))
        self.heads = nn.ModuleList([nn.Linear(32, 1), nn.Linear(32, KINDS), nn.Linear(32, 1)])

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        out = [head(z).squeeze(1) for head, z in zip(self.heads, self.fork(self.trunk(x).relu()), strict=True)]
        return {
            "sum": F.mse_loss(out[0], x.sum(1)) / 8,  # each divided by what a constant predictor scores
            "kind": F.cross_entropy(out[1], x[:, :KINDS].argmax(1)) / 1.61,
            "product": F.mse_loss(out[2], 3 * x[:, 0] * x[:, 1]) / 9,
        }


def make(method: str, net: Net) -> LossBalancer:
    """Return the method of that name for a network."""
    places = {"features": None, "layer": net.trunk[-1], "parameters": net.trunk}
    where = places[getattr(get(method), "default_wrt", "features")]
    return create(method, net.fork, wrt=where, tasks=TASKS, **OPTIONS.get(method, {}))


def train(method: str, steps: int) -> dict[str, float]:
    """Return the last weights and the held-out losses, of the same network and batches for every method."""
    torch.manual_seed(0)
    net, held_out = Net(), torch.randn(1000, 8)
    balancer = make(method, net)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.003)
    for _ in range(steps):
        optimizer.zero_grad()
        balancer(net.losses(torch.randn(32, 8))).backward()
        optimizer.step()
    weights = {f"weight/{task}": weight for task, weight in zip(TASKS, balancer.weights.tolist(), strict=True)}
    with torch.no_grad():
        return weights | {f"loss/{task}": loss.item() for task, loss in net.losses(held_out).items()}


def main(steps: int = 300, methods: Sequence[str] = METHODS) -> dict[str, dict[str, float]]:
    """Return the last weights and the held-out losses of each method."""
    found = {}
    for method in methods:
        found[method] = train(method, steps)
        if len(found) == 1:
            print(f"{'method':<12}", *(f"{name:>14}" for name in found[method]))
        print(f"{method:<12}", *(f"{value:14.3f}" for value in found[method].values()))
    return found


if __name__ == "__main__":
    main(methods=sys.argv[1:] or METHODS)
