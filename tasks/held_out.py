"""Hold out part of a training set, or evaluate on part of it."""

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Generator, Tensor

Data = TypeVar("Data")
PART = 10
"""One sample in this many is held out."""


def split_data(data: Data, generator: Generator, batch_size: int) -> tuple[Data, Data]:
    """Return data without some samples of ``data.train``, and with these alone: see `Problem.split`."""
    train = _part(data, "train")
    if train is None:
        raise TypeError(
            f"data of type {type(data).__name__} have no training set by the name train: for methods that learn from a "
            f"second batch, the problem must define split"
        )
    kept, held = (selected(train, chosen) for chosen in split_indices(_length(train), generator, batch_size))
    return _with(data, train=kept), _with(data, train=held)


def seen_data(data: Data) -> Data | None:
    """Return data whose validation split is evenly spaced samples of ``data.train``: see `Problem.seen`."""
    train, validation = _part(data, "train"), _part(data, "validation")
    if train is None or validation is None:
        return None
    try:
        number = min(_length(train), _length(validation))
        return _with(data, validation=selected(train, torch.arange(number) * _length(train) // number))
    except TypeError:  # samples of another type than `selected` knows
        return None


def _part(data: Any, name: str) -> Any:
    """Return one of the splits of ``data``; None if data of this type have none by that name."""
    if isinstance(data, Mapping):
        return data.get(name)
    return getattr(data, name, None) if is_dataclass(data) else None


def _with(data: Data, **splits: Any) -> Data:
    """Return ``data`` with other ``splits``."""
    if isinstance(data, Mapping):
        return cast(Data, {**data, **splits})
    return cast(Data, replace(cast(Any, data), **splits))


def split_indices(num_samples: int, generator: Generator, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the samples that are kept and of those that are held out, on the CPU.

    Raises:
        ValueError: If a batch needs more than half of the samples.
    """
    number = max(num_samples // PART, batch_size)
    if 2 * number > num_samples:
        raise ValueError(
            f"a second batch of {batch_size} samples can't be held out of a training set of {num_samples}: it takes "
            f"more than half of them"
        )
    order = torch.randperm(num_samples, generator=generator)
    return order[number:].sort().values, order[:number].sort().values


def selected(samples: Any, indices: Tensor) -> Any:
    """Return some of the samples: of a tensor, a tuple of such or of None, or a list."""
    match samples:
        case None:
            return None
        case Tensor():
            return samples.index_select(0, indices.to(samples.device))
        case tuple():
            parts = [selected(part, indices) for part in samples]
            return type(samples)(*parts) if hasattr(samples, "_fields") else tuple(parts)
        case Sequence():
            return [samples[i] for i in indices.tolist()]
    raise TypeError(f"a training set of type {type(samples).__name__} can't be split: the problem must define split")


def _length(samples: Any) -> int:
    """Return the number of samples."""
    return _length(samples[0]) if isinstance(samples, tuple) else len(samples)
