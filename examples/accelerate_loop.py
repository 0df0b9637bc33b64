"""Train two tasks with Accelerate, which prepares the network, accumulates gradients and saves the state of all parts.

The balancer needs no preparation. It follows the optimiser, and `register_for_checkpointing` has its state saved too:

    python examples/accelerate_loop.py
"""

import tempfile

import torch
from accelerate import Accelerator, utils
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from balancers import Fork, GradNorm

ACCUMULATE = 4  # batches to each step of the optimiser


class Net(nn.Module):
    """A trunk and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32))
        self.fork = Fork(num_tasks=2)
        self.size, self.kind = nn.Linear(32, 1), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for_size, for_kind = self.fork(self.trunk(x).relu())
        return self.size(for_size), self.kind(for_kind)


class Training:
    """All that a training run consists of."""

    def __init__(self, steps: int) -> None:
        torch.manual_seed(0)
        x = torch.randn((ACCUMULATE * steps - 2) * 16, 16)  # the last step of an epoch has two batches only
        data = TensorDataset(x, x[:, :4].sum(1, keepdim=True), x[:, :5].argmax(1))
        net = Net()  # the balancer is made for the network itself, which prepare() may wrap
        self.balancer = GradNorm(net.fork, wrt=net.trunk[-1], tasks=["size", "kind"], accumulate=ACCUMULATE)
        self.accelerator = Accelerator(gradient_accumulation_steps=ACCUMULATE)
        self.net, self.optimizer, self.loader = self.accelerator.prepare(
            net, torch.optim.Adam(net.parameters(), lr=0.01), DataLoader(data, batch_size=16)
        )
        self.balancer.follow(self.optimizer)
        self.accelerator.register_for_checkpointing(self.balancer)

    def epoch(self) -> list[dict[str, float]]:
        """Train for an epoch; return what each step of the optimiser logs."""
        history = []
        for x, size, kind in self.loader:
            with self.accelerator.accumulate(self.net):
                size_out, kind_out = self.net(x)
                losses = {"size": F.mse_loss(size_out, size), "kind": F.cross_entropy(kind_out, kind)}
                self.accelerator.backward(self.balancer(losses))
                self.optimizer.step()
                self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                history.append(self.balancer.scalars())
        self.accelerator.print({name: round(value, 3) for name, value in history[-1].items()})
        return history


def main(steps: int = 20) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Return what two epochs log, of ``steps`` steps each, and what the second logs when it goes on from the first."""
    with tempfile.TemporaryDirectory() as own:
        [folder] = utils.broadcast_object_list([own])  # that of rank 0
        training, again = Training(steps), Training(steps)
        history = training.epoch()
        training.accelerator.save_state(folder)
        history += training.epoch()
        again.accelerator.load_state(folder)
        return history, again.epoch()


if __name__ == "__main__":
    main()
