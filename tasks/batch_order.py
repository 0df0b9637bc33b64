"""Random orders of training samples, as batches of indices."""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor


def epochs(
    num_samples: int, batch_size: int, generator: Generator, device: torch.device | str
) -> Iterator[tuple[Tensor, ...]]:
    """Return an endless iterator over epochs. An epoch is a tuple of batches.

    A batch holds the indices of its samples: shape ``(batch_size,)``, on ``device``. Each epoch is one permutation of
    all samples, drawn from ``generator`` on the CPU and copied to the device in one piece. Samples that do not fill a
    last batch are left out of that epoch.

    Raises:
        ValueError: If ``batch_size`` is less than 1 or more than ``num_samples``.
    """
    if not 1 <= batch_size <= num_samples:
        raise ValueError(f"batch_size is {batch_size}; expected 1 to {num_samples}, the number of training samples")
    return _epochs(num_samples, batch_size, generator, device)


def _epochs(
    num_samples: int, batch_size: int, generator: Generator, device: torch.device | str
) -> Iterator[tuple[Tensor, ...]]:
    full = num_samples // batch_size * batch_size
    while True:
        yield torch.randperm(num_samples, generator=generator).to(device)[:full].split(batch_size)


def batches(num_samples: int, batch_size: int, generator: Generator, device: torch.device | str) -> Iterator[Tensor]:
    """Return an endless iterator over the batches of `epochs`.

    Raises:
        ValueError: If ``batch_size`` is less than 1 or more than ``num_samples``.
    """
    every = epochs(num_samples, batch_size, generator, device)
    return (batch for epoch in every for batch in epoch)
