"""Tell backward passes that measure from those that train.

A balancer's hooks run in both where one balancer measures the loss that another returned. A pass is known by its
number, so that threads that train side by side don't disturb each other.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch.autograd.graph import Node

from .torch_internals import current_pass

_measuring = set[int]()
"""The numbers of the passes under way that measure."""


@contextmanager
def as_measurements(roots: Iterable[Node]) -> Iterator[None]:
    """Take the backward passes that begin at these nodes, within this context, as measurements."""
    here = set[int]()

    def begin(_: object) -> None:
        here.add(current_pass())
        _measuring.add(current_pass())

    handles = [root.register_prehook(begin) for root in set(roots)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        _measuring.difference_update(here)


def is_measuring() -> bool:
    """Return whether the code runs in a backward pass that measures."""
    return current_pass() in _measuring
