"""One rank of `test_combining_distributed`: a few steps of several methods under DistributedDataParallel.

python worker_combining.py RANK WORLD_SIZE FOLDER
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from balancers import Fork, GradientBalancer, LossBalancer, get

CASES = [
    ("nash-mtl", "features"),
    ("nash-mtl", "layer"),
    ("nash-mtl", "parameters"),
    ("upgrad", "layer"),
    ("gradvac", "parameters"),
    ("imtl-g", "features"),
    ("gls", ""),
    ("dwa", ""),
    ("random", ""),
]
"""Methods, and where they measure."""
STEPS, SAMPLES = 3, 8


class Net(nn.Module):
    """A linear trunk and three heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
        self.fork = Fork(3)
        self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(3))
        self.double()

    def forward(self, x: Tensor) -> list[Tensor]:
        return [head(z) for head, z in zip(self.heads, self.fork(self.trunk(x)), strict=True)]


def train(name: str, wrt: str, rank: int, world_size: int) -> dict[str, list[Tensor]]:
    """Weights and the network's gradient of each step; with one rank, of the whole batch."""
    net = Net()
    cls = get(name)
    balancer: LossBalancer
    if not issubclass(cls, GradientBalancer):
        balancer = cls(3)
    elif wrt == "parameters":
        balancer = cls(None, wrt=net.trunk.parameters(), tasks=3)
    else:
        balancer = cls(net.fork, wrt=net.trunk[2] if wrt == "layer" else None)
    model = DistributedDataParallel(net) if world_size > 1 else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    record: dict[str, list[Tensor]] = {"weights": [], "gradients": []}
    for _ in range(STEPS):
        x = torch.randn(SAMPLES, 5, generator=generator, dtype=torch.float64)
        share = SAMPLES // world_size
        outputs = model(x[rank * share : (rank + 1) * share])
        optimizer.zero_grad()
        balancer([(i + 1) * (out - i).square().mean() for i, out in enumerate(outputs)]).backward()
        record["weights"].append(balancer.weights.clone())
        record["gradients"].append(torch.cat([parameter.grad.flatten() for parameter in net.parameters()]))
        optimizer.step()
    return record


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder / 'rendezvous'}"
    dist.init_process_group(
        "gloo", init_method=rendezvous, rank=rank, world_size=world_size, timeout=timedelta(seconds=30)
    )
    records = {f"{name}-{wrt}": train(name, wrt, rank, world_size) for name, wrt in CASES}
    torch.save(records, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
