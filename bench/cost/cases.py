"""What costs are measured on: the regression problem, at any number of tasks and batch size, and two networks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

import tasks
from bench.run.seeds import generator

from . import networks as of_size
from .subject import MakeStep, of_problem, on_device

Heads = Literal["separate", "batched"]
HEADS: tuple[Heads, ...] = ("separate", "batched")
SEED = 1


@dataclass(frozen=True)
class Case:
    """A model and a batch of ``batch`` samples, in `make_step`'s form; ``problem`` is its name."""

    problem: str
    heads: Heads
    batch: int
    num_tasks: int
    make_step: MakeStep

    @property
    def about(self) -> dict[str, str | int]:
        """What a table says of it."""
        return {"problem": self.problem, "heads": self.heads, "batch": self.batch, "tasks": self.num_tasks}


def regression(num_tasks: int, batch: int, device: torch.device) -> Iterator[Case]:
    """The regression problem on one batch, with each kind of heads; sigmas go from 1 to 100 in even ratios."""
    sigmas = np.geomspace(1, 100, num_tasks).tolist()
    for heads in HEADS:
        problem = tasks.create("regression", sigmas=sigmas, heads=heads, train_samples=batch)
        batches = problem.batches(problem.data(generator(SEED, "data"), device), generator(SEED, "batches"), batch)
        make_step = of_problem(problem, [next(batches)], device)
        yield Case(f"regression T={num_tasks}", heads, batch, num_tasks, make_step)


def networks(device: torch.device) -> Iterator[Case]:
    """Two networks of realistic size."""
    yield Case("ResNet-18", "separate", of_size.IMAGES, 2, on_device(of_size.dense, device))
    yield Case("transformer", "separate", of_size.SEQUENCES, 4, on_device(of_size.sequences, device))
