"""Train on two processes with DistributedDataParallel; rank 0 saves, and both ranks resume.

Each rank has samples of its own. The balancer's weights are those of the global batch, and equal on both ranks. On
GPUs, the group is "nccl", and network and samples go to the rank's device, where `torch.load` puts the checkpoint with
`map_location`. The second command goes on where the first one ended:

    torchrun --nproc-per-node 2 examples/data_parallel.py --steps 20 --checkpoint twenty.pt
    torchrun --nproc-per-node 2 examples/data_parallel.py --steps 40 --resume twenty.pt
"""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from balancers import Fork, GradNorm


class Net(nn.Module):
    """A trunk and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32))
        self.fork = Fork(num_tasks=2)
        self.heads = nn.ModuleList([nn.Linear(32, 1), nn.Linear(32, 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        return [head(z).squeeze(1) for head, z in zip(self.heads, self.fork(self.trunk(x).relu()), strict=True)]


def main(steps: int = 20, checkpoint: Path | None = None, resume: Path | None = None) -> list[float]:
    """Train up to step number ``steps`` on this rank, and return the last weights."""
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    net = Net()
    model = DistributedDataParallel(net)
    balancer = GradNorm(net.fork, wrt=net.trunk[-1], tasks=["sine", "product"])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    parts = {"net": net, "balancer": balancer, "optimizer": optimizer}
    begin = 0
    if resume is not None:
        saved = torch.load(resume, weights_only=True)
        begin = saved["steps"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])

    for step in range(begin, steps):
        x = torch.randn(32, 4, generator=torch.Generator().manual_seed(ranks * step + rank))  # this rank's samples
        sine, product = model(x)
        losses = {
            "sine": (sine - x.sum(1).sin()).square().mean(),
            "product": (product - x[:, 0] * x[:, 1]).square().mean(),
        }
        optimizer.zero_grad()
        balancer(losses).backward()
        optimizer.step()
        if step in (begin, steps - 1):
            print(f"rank {rank}, step {step}: weights {balancer.weights.tolist()}")

    if checkpoint is not None and rank == 0:
        torch.save({name: part.state_dict() for name, part in parts.items()} | {"steps": steps}, checkpoint)
    dist.destroy_process_group()
    return balancer.weights.tolist()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="train up to this step")
    parser.add_argument("--checkpoint", type=Path, help="file to save to at the end")
    parser.add_argument("--resume", type=Path, help="file to resume from")
    main(**vars(parser.parse_args()))
