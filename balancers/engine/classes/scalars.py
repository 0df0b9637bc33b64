"""Name what a balancer measured, number by number, for a logger."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

_KINDS = {"weights": "weight", "losses": "loss", "gradient_norms": "gradient_norm"}
"""The name in the singular of each statistic that has a number for each task."""


def scalars(
    tensors: Mapping[str, Tensor],
    tasks: Sequence[str] | None,
    num_tasks: int,
    given: Sequence[bool] | None,
    losses_of: Sequence[bool] | None,
) -> dict[str, float]:
    """Return every number in ``tensors`` by name. Waits for the device once.

    Args:
        tensors: by name: a number for each task, or for each one given; a scalar; or the gradients' ``gramian``.
        tasks: the tasks' names, if they have some; otherwise they are numbered from 0.
        num_tasks: T.
        given: for each task whether the last step had it; None if it had all.
        losses_of: the same for the last losses, which are those of one pass.
    """
    names = tuple(tasks or map(str, range(num_tasks)))
    of_step, of_losses = _present(names, given), _present(names, losses_of)
    found = {
        name: value
        for kind, values in tensors.items()
        for name, value in _named(kind, values.detach(), names, of_losses if kind == "losses" else of_step)
    }
    flat = torch.stack([value.to(tensors["weights"].dtype) for value in found.values()])
    return dict(zip(found, flat.tolist(), strict=True))


def _present(names: Sequence[str], given: Sequence[bool] | None) -> list[str]:
    return [name for i, name in enumerate(names) if given is None or given[i]]


def _named(kind: str, values: Tensor, names: Sequence[str], present: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield names with their numbers."""
    if kind == "gramian":
        norms = values.diagonal().clamp(min=0).sqrt()
        yield from _named("gradient_norms", norms, present, present)
        products = torch.outer(norms, norms)
        cosines = torch.where(products > 0, values / products, 0.0)  # a gradient of zero has none
        for j in range(len(present)):
            for i in range(j):
                yield f"cosine/{present[i]}/{present[j]}", cosines[i, j]
    elif values.ndim == 0:
        yield kind, values
    elif values.ndim == 1:
        own = names if len(values) == len(names) else present
        for name, value in zip(own, values.unbind(), strict=True):
            if kind != "losses" or name in present:  # the loss of a task left out reads zero
                yield f"{_KINDS.get(kind, kind)}/{name}", value
