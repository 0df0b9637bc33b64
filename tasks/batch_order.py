"""In what order training samples come."""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor


def epochs(
    num_samples: int, batch_size: int, generator: Generator, device: torch.device | str
) -> Iterator[tuple[Tensor, ...]]:
    """Epochs without end, each a tuple of batches: indices of shape ``(batch_size,)`` on ``device``.

    An epoch is one permutation, drawn from ``generator`` (on the CPU) and copied to the device at once; what is left
    after its last full batch is dropped.

    Raises:
        ValueError: ``batch_size`` is less than 1 or more than ``num_samples``.
    """
    if not 1 <= batch_size <= num_samples:
        raise ValueError(f"batch_size is {batch_size}; expected 1 to {num_samples}, the training samples")
    return _epochs(num_samples, batch_size, generator, device)


def _epochs(
    num_samples: int, batch_size: int, generator: Generator, device: torch.device | str
) -> Iterator[tuple[Tensor, ...]]:
    full = num_samples // batch_size * batch_size
    while True:
        yield torch.randperm(num_samples, generator=generator).to(device)[:full].split(batch_size)


def batches(num_samples: int, batch_size: int, generator: Generator, device: torch.device | str) -> Iterator[Tensor]:
    """The batches of `epochs`, one after another without end.

    Raises:
        ValueError: ``batch_size`` is less than 1 or more than ``num_samples``.
    """
    every = epochs(num_samples, batch_size, generator, device)
    return (batch for epoch in every for batch in epoch)
