"""Log weights, losses and gradient norms to a CSV file, and to TensorBoard if it is installed; read the file back.

`balancer.scalars()` is a dict of numbers by names such as `weight/depth`. It waits for the device, so call it seldom:

    python examples/log_weights.py
    tensorboard --logdir runs
"""

import csv
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from balancers import Fork, GradNorm

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError:  # TensorBoard is a package of its own: pip install tensorboard
    SummaryWriter = None

TASKS = ["depth", "normal", "edge"]
COLUMNS = [f"{kind}/{task}" for kind in ("weight", "loss", "gradient_norm") for task in TASKS]  # of scalars()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 32))
        self.fork = Fork(num_tasks=3)
        self.heads = nn.ModuleList([nn.Linear(32, 1), nn.Linear(32, 3), nn.Linear(32, 1)])

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        depth, normal, edge = (head(z) for head, z in zip(self.heads, self.fork(self.trunk(x).relu()), strict=True))
        return {
            "depth": F.mse_loss(depth[:, 0], x.norm(dim=1) - 2.7) / 0.5,
            "normal": F.mse_loss(normal, F.normalize(x[:, :3])) / 0.33,
            "edge": F.binary_cross_entropy_with_logits(edge[:, 0], (x[:, 0] * x[:, 1] > 0).float()) / 0.69,
        }


def train(steps: int, folder: Path) -> Path:
    torch.manual_seed(0)
    net = Net()
    balancer = GradNorm(net.fork, wrt=net.trunk[-1], tasks=TASKS, alpha=0.5)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.003)
    folder.mkdir(parents=True, exist_ok=True)
    path, board = folder / "balancer.csv", SummaryWriter(str(folder)) if SummaryWriter else None
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["step", *COLUMNS], restval="", extrasaction="ignore")
        table.writeheader()
        for step in range(steps):
            optimizer.zero_grad()
            balancer(net.losses(torch.randn(64, 8))).backward()
            optimizer.step()
            if step % 10 == 0:
                scalars = balancer.scalars()  # the weights that this step used, and what it measured
                table.writerow({"step": step} | scalars)
                for name, value in scalars.items() if board else ():
                    board.add_scalar(f"balancer/{name}", value, step)
        if board:
            board.close()
    return path


def main(steps: int = 200, folder: Path = Path("runs")) -> list[dict[str, float]]:
    """Return the rows that the CSV file has."""
    path = train(steps, folder)
    table = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    rows = [{name: float(value or "nan") for name, value in row.items()} for row in table]  # blank: not measured
    print(path, "and TensorBoard's files beside it" if SummaryWriter else "alone, as TensorBoard is not installed")
    print("step", *(f"{name:>13}" for name in COLUMNS[:6]))
    for row in rows[:: max(1, len(rows) // 5)]:
        print(f"{row['step']:4.0f}", *(f"{row[name]:13.3f}" for name in COLUMNS[:6]))
    return rows


if __name__ == "__main__":
    main()
