"""Test the check of what a problem's ``evaluate`` returns."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench.run.evaluation_check import EvaluationError, checked, require_score
from tasks import Metric

METRICS = [Metric(name, "of a test", "", higher_is_better=False) for name in ("error", "accuracy")]
WAVES: Any = SimpleNamespace(name="waves", metrics=METRICS, primary="error")


def test_declared_numbers_of_any_kind_pass_as_floats() -> None:
    found = checked(WAVES, {"accuracy": torch.tensor(0.5), "error": np.float32(2)})
    assert found == {"error": 2.0, "accuracy": 0.5}
    assert all(type(value) is float for value in found.values())
    assert math.isnan(checked(WAVES, {"error": 1, "accuracy": math.nan})["accuracy"])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "evaluate of waves returns nothing; expected a dict of its metrics: 'error', 'accuracy'"),
        (0.3, "evaluate of waves returns a float; expected a dict of its metrics: 'error', 'accuracy'"),
        ({"accuracy": 1.0}, "evaluate of waves gives no 'error', which its metrics declare"),
        ({}, "evaluate of waves gives no 'error', 'accuracy', which its metrics declare"),
        (
            {"error": 1.0, "accuracy": 1.0, "acuracy": 1.0},
            "evaluate of waves gives 'acuracy', which its metrics do not declare; add a Metric for it",
        ),
        ({"error": "1.0", "accuracy": 1.0}, "evaluate of waves gives '1.0' for 'error'; expected a number"),
        ({"error": None, "accuracy": 1.0}, "evaluate of waves gives None for 'error'; expected a number"),
        (
            {"error": torch.zeros(2), "accuracy": 1.0},
            "evaluate of waves gives tensor([0., 0.]) for 'error'; expected a number",
        ),
    ],
)
def test_anything_else_is_refused_in_the_words_of_the_problem(returned: object, message: str) -> None:
    with pytest.raises(EvaluationError) as refused:
        checked(WAVES, returned)
    assert str(refused.value) == message


def test_a_score_may_be_undefined_before_training_or_after_a_divergence_but_not_both() -> None:
    require_score(WAVES, {"error": math.nan}, {"error": 1.0})
    require_score(WAVES, {"error": 1.0}, {"error": math.inf})
    with pytest.raises(EvaluationError, match="gives nan for 'error' before training, and inf after the first steps"):
        require_score(WAVES, {"error": math.nan}, {"error": math.inf})
