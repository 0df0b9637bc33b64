"""The example of checkpoints: a training that goes on in a new process ends as one without a break, to the bit."""

import pytest
import torch

from .programs import EXAMPLES, load

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


@pytest.fixture(autouse=True)
def _same_setting_in_the_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_goes_on_in_a_new_process_to_the_bit(capfd: pytest.CaptureFixture[str]) -> None:
    whole, resumed = load("checkpoints").main(steps=60)

    for part in ("net", "balancer", "optimizer", "numbers"):
        torch.testing.assert_close(resumed[part], whole[part], rtol=0, atol=0)
    assert resumed["schedule"] == whole["schedule"]
    assert whole["schedule"]["last_epoch"] == 60
    assert not whole["balancer"]["last_weights"].equal(torch.ones(2))
    said = capfd.readouterr().out.splitlines()
    assert len(said) == 4
    assert said[-1] == "to the bit, the networks are equal"
    assert said[0].split(": ")[1] == said[2].split(": ")[1] != said[1].split(": ")[1]
