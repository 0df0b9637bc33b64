"""Train two tasks with sharpness-aware minimisation (SAM: Foret et al., ICLR 2021), two gradients in each step.

The first gradient says where, at a distance rho, the loss is largest; the step then descends along the gradient there.
Within `balancer.held()` both are gradients of one function, with the same weights. The balancer learns from the first,
and the next step has the new weights. Without this block it would learn twice a step, once from the perturbed network:

    python examples/sharpness_aware.py
"""

import torch
from torch import Tensor, nn

from balancers import Fork, GradNorm


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh())
        self.fork = Fork(num_tasks=2)
        self.heads = nn.ModuleList([nn.Linear(32, 1), nn.Linear(32, 1)])

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        sine, product = (head(z).squeeze(1) for head, z in zip(self.heads, self.fork(self.trunk(x)), strict=True))
        return {
            "sine": (sine - x.sum(1).sin()).square().mean(),
            "product": (product - x[:, 0] * x[:, 1]).square().mean(),
        }


def evaluate(net: Net, balancer: GradNorm, x: Tensor) -> dict[str, float]:
    """Put the gradient of the weighted losses into the parameters; return losses and weights."""
    losses = net.losses(x)
    net.zero_grad()
    balancer(losses).backward()
    weights = zip(losses, balancer.weights.tolist(), strict=True)
    return {f"loss/{task}": loss.item() for task, loss in losses.items()} | {f"weight/{t}": w for t, w in weights}


@torch.no_grad()
def climb(net: nn.Module, rho: float) -> list[Tensor]:
    """Move the parameters by ``rho`` along their gradient, and return what they were."""
    scale = rho / (torch.nn.utils.get_total_norm(p.grad for p in net.parameters()) + 1e-12)
    before = [p.clone() for p in net.parameters()]
    for p in net.parameters():
        p += scale * p.grad
    return before


def main(steps: int = 300, rho: float = 0.1) -> tuple[list[list[dict[str, float]]], float]:
    """Return both evaluations of each step, and how far, in the end, the losses' sum rises at a distance of 0.1."""
    torch.manual_seed(0)
    net, data = Net(), torch.randn(64, 4)
    balancer = GradNorm(net.fork, wrt=net.trunk[2], tasks=["sine", "product"], alpha=0.12)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.005)
    history = []
    for _ in range(steps):
        x = data[torch.randperm(len(data))[:16]]
        with balancer.held():
            first = evaluate(net, balancer, x)  # the balancer learns from this one
            before = climb(net, rho)
            second = evaluate(net, balancer, x)  # the optimiser gets the gradient of this one
        with torch.no_grad():
            for p, value in zip(net.parameters(), before, strict=True):
                p.copy_(value)
        optimizer.step()
        history.append([first, second])
    net.zero_grad()
    total = sum(net.losses(data).values())
    total.backward()
    climb(net, 0.1)
    rise = sum(net.losses(data).values()).item() - total.item()
    weights = [round(weight, 3) for weight in balancer.weights.tolist()]
    print(f"rho {rho}: weights {weights}, losses' sum {total.item():.4f}, its rise at a distance of 0.1 {rise:.4f}")
    return history, rise


if __name__ == "__main__":
    main(rho=0.0)  # plain training
    main()
