"""The job of `test_distributed`: one case, trained under DistributedDataParallel."""

from contextlib import nullcontext

import torch
import torch.distributed as dist
from integration import TASKS, Net, flat_gradients, losses_of, sgd, state_of
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from balancers import LossBalancer, create


class WithLosses(nn.Module):
    """A model that returns its losses."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        return losses_of(self.net(x), y)


class Balanced(nn.Module):
    """Network and balancer in one module, as Lightning has them."""

    def __init__(self, net: Net, balancer: LossBalancer) -> None:
        super().__init__()
        self.net = net
        self.balancer = balancer

    def forward(self, x: Tensor, y: Tensor, omit: bool) -> Tensor:
        losses = dict(zip(TASKS, losses_of(self.net(x), y), strict=True))
        if omit:
            del losses[TASKS[1]]
        return self.balancer(losses)


def spoil(losses: list[Tensor], how: str) -> None:
    """Make one loss, or its gradient alone, NaN."""
    if how == "loss":
        losses[1] = losses[1] * float("nan")
    else:  # a finite loss whose gradient is not
        losses[1] = losses[1] + (0.0 * losses[1]).sqrt()


def run(case: dict, rank: int, world_size: int) -> dict:
    """Return what `train` does, or the message of the error if the balancer refuses a step."""
    try:
        return train(case, rank)
    except FloatingPointError as error:
        return {"refused": str(error)}


def train(case: dict, rank: int) -> dict:
    """Return the weights, the network's gradients and the balancer's state of each step."""
    net = Net(case["layer"], seed=0 if rank == 0 else 100)  # DDP hands out rank 0's initial values
    k = case["accumulate"]
    where = net.wrt(case["wrt"]) if case["method"] == "gradnorm" else {"tasks": len(TASKS)}
    balancer = create(case["method"], **where, accumulate=k, check_finite=case.get("check_finite", False))
    inside = case.get("inside")
    module = {None: net, "losses": WithLosses(net), "balancer": Balanced(net, balancer)}[inside]
    ddp = DistributedDataParallel(module, **case.get("ddp", {}))
    optimizer = sgd(net)
    record: dict[str, list] = {"weights": [], "gradients": [], "states": [state_of(balancer)]}
    for step, window in enumerate(case["windows"]):
        optimizer.zero_grad()
        share = len(window) // dist.get_world_size()
        mine = window[rank * share : (rank + 1) * share]
        bad = case.get("bad") if step == case.get("bad_step") else None
        for i, ((x, y), seed) in enumerate(mine):
            torch.manual_seed(seed)
            with ddp.no_sync() if i < share - 1 else nullcontext():
                if inside == "balancer":
                    loss = ddp(x, y, rank in case.get("omit", {}).get(step, ()))
                else:
                    losses = ddp(x, y) if inside == "losses" else losses_of(ddp(x), y)
                    if bad and rank == 1 and i == 0:
                        spoil(losses, bad)
                    loss = balancer(losses)
                (loss / share).backward()
        if share < k:
            balancer.close_window()
        record["states"].append(state_of(balancer))
        record["weights"].append(balancer.weights.clone())
        record["gradients"].append(flat_gradients(net))
        if not bad:
            optimizer.step()
    return record
