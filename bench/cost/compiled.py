"""The ratio under ``torch.compile``: GradNorm and equal weighting, both with trunk and heads compiled.

The last shared layer is compiled apart from the rest of the trunk, as a vector-Jacobian product through a compiled part
runs all of that part's backward pass. So is each head, the fork between them being what a balancer reads. Heads that
are one product stay as they are: they hold the fork.
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

CONTENDERS = (EQUAL, AGAIN, LAYER)
TASKS, BATCH = (2, 10), 100
ROUNDS, QUICK = 200, 10


def measure(device: torch.device, quick: bool) -> Iterator[pd.DataFrame]:
    """The times of one case after the other; when ``quick``, of the first number of tasks alone."""
    for num_tasks in TASKS[:1] if quick else TASKS:
        for case in regression(num_tasks, BATCH, device):
            yield rows(case, QUICK if quick else ROUNDS)


def rows(case: Case, rounds: int) -> pd.DataFrame:
    """The times of a case, compiled."""
    trainings = start(compiled(case.make_step), CONTENDERS, case.num_tasks)
    warm_up(trainings, WARM_UP)
    measured = times(trainings, CONTENDERS, rounds)
    return pd.concat([pd.DataFrame([case.about] * len(measured)), measured], axis=1)


def compiled(make_step: MakeStep) -> MakeStep:
    """The same subjects of the regression problem, their models compiled part by part."""

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
