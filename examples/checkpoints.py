"""Save a training with its balancer and go on in a new process, with the same weights to the bit.

A checkpoint has all that a step depends on: the learning rate's schedule and the data's random numbers too (dropout
would add `torch.get_rng_state()`). Save when no accumulation window is open, after a step. The first command compares a
training without a break with one that a second process ends. The second trains up to step 100, from and to a file:

    python examples/checkpoints.py
    python examples/checkpoints.py training.pt 100
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

from balancers import Fork, GradNorm


class Training:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.ModuleList([nn.Linear(4, 32), nn.Linear(32, 1), nn.Linear(32, 1)])
        self.fork, self.numbers = Fork(num_tasks=2), torch.Generator().manual_seed(1)
        self.balancer = GradNorm(self.fork, wrt=self.net[0], tasks=["sine", "product"], accumulate=2)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)
        self.balancer.follow(self.optimizer)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=30, gamma=0.5)
        self.parts = {name: getattr(self, name) for name in ("net", "balancer", "optimizer", "schedule")}

    def step(self) -> None:
        for _ in range(2):
            x = torch.randn(32, 4, generator=self.numbers)
            z1, z2 = self.fork(self.net[0](x).tanh())
            errors = self.net[1](z1)[:, 0] - x.sum(1).sin(), self.net[2](z2)[:, 0] - x[:, 0] * x[:, 1]
            (self.balancer([error.square().mean() for error in errors]) / 2).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()  # it also counts the steps

    def save(self, file: Path) -> None:
        state = {name: part.state_dict() for name, part in self.parts.items()}
        torch.save(state | {"numbers": self.numbers.get_state()}, file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)  # a process that dies while it saves leaves the old file as it is

    def load(self, file: Path) -> None:
        state = torch.load(file, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.numbers.set_state(state["numbers"])


def train(file: Path, steps: int) -> dict[str, dict]:
    """Train up to a step, from ``file`` if it is there, and save to it."""
    training = Training()
    if file.exists():
        training.load(file)
    for _ in range(training.schedule.last_epoch, steps):
        training.step()
    training.save(file)
    print(f"{file.name}, step {steps}: weights {training.balancer.weights.tolist()}", flush=True)
    return torch.load(file, weights_only=True)


def main(steps: int = 100) -> tuple[dict[str, dict], dict[str, dict]]:
    """Return the last checkpoint of a training without a break, and of one that went on in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = train(Path(folder, "whole.pt"), steps), Path(folder, "broken.pt")
        train(broken, steps // 2)
        subprocess.run([sys.executable, __file__, broken, str(steps)], check=True)
        resumed = torch.load(broken, weights_only=True)
    equal = all(whole["net"][name].equal(value) for name, value in resumed["net"].items())
    print("to the bit, the networks are", "equal" if equal else "different")
    return whole, resumed


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2])) if sys.argv[1:] else main()
