"""Load the programs of the folder `examples`, which is not a package, and check what their `main` returns."""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import ModuleType

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(name: str) -> ModuleType:
    """Return the module of ``examples/<name>.py``, run anew, so that its ``main`` can be called.

    Raises:
        FileNotFoundError: there is no such program.
    """
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_that_it_trains(history: Sequence[Mapping[str, float]], tasks: Sequence[str]) -> None:
    """Check that all numbers of all steps are finite, and that each task's weight moves, and its loss falls.

    Args:
        history: what `LossBalancer.scalars` returns, for each step.
        tasks: their names.
    """
    assert all(math.isfinite(number) for step in history for number in step.values())
    for task in tasks:
        weights = [step[f"weight/{task}"] for step in history]
        assert max(weights) - min(weights) > 0.01, f"the weight of {task} does not move"
        losses = [step[f"loss/{task}"] for step in history if f"loss/{task}" in step]
        few = len(losses) // 5
        assert fmean(losses[-few:]) < fmean(losses[:few]), f"the loss of {task} does not fall"
