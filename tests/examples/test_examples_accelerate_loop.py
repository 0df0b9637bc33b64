"""Accelerate trains the two tasks, and a training that loads its state goes on to the bit."""

from collections.abc import Iterator

import pytest

from .programs import check_that_it_trains, load

accelerate = pytest.importorskip("accelerate")


@pytest.fixture(autouse=True)
def _own_state() -> Iterator[None]:
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


@pytest.mark.slow
def test_trains_and_goes_on_from_a_saved_state() -> None:
    history, resumed = load("accelerate_loop").main(steps=20)
    assert len(history) == 40
    assert resumed == history[20:]
    check_that_it_trains(history, ["size", "kind"])


def test_a_short_window_ends_with_its_epoch() -> None:
    """An epoch has two batches fewer than its steps would take; its last step teaches the balancer as the others do."""
    module = load("accelerate_loop")
    training = module.Training(steps=3)
    assert len(training.loader) == 10
    training.epoch()
    assert training.balancer.updates.tolist() == [3, 3]
