"""The example of a VAE-GAN: two methods for codecs weigh the adversarial loss, beside the discriminator's own step."""

import math

import pytest

from .programs import load


@pytest.mark.parametrize("method", ["vqgan", "encodec"])
def test_reconstruction_improves_while_the_discriminator_learns(method: str) -> None:
    history = load("vae_gan").main(steps=120, method=method)

    assert all(math.isfinite(number) for step in history for number in step.values())
    assert history[-1]["loss/reconstruction"] < 0.8 * history[0]["loss/reconstruction"]
    assert history[-1]["loss/verdicts"] != history[0]["loss/verdicts"]
    weights = {step["weight/adversarial"] for step in history}
    assert len(weights) > 100


def test_vqgan_weighs_the_adversarial_loss_from_its_start_by_the_ratio_of_the_norms() -> None:
    history = load("vae_gan").main(steps=20, method="vqgan")

    assert [step["weight/reconstruction"] for step in history] == [1.0] * 20
    assert [step["weight/adversarial"] for step in history[:10]] == [0.0] * 10
    for step in history[10:]:
        ratio = step["gradient_norm/reconstruction"] / (step["gradient_norm/adversarial"] + 1e-4)
        assert step["weight/adversarial"] == pytest.approx(0.5 * ratio, rel=1e-4)
