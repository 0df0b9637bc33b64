"""The Trainer of transformers trains on batches of one task each, logs the weights and resumes exactly."""

import math
from collections.abc import Iterator

import pytest
import torch

from .programs import load

pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*pin_memory.*")]


@pytest.fixture(autouse=True)
def _own_state() -> Iterator[None]:
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def weights_in(log: list[dict[str, float]]) -> list[tuple[int, float, float]]:
    return [(entry["step"], entry["weight/topic"], entry["weight/share"]) for entry in log if "loss" in entry]


def test_trains_and_resumes() -> None:
    whole, resumed = load("hf_trainer").main(steps=40)

    weights = weights_in(whole.state.log_history)
    assert [step for step, *_ in weights] == [10, 20, 30, 40]
    assert all(math.isclose(topic + share, 2, rel_tol=1e-5) for _, topic, share in weights)
    assert abs(weights[-1][1] - 1) > 0.05
    assert weights_in(resumed.state.log_history) == weights

    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]

    first, second = whole.model.state_dict(), resumed.model.state_dict()
    assert any(name.startswith("balancer.") for name in first)
    torch.testing.assert_close(second, first, rtol=0, atol=0)


def test_an_update_sees_all_batches_of_a_step() -> None:
    """A window of four batches with one task each is one update, of the tasks that were among them."""
    whole, _ = load("hf_trainer").main(steps=4)
    assert whole.model.balancer.updates.max() <= 4
    assert whole.model.balancer.updates.sum() > 4  # some windows saw both tasks
