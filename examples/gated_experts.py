"""Train a multi-gate mixture of experts (MMoE), in which each task reads its own mixture of the same experts.

The experts are what the tasks share, so the fork stands behind them: it hands each task the outputs of all experts.
A task's gate and its tower are its head. `wrt=net.experts` measures the gradients of all of the experts' parameters:

    python examples/gated_experts.py
"""

import torch
from torch import Tensor, nn

from balancers import Fork, NashMTL

EXPERTS, WIDTH = 4, 16


class Head(nn.Module):
    """A gate, which sees the inputs and mixes the experts, and a tower, which sees the mixture."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.tower = nn.Linear(8, EXPERTS), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor, experts: list[Tensor]) -> Tensor:
        shares = self.gate(x).softmax(1)
        mixture = (shares.unsqueeze(2) * torch.stack(experts, 1)).sum(1)
        return self.tower(mixture).squeeze(1)


class GatedExperts(nn.Module):
    """Experts that all tasks share, and a head for each task."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, WIDTH), nn.ReLU()) for _ in range(EXPERTS)
        )
        self.fork = Fork(num_tasks)  # features may be nested: here, a list with a tensor for each expert
        self.heads = nn.ModuleList(Head() for _ in range(num_tasks))

    def forward(self, x: Tensor) -> list[Tensor]:
        aliases = self.fork([expert(x) for expert in self.experts])
        return [head(x, experts) for head, experts in zip(self.heads, aliases, strict=True)]


def main(steps: int = 100) -> list[dict[str, float]]:
    """Return what the balancer logs in each step."""
    torch.manual_seed(0)
    net = GatedExperts(num_tasks=2)
    balancer = NashMTL(net.fork, wrt=net.experts, tasks=["sine", "product"])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.003)
    history = []
    for step in range(steps):
        x = torch.randn(64, 8)
        sine, product = net(x)
        losses = {
            "sine": (sine - x[:, :4].sum(1).sin()).square().mean(),
            "product": (product - x[:, 0] * x[:, 1]).square().mean(),
        }
        optimizer.zero_grad()
        balancer(losses).backward()
        optimizer.step()
        history.append(balancer.scalars())
        if step in (0, steps - 1):
            weights = {name: round(value, 3) for name, value in history[-1].items() if name.startswith("weight/")}
            print(f"step {step}: {weights}")
    return history


if __name__ == "__main__":
    main()
