"""Train two tasks with Lightning's manual optimisation, in which the module itself calls backward and steps.

The balancer follows the optimiser that `self.optimizers()` returns, so that a window of passes ends where the module
steps. Its numbers are known as soon as backward has run, and `self.log_dict` logs them in the same training step:

    python examples/lightning_manual.py
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

ACCUMULATE = 4  # batches to each step of the optimiser


class TwoTasksByHand(lightning.LightningModule):
    """A trunk, two heads, and the balancer of their losses."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.trunk = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32))
        self.fork = Fork(num_tasks=2)
        self.size, self.kind = nn.Linear(32, 1), nn.Linear(32, 5)
        self.balancer = GradNorm(self.fork, wrt=self.trunk[-1], tasks=["size", "kind"], accumulate=ACCUMULATE)

    def training_step(self, batch: list[Tensor], index: int) -> None:
        x, size, kind = batch
        for_size, for_kind = self.fork(self.trunk(x).relu())
        losses = {"size": F.mse_loss(self.size(for_size), size), "kind": F.cross_entropy(self.kind(for_kind), kind)}
        optimizer = self.optimizers()
        passes = min(ACCUMULATE, self.trainer.num_training_batches - index // ACCUMULATE * ACCUMULATE)  # of this window
        self.manual_backward(self.balancer(losses) / passes)
        if (index + 1) % ACCUMULATE == 0 or self.trainer.is_last_batch:
            optimizer.step()
            optimizer.zero_grad()
        self.log_dict(self.balancer.scalars())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        self.balancer.follow(optimizer)
        return optimizer


def fit(steps: int, epochs: int, logger: CSVLogger, checkpoint: Path | None = None) -> Path:
    """Train up to an epoch, anew or from a checkpoint; return the path of a checkpoint made there."""
    torch.manual_seed(0)
    x = torch.randn((ACCUMULATE * steps - 2) * 16, 16)  # the last step of an epoch has two batches only
    data = TensorDataset(x, x[:, :4].sum(1, keepdim=True), x[:, :5].argmax(1))
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(max_epochs=epochs, logger=logger, log_every_n_steps=1, **options)
    module = TwoTasksByHand()
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
