"""The job of `test_combining_distributed`: a few steps of one method under DistributedDataParallel."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from balancers import Fork, GradientBalancer, LossBalancer, get

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


def run(case: Mapping[str, str], rank: int, world_size: int) -> dict[str, list[Tensor]]:
    """Train with the method ``case["name"]`` that measures at ``case["wrt"]``.

    Returns:
        The weights and the network's gradient of each step. One rank alone trains on the whole batch.
    """
    name, wrt = case["name"], case["wrt"]
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
