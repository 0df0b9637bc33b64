"""Train two tasks in mixed precision: in float16 with a GradScaler on a GPU, and in bfloat16 without one on a CPU.

The forward pass runs under autocast. The losses are float32, and so is the balancer's state. The balancer divides the
scaler's scale out of what it measures. In a step whose gradients overflow, the scaler skips the optimiser's step. The
balancer follows the optimiser, so it learns nothing in such a step and its weights stay as they were. Without `follow`
it would learn from a skipped step if the overflow is where it does not measure, such as in the first layer here:

    python examples/mixed_precision.py
    python examples/mixed_precision.py float16
"""

import sys

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional as F

from balancers import Fork, GradNorm

KINDS = 5


class Net(nn.Module):
    """A trunk and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32))
        self.fork = Fork(num_tasks=2)
        self.price, self.kind = nn.Linear(32, 1), nn.Linear(32, KINDS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for_price, for_kind = self.fork(self.trunk(x).relu())
        return self.price(for_price).squeeze(1).float(), self.kind(for_kind).float()  # losses are then float32


def main(steps: int = 150, dtype: torch.dtype | None = None) -> list[dict[str, float]]:
    """Return what the balancer logs in each step, the scaler's scale, and whether the scaler skipped the step."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = dtype or (torch.float16 if device == "cuda" else torch.bfloat16)
    torch.manual_seed(0)
    net = Net().to(device)
    balancer = GradNorm(net.fork, wrt=net.trunk[-1], tasks=["price", "kind"])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.003)
    balancer.follow(optimizer)
    # The first scale is so large that you see skipped steps. bfloat16 has float32's range, and needs no scale.
    scaler = GradScaler(device, init_scale=2.0**22, enabled=dtype == torch.float16)
    print(f"{dtype} on {device},", "with a scaler" if scaler.is_enabled() else "without a scaler")

    history = []
    for step in range(steps):
        x = torch.randn(64, 16, device=device)
        optimizer.zero_grad()
        with torch.autocast(device, dtype):
            price_out, kind_out = net(x)
            losses = {
                "price": F.mse_loss(price_out, 2 * x[:, 0]) / 4,
                "kind": F.cross_entropy(kind_out, x[:, :KINDS].argmax(1)) / 1.6,
            }
            loss = balancer(losses)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)  # before clipping, which needs the gradients without the scale
        nn.utils.clip_grad_norm_(net.parameters(), max_norm=1.0)
        scale = scaler.get_scale()
        scaler.step(optimizer)  # if gradients overflowed, neither the optimiser nor the balancer makes its step
        scaler.update()
        skipped = scaler.get_scale() < scale
        history.append(balancer.scalars() | {"scale": scale, "skipped": float(skipped)})
        if skipped or step in (10, steps - 1):
            weights = {task: round(history[-1][f"weight/{task}"], 4) for task in losses}
            print(f"step {step}: scale {scale:.0f}, {'skipped, ' if skipped else ''}weights {weights}")
    return history


if __name__ == "__main__":
    main(dtype=getattr(torch, sys.argv[1]) if sys.argv[1:] else None)
