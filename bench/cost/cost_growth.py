"""Measure how GradNorm's cost at the last shared layer, and its floor, grow with the tasks and with the batch."""

from collections.abc import Iterator
from itertools import chain

import pandas as pd
import torch

from .cases import regression
from .floor import LAYER_FLOOR
from .gradnorm_overhead import rows
from .timed_methods import EQUAL, LAYER

TASKS, AT_BATCH = (2, 5, 10, 20, 40, 100), 100
BATCHES, AT_TASKS = (10, 30, 100, 300, 1000, 3000), 10
ROUNDS, QUICK = 100, 10


def measure(device: torch.device, quick: bool) -> Iterator[pd.DataFrame]:
    """Yield GradNorm's row and its floor's for each case, as in the limits table; with ``quick``, for few cases."""
    sizes = [(num_tasks, AT_BATCH) for num_tasks in TASKS], [(AT_TASKS, batch) for batch in BATCHES]
    for num_tasks, batch in dict.fromkeys(chain.from_iterable(some[:2] if quick else some for some in sizes)):
        for case in regression(num_tasks, batch, device):
            yield rows(case, (EQUAL, LAYER, LAYER_FLOOR), QUICK if quick else ROUNDS).iloc[1:]
