"""Train a model that FSDP2 (`fully_shard`) shards over two processes; all ranks save one checkpoint, and resume.

Make the balancer after the model is sharded, and give it a module as `wrt`. The network and its optimiser are saved in
shards, and the balancer, whose state is equal on all ranks, whole. The second command goes on where the first ended:

    torchrun --nproc-per-node 2 examples/fully_sharded.py --steps 20 --checkpoint twenty
    torchrun --nproc-per-node 2 examples/fully_sharded.py --steps 40 --resume twenty
"""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from balancers import Fork, GradNorm


class Net(nn.Module):
    """A trunk and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32))
        self.fork = Fork(num_tasks=2)
        self.heads = nn.ModuleList([nn.Linear(32, 1), nn.Linear(32, 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        return [head(z) for head, z in zip(self.heads, self.fork(self.trunk(x).relu()), strict=True)]


def main(steps: int = 20, checkpoint: Path | None = None, resume: Path | None = None) -> list[float]:
    """Train up to step number ``steps`` on this rank, and return the last weights."""
    dist.init_process_group("gloo")  # on GPUs: "nccl", a mesh of "cuda", and samples on the rank's device
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    rank = mesh.get_rank()
    torch.manual_seed(0)
    net = Net()
    for part in (net.trunk[0], net.trunk[2], net):
        fully_shard(part, mesh=mesh)
    balancer = GradNorm(net.fork, wrt=net.trunk[-1], tasks=["sine", "product"])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)

    def state(steps: int) -> dict:
        model, moments = get_state_dict(net, optimizer)
        return {"net": model, "optimizer": moments, "balancer": balancer.state_dict(), "steps": steps}

    begin = 0
    if resume is not None:
        saved = state(0)
        dcp.load(saved, checkpoint_id=resume)
        begin = saved["steps"]
        set_state_dict(net, optimizer, model_state_dict=saved["net"], optim_state_dict=saved["optimizer"])
        balancer.load_state_dict(saved["balancer"])

    for step in range(begin, steps):
        x = torch.randn(32, 4, generator=torch.Generator().manual_seed(mesh.size() * step + rank))  # its own
        targets = x.sum(1, keepdim=True).sin(), x[:, :1] * x[:, 1:2]
        losses = [nn.functional.mse_loss(output, target) for output, target in zip(net(x), targets, strict=True)]
        optimizer.zero_grad()
        balancer(losses).backward()
        optimizer.step()
        if step in (begin, steps - 1):
            print(f"rank {rank}, step {step}: weights {balancer.weights.tolist()}")
    if checkpoint is not None:
        dcp.save(state(steps), checkpoint_id=checkpoint)
    dist.destroy_process_group()
    return balancer.weights.tolist()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="train up to this step")
    parser.add_argument("--checkpoint", type=Path, help="folder to save to at the end")
    parser.add_argument("--resume", type=Path, help="folder to resume from")
    main(**vars(parser.parse_args()))
