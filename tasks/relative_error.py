"""A single score for tasks that are measured in different units."""

import math
from collections.abc import Sequence


def relative_error(errors: Sequence[float], of_constant: Sequence[float]) -> float:
    """Return the geometric mean over tasks of each task's error divided by the constant predictor's error.

    The constant predictor itself scores 1. As in Delta m, the score that the multi-task literature uses, only ratios of
    errors count, so the tasks' units and difficulty do not matter. The score is 0 if one of ``errors`` is 0, and NaN if
    one is NaN.

    Args:
        errors: the error of each task, 0 or more.
        of_constant: the constant predictor's error on each task, positive.

    Raises:
        ValueError: If the two sequences differ in length or are empty, or an error of the constant predictor is not
            positive.
    """
    if len(errors) != len(of_constant) or not errors:
        raise ValueError(
            f"got {len(errors)} errors, and {len(of_constant)} of the constant predictor; expected one of each per task"
        )
    if not all(constant > 0 for constant in of_constant):
        raise ValueError(f"the constant predictor's errors are {list(of_constant)}; expected positive ones")
    ratios = [error / constant for error, constant in zip(errors, of_constant, strict=True)]
    if any(math.isnan(ratio) for ratio in ratios):
        return math.nan
    return float(math.prod(ratio ** (1 / len(ratios)) for ratio in ratios))
