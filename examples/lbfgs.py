"""Train two tasks with L-BFGS, whose closure computes the losses several times in each of its steps.

Within `balancer.held()` all evaluations of a step have the same weights, so that the line search compares values of
one function. The balancer learns from the first evaluation, and the next step has the new weights:

    python examples/lbfgs.py
"""

import torch
from torch import Tensor, nn

from balancers import Fork, NashMTL


class Net(nn.Module):
    """A trunk and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 16), nn.Tanh())
        self.fork = Fork(num_tasks=2)
        self.heads = nn.ModuleList([nn.Linear(16, 1), nn.Linear(16, 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        return [head(z).squeeze(1) for head, z in zip(self.heads, self.fork(self.trunk(x)), strict=True)]


def main(steps: int = 10) -> list[list[dict[str, float]]]:
    """Return the losses and weights of each evaluation, step by step."""
    torch.manual_seed(0)
    x = torch.randn(128, 4)
    sine, product = x.sum(1).sin(), x[:, 0] * x[:, 1]

    net = Net()
    balancer = NashMTL(net.fork, wrt=net.trunk, tasks=["sine", "product"])
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=8, line_search_fn="strong_wolfe")
    history: list[list[dict[str, float]]] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        sine_out, product_out = net(x)
        losses = {"sine": (sine_out - sine).square().mean(), "product": (product_out - product).square().mean()}
        loss = balancer(losses)
        loss.backward()
        weights = dict(zip(losses, balancer.weights.tolist(), strict=True))
        history[-1].append(
            {f"loss/{task}": value.item() for task, value in losses.items()}
            | {f"weight/{task}": weight for task, weight in weights.items()}
            | {"total": loss.item()}
        )
        return loss

    for step in range(steps):
        history.append([])
        with balancer.held():
            optimizer.step(closure)
        if step in (0, 1, steps - 1):
            first = {name: round(value, 4) for name, value in history[-1][0].items()}
            print(f"step {step}, {len(history[-1])} evaluations, the first: {first}")
    return history


if __name__ == "__main__":
    main()
