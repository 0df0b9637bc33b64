"""Find losses that are on very different scales before any training, and say what to do about them.

A squared error of some thousands beside a cross-entropy of one outweighs it so far that many methods never train the
smaller one, and none of them says so.
"""

import math
from collections.abc import Mapping

import pandas as pd

FAR_APART = 100
"""The ratio of two first losses above which they should be scaled."""


def first_losses(trajectory: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return each problem's mean loss of each task in the first step, which no method has changed yet.

    Args:
        trajectory: The table of that name: ``problem``, ``step``, ``task`` and ``loss`` are read.
    """
    means = trajectory[trajectory["step"] == 1].groupby(["problem", "task"], sort=False)["loss"].mean().reset_index()
    found: dict[str, dict[str, float]] = {}
    for problem, task, loss in zip(means["problem"], means["task"], means["loss"], strict=True):
        found.setdefault(str(problem), {})[str(task)] = float(loss)
    return found


def advice(losses: Mapping[str, float], problem: str = "") -> str:
    """Return what to do if the first losses of the tasks are `FAR_APART`; empty if they are not.

    Args:
        losses: The loss of each task. Those that are not positive and finite are left out.
        problem: The problem's name, if it is to be named.
    """
    positive = {task: loss for task, loss in losses.items() if 0 < loss < math.inf}
    ordered = sorted(positive, key=lambda task: positive[task])
    if not ordered or positive[ordered[-1]] <= FAR_APART * positive[ordered[0]]:
        return ""
    low, high = ordered[0], ordered[-1]
    beginning = f"On {problem}, the" if problem else "The"
    return (
        f"{beginning} first loss of {high} ({positive[high]:.3g}) is {positive[high] / positive[low]:,.0f} times that "
        f"of {low} ({positive[low]:.3g}). Scale the losses first, or some methods will hardly train the smaller ones: "
        f"divide each by what a constant predictor scores on its task, a squared error by the variance of its targets."
    )
