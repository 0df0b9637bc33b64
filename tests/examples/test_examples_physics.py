"""The examples with DeepXDE and PINA solve their equations with weights that move, and resume with the balancer."""

import pytest

from ..integrations.deepxde_backend import import_deepxde
from .programs import load


@pytest.mark.slow
def test_deepxde_learns_the_heat_equation_by_adam_and_then_by_lbfgs() -> None:
    import_deepxde()

    (adam, weights, _), (_, later, error) = load("deepxde_heat").main(steps=300)

    assert adam == 300
    assert weights["equation"] == later["equation"] == 1.0
    assert all(weights[task] > 1.5 for task in ("boundary", "start"))
    assert later != weights
    assert error < 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pina_learns_the_membrane_in_two_halves() -> None:
    pytest.importorskip("pina")

    half, end = load("pina_membrane").main(steps=400)

    assert half["fixed"] > 1.2 * half["load"]
    assert abs(end["fixed"] - half["fixed"]) > 0.01
    assert end["error"] < half["error"]
    assert end["error"] < 0.2
