"""Name the methods whose cost is compared: GradNorm in its forms, uncertainty weighting and equal weighting."""

from collections.abc import Callable
from dataclasses import dataclass

from balancers import EqualWeighting, GradNorm, LossBalancer, UncertaintyWeighting

from .subject import Subject


@dataclass(frozen=True)
class TimedMethod:
    """A method whose step is timed.

    Attributes:
        name: name in tables and figures.
        balancer: makes the balancer for a subject and its number of tasks.
        cycle: number of steps after which the method repeats itself. Its time is the mean over a cycle.
    """

    name: str
    balancer: Callable[[Subject, int], LossBalancer]
    cycle: int = 1


EQUAL = TimedMethod("equal", lambda subject, num_tasks: EqualWeighting(num_tasks))
AGAIN = TimedMethod("equal, again", EQUAL.balancer)
"""A second copy of equal weighting: its difference from the first is the noise of the comparison."""
UNCERTAINTY = TimedMethod("uncertainty", lambda subject, num_tasks: UncertaintyWeighting(num_tasks))
FEATURES = TimedMethod("gradnorm features", lambda subject, num_tasks: GradNorm(subject.fork, tasks=num_tasks))
LAYER = TimedMethod("gradnorm layer", lambda subject, num_tasks: GradNorm(subject.fork, subject.wrt, tasks=num_tasks))
FEATURES_COMPILED = TimedMethod(
    FEATURES.name, lambda subject, num_tasks: GradNorm(subject.fork, tasks=num_tasks, compile=True)
)
LAYER_COMPILED = TimedMethod(
    LAYER.name, lambda subject, num_tasks: GradNorm(subject.fork, subject.wrt, tasks=num_tasks, compile=True)
)
NO_FORK = TimedMethod("gradnorm, no fork", lambda subject, num_tasks: GradNorm(None, subject.wrt, tasks=num_tasks))
EVERY_TEN = TimedMethod(
    "gradnorm every 10",
    lambda subject, num_tasks: GradNorm(subject.fork, subject.wrt, tasks=num_tasks, update_every=10),
    cycle=10,
)
"""GradNorm at the layer, updated at every tenth step."""
