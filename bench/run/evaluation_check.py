"""Check what a problem's ``evaluate`` returns, before a suite spends hours on runs that would all fail because of it.

A run itself (`bench.run.training`) reads the declared metrics and no more. This check looks at everything returned, and
says what is wrong in the words of the problem's author.
"""

import math
from collections.abc import Mapping
from typing import Any

from tasks import Problem


class EvaluationError(ValueError):
    """A problem's ``evaluate`` returns something else than the metrics that the problem declares."""


def checked(problem: Problem[Any], returned: object) -> dict[str, float]:
    """Return the metrics that ``problem.evaluate`` ``returned``, as floats.

    Raises:
        EvaluationError: It returned no mapping, or one that lacks a declared metric, has one that is not declared, or
            has a value that is not a number.
    """
    who = f"evaluate of {problem.name}"
    declared = [metric.name for metric in problem.metrics]
    if not isinstance(returned, Mapping):
        what = "nothing" if returned is None else f"a {type(returned).__name__}"
        raise EvaluationError(f"{who} returns {what}; expected a dict of its metrics: {_quoted(declared)}")
    if missing := [name for name in declared if name not in returned]:
        raise EvaluationError(f"{who} gives no {_quoted(missing)}, which its metrics declare")
    if extra := [name for name in returned if name not in declared]:
        raise EvaluationError(f"{who} gives {_quoted(extra)}, which its metrics do not declare; add a Metric for it")
    return {name: _number(who, name, returned[name]) for name in declared}


def require_score(problem: Problem[Any], before: Mapping[str, float], after: Mapping[str, float]) -> None:
    """Check that the primary metric is finite ``before`` training or ``after`` its first steps.

    A score can be undefined for an untrained model. A method that diverges has a score before its first step.

    Raises:
        EvaluationError: The primary metric is finite neither before nor after.
    """
    values = before[problem.primary], after[problem.primary]
    if not any(map(math.isfinite, values)):
        raise EvaluationError(
            f"evaluate of {problem.name} gives {values[0]} for {problem.primary!r} before training, and {values[1]} "
            "after the first steps; methods are compared by this metric, so it must be finite"
        )


def _number(who: str, name: str, value: Any) -> float:
    try:
        if isinstance(value, str):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # a RuntimeError: a tensor with several elements
        raise EvaluationError(f"{who} gives {value!r} for {name!r}; expected a number") from None


def _quoted(names: list[Any]) -> str:
    return ", ".join(map(repr, names))
