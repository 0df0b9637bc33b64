"""Capture the whole training step in a CUDA graph, the balancer included; replaying it launches no single kernels.

`CapturedStep` runs the first steps as they are, captures one, and replays it from then on. Every step must do the same
work: one shape of batches, an optimiser with `capturable=True`, no option that makes some steps different (`accumulate`
or `update_every` above 1, `check_finite`), and no method that draws random numbers. This program was not run on a GPU
by us: only its loop was, on a CPU, where `CapturedStep` calls the step as it is. Without a GPU it says so and ends:

    python examples/cuda_graph.py
"""

import time

import torch
from torch import Tensor, nn

from balancers import CapturedStep, Fork, GradNorm


class Net(nn.Module):
    """A trunk and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 32))
        self.fork = Fork(num_tasks=2)
        self.heads = nn.ModuleList([nn.Linear(32, 1), nn.Linear(32, 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        return [head(z).squeeze(1) for head, z in zip(self.heads, self.fork(self.trunk(x).relu()), strict=True)]


def train(steps: int, device: str, capture: bool) -> list[dict[str, float]]:
    """Return what the balancer logs in every tenth step."""
    torch.manual_seed(0)
    net = Net().to(device)
    balancer = GradNorm(net.fork, wrt=net.trunk[-1], tasks=["sine", "product"]).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, capturable=device == "cuda")

    def step(x: Tensor, sines: Tensor, products: Tensor) -> Tensor:
        sine, product = net(x)
        losses = {"sine": (sine - sines).square().mean(), "product": (product - products).square().mean()}
        optimizer.zero_grad()
        loss = balancer(losses)
        loss.backward()
        optimizer.step()
        return loss.detach()  # in memory that the next step overwrites

    run = CapturedStep(step, [balancer]) if capture else step
    history, begin = [], time.perf_counter()
    for number in range(steps):
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(number)).to(device)
        loss = run(x, x.sum(1).sin(), x[:, 0] * x[:, 1])
        if number % 10 == 9:  # reading a number waits for the device, so do it seldom
            history.append(balancer.scalars() | {"total": float(loss)})
    milliseconds = 1000 * (time.perf_counter() - begin) / steps
    shown = {name: round(value, 4) for name, value in history[-1].items() if name.startswith(("weight/", "loss/"))}
    print(f"{'captured' if capture else 'as it is':>8}: {milliseconds:.2f} ms a step; {shown}")
    return history


def main(steps: int = 500) -> list[list[dict[str, float]]]:
    """Return what is logged without a graph and with one; nothing where there is no CUDA."""
    if not torch.cuda.is_available():
        print("This program needs a GPU with CUDA, and PyTorch finds none here, so it ends.")
        return []
    return [train(steps, "cuda", capture=False), train(steps, "cuda", capture=True)]


if __name__ == "__main__":
    main()
