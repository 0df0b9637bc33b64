"""Derive a run's random streams from its seed: data, initial values, batch order, balancer and second batches.

The streams do not depend on the balancer. All balancers of one seed therefore get the same data, the same initial
values and the same batches, however many random numbers a balancer draws itself.
"""

from typing import Literal, get_args

import numpy as np
import torch

Stream = Literal["data", "initial values", "batches", "balancer", "second batches"]
STREAMS: tuple[Stream, ...] = get_args(Stream)


def stream_seed(seed: int, stream: Stream) -> int:
    """Return the 64-bit seed of one stream of a run with seed ``seed``; the streams are independent of each other."""
    sequence = np.random.SeedSequence([seed, STREAMS.index(stream)])
    return int(sequence.generate_state(1, np.uint64)[0])


def generator(seed: int, stream: Stream) -> torch.Generator:
    """Return a new generator on the CPU, at the beginning of a stream."""
    return torch.Generator().manual_seed(stream_seed(seed, stream))
