"""Gradients that wait for each other are taken together, at the latest when the features' node runs."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from balancers.engine.measuring.waiting import Waiting


class Taker:
    """Takes what waits, and notes the tasks."""

    def __init__(self) -> None:
        self.taken: list[list[int]] = []
        self.waiting = Waiting(self.take)

    def take(self) -> None:
        entries = self.waiting.take()
        if entries:
            self.taken.append([entry.task for entry in entries])

    def add(self, features: Tensor, tasks: list[int]) -> None:
        for task in tasks:
            self.waiting.add(features, task, torch.ones_like(features))


@contextmanager
def when_it_comes_to(tensor: Tensor, call: Callable[[], None]) -> Iterator[None]:
    """Call a function in a backward pass when the gradient of a tensor comes."""
    handle = tensor.register_hook(lambda _: call())
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture
def features() -> Tensor:
    return torch.ones(3, requires_grad=True).exp()


def test_what_was_not_taken_is_taken_when_the_node_of_the_features_runs(features: Tensor):
    taker, head = Taker(), features.sin()
    with when_it_comes_to(head, lambda: taker.add(features, [2, 0])):
        head.sum().backward()
    assert taker.taken == [[0, 2]]


def test_what_was_taken_before_is_not_taken_again(features: Tensor):
    taker, head = Taker(), features.sin()

    def both() -> None:
        taker.add(features, [1, 0])
        taker.take()
        taker.add(features, [2])

    with when_it_comes_to(head, both):
        head.sum().backward()
    assert taker.taken == [[0, 1], [2]]
    assert len(taker.waiting) == 0


def test_another_pass_through_the_same_node_takes_nothing():
    leaf = torch.ones(3, requires_grad=True)
    features = leaf.exp()
    taker, head, other, before = Taker(), features.sin(), features.cos().sum(), list[list[int]]()

    def with_a_pass_within() -> None:
        taker.add(features, [0])
        torch.autograd.grad(other, leaf, retain_graph=True)
        before.extend(taker.taken)

    with when_it_comes_to(head, with_a_pass_within):
        head.sum().backward()
    assert before == []
    assert taker.taken == [[0]]


def test_features_that_live_on_do_not_keep_what_waits(features: Tensor):
    taker = Taker()
    taker.add(features, [0])
    kept = weakref.ref(taker)
    del taker
    assert kept() is None
    features.sum().backward()  # its hook finds nothing
