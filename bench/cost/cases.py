"""Make the cases that costs are measured on: the regression problem of any size, and other networks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

import tasks
from bench.run.seeds import generator

from . import networks as realistic
from .layer_networks import LAYER_NETWORKS
from .subject import MakeStep, of_problem, on_device

Heads = Literal["separate", "batched"]
HEADS: tuple[Heads, ...] = ("separate", "batched")
SEED = 1


@dataclass(frozen=True)
class Case:
    """A model and one batch.

    Attributes:
        problem: name in tables and figures.
        heads: kind of heads.
        batch: number of samples in the batch.
        num_tasks: T.
        make_step: makes the model and the batch, see `subject`.
    """

    problem: str
    heads: Heads
    batch: int
    num_tasks: int
    make_step: MakeStep

    @property
    def about(self) -> dict[str, str | int]:
        """Return the columns that identify the case in a table."""
        return {"problem": self.problem, "heads": self.heads, "batch": self.batch, "tasks": self.num_tasks}

    def beside(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return ``rows`` with the columns that identify the case before the others."""
        return pd.concat([pd.DataFrame([self.about] * len(rows)), rows], axis=1)


def regression(num_tasks: int, batch: int, device: torch.device) -> Iterator[Case]:
    """Yield the regression problem on one batch, once for each kind of heads."""
    for heads in HEADS:
        _, make_step = regression_step(num_tasks, batch, heads, device)
        yield Case(f"regression T={num_tasks}", heads, batch, num_tasks, make_step)


def regression_step(
    num_tasks: int, batch: int, heads: Heads, device: torch.device
) -> tuple[tasks.Problem[Any], MakeStep]:
    """Return the regression problem, and what makes its subject on one batch; sigmas are geometric from 1 to 100."""
    sigmas = np.geomspace(1, 100, num_tasks).tolist()
    problem = tasks.create("regression", sigmas=sigmas, heads=heads, train_samples=batch)
    batches = problem.batches(problem.data(generator(SEED, "data"), device), generator(SEED, "batches"), batch)
    return problem, of_problem(problem, [next(batches)], device)


def networks(device: torch.device) -> Iterator[Case]:
    """Yield two networks of realistic size."""
    yield Case("ResNet-18", "separate", realistic.IMAGES, 2, on_device(realistic.dense, device))
    yield Case("transformer", "separate", realistic.SEQUENCES, 4, on_device(realistic.sequences, device))


def layer_networks(device: torch.device) -> Iterator[Case]:
    """Yield networks with a wide last layer, and one with many narrow heads."""
    for name, (make, batch, num_tasks) in LAYER_NETWORKS.items():
        yield Case(name, "separate", batch, num_tasks, on_device(make, device))
