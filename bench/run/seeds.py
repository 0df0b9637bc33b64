"""Derive the five random streams of a run from its seed: data, initial values, batches, balancer, second batches.

What is drawn from one stream changes no other. All balancers of one seed therefore get the same data, initial values
and batches, however many random numbers a balancer draws itself. A balancer that looks at second batches trains on the
data that these leave, so its batches are others.
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
