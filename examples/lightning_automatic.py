"""Train two tasks with Lightning, which calls backward itself, accumulates gradients and resumes from a checkpoint.

The balancer is an attribute of the module, so that Lightning saves it. It follows the optimiser: each of its steps ends
a window of passes, also the short one at an epoch's end. The callback LogWeights writes the weights to the logger:

    python examples/lightning_automatic.py
"""

import csv
import tempfile
from pathlib import Path

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from balancers import Fork, GradNorm
from balancers.integrations.lightning import LogWeights

ACCUMULATE = 4  # batches to each step of the optimiser


class TwoTasks(lightning.LightningModule):
    """A trunk, two heads, and the balancer of their losses."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32))
        self.fork = Fork(num_tasks=2)
        self.size, self.kind = nn.Linear(32, 1), nn.Linear(32, 5)
        self.balancer = GradNorm(self.fork, wrt=self.trunk[-1], tasks=["size", "kind"], accumulate=ACCUMULATE)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        x, size, kind = batch
        for_size, for_kind = self.fork(self.trunk(x).relu())
        losses = {"size": F.mse_loss(self.size(for_size), size), "kind": F.cross_entropy(self.kind(for_kind), kind)}
        return self.balancer(losses)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)  # the network's: a balancer has no parameters
        self.balancer.follow(optimizer)
        return optimizer


def fit(steps: int, epochs: int, logger: CSVLogger, checkpoint: Path | None = None) -> Path:
    """Train up to an epoch, anew or from a checkpoint; return the path of a checkpoint made there."""
    torch.manual_seed(0)
    x = torch.randn((ACCUMULATE * steps - 2) * 16, 16)  # the last step of an epoch has two batches only
    data = TensorDataset(x, x[:, :4].sum(1, keepdim=True), x[:, :5].argmax(1))
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accumulate_grad_batches=ACCUMULATE,
        logger=logger,
        callbacks=[LogWeights()],
        log_every_n_steps=5,
        **options,
    )
    module = TwoTasks()
    trainer.fit(module, DataLoader(data, batch_size=16), ckpt_path=checkpoint)
    trainer.save_checkpoint(Path(logger.log_dir, "module.ckpt"))
    print(f"after {trainer.global_step} steps the weights are", module.balancer.weights.tolist())
    return Path(logger.log_dir, "module.ckpt")


def main(steps: int = 20) -> list[list[dict[str, str]]]:
    """Return the rows logged in two epochs, in the first alone, and in the second resumed from it."""
    with tempfile.TemporaryDirectory() as folder:
        whole, first, second = (CSVLogger(folder, name=name) for name in ("whole", "first", "second"))
        fit(steps, 2, whole)
        fit(steps, 2, second, checkpoint=fit(steps, 1, first))
        files = (Path(logger.log_dir, "metrics.csv") for logger in (whole, first, second))
        return [list(csv.DictReader(file.read_text().splitlines())) for file in files]


if __name__ == "__main__":
    main()
