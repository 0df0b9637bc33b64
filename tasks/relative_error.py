"""One score for tasks that are measured in different units."""

import math
from collections.abc import Sequence


def relative_error(errors: Sequence[float], of_constant: Sequence[float]) -> float:
    """The geometric mean over tasks of a task's error relative to a constant predictor's, which so scores 1.

    As in the literature's Delta m, a task counts by the ratio that its error changes by, whatever its unit and however
    hard it is. Zero where an error is zero; not-a-number where one is.

    Args:
        errors: one a task, 0 or more.
        of_constant: those of the constant predictor, positive.

    Raises:
        ValueError: not one error of the constant predictor a task, or one that isn't positive.
    """
    if len(errors) != len(of_constant) or not errors:
        raise ValueError(
            f"{len(errors)} errors and {len(of_constant)} of the constant predictor; expected one each a task"
        )
    if not all(constant > 0 for constant in of_constant):
        raise ValueError(f"the constant predictor's errors are {list(of_constant)}; expected positive ones")
    ratios = [error / constant for error, constant in zip(errors, of_constant, strict=True)]
    if any(math.isnan(ratio) for ratio in ratios):
        return math.nan
    return float(math.prod(ratio ** (1 / len(ratios)) for ratio in ratios))
