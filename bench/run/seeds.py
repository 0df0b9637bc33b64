"""A run's random streams: one each for the data, the initial values, the batch order and the balancer.

They depend on the seed alone, never on the balancer, so that all balancers of a seed are given the same data, the same
initial values and the same batches, however much randomness one of them uses itself.
"""

from typing import Literal, get_args

import numpy as np
import torch

Stream = Literal["data", "initial values", "batches", "balancer"]
STREAMS: tuple[Stream, ...] = get_args(Stream)


def stream_seed(seed: int, stream: Stream) -> int:
    """The 64-bit seed of one stream of the run seed ``seed``; streams are independent of each other."""
    sequence = np.random.SeedSequence([seed, STREAMS.index(stream)])
    return int(sequence.generate_state(1, np.uint64)[0])


def generator(seed: int, stream: Stream) -> torch.Generator:
    """A new generator on the CPU at the beginning of a stream."""
    return torch.Generator().manual_seed(stream_seed(seed, stream))
