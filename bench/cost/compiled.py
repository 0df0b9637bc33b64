"""Measure GradNorm against equal weighting under ``torch.compile``, both with trunk and heads compiled.

The last shared layer is compiled apart from the rest of the trunk, because a vector-Jacobian product through a compiled
part runs the whole backward pass of that part. Each head is compiled on its own too, because a balancer reads the fork
between trunk and heads. Heads that are one product are not compiled: the fork is inside them.
"""

from collections.abc import Iterator

import pandas as pd
import torch
from torch import nn

from tasks.regression import Network, SeparateNetwork

from .cases import Case, regression
from .step_comparison import WARM_UP, start, times, warm_up
from .subject import MakeStep, Subject
from .timed_methods import AGAIN, EQUAL, LAYER

METHODS = (EQUAL, AGAIN, LAYER)
TASKS, BATCH = (2, 10), 100
ROUNDS, QUICK = 200, 10


def measure(device: torch.device, quick: bool) -> Iterator[pd.DataFrame]:
    """Yield the times of one case after the other; with ``quick``, of the smallest number of tasks only."""
    for num_tasks in TASKS[:1] if quick else TASKS:
        for case in regression(num_tasks, BATCH, device):
            yield rows(case, QUICK if quick else ROUNDS)


def rows(case: Case, rounds: int) -> pd.DataFrame:
    """Return the times of one case, compiled."""
    trainings = start(compiled(case.make_step), METHODS, case.num_tasks)
    warm_up(trainings, WARM_UP)
    measured = times(trainings, METHODS, rounds)
    return case.beside(measured)


def compiled(make_step: MakeStep) -> MakeStep:
    """Return a function that makes the same subjects of the regression problem, their models compiled part by part."""

    def made() -> Subject:
        subject = Subject(*make_step())
        model = subject.model
        assert isinstance(model, Network | SeparateNetwork)
        before, last = model.trunk[:-2], model.trunk[-2:]  # the last linear layer, and its ReLU
        before.compile()
        last.compile()
        model.trunk = nn.Sequential(before, last)
        if isinstance(model, SeparateNetwork):
            for head in model.heads:
                head.compile()
        return subject

    return made
