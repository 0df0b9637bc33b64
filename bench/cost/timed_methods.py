"""The methods whose cost is compared: GradNorm in its forms, uncertainty weighting, and what they are compared with."""

from collections.abc import Callable
from dataclasses import dataclass

from balancers import EqualWeighting, GradNorm, LossBalancer, UncertaintyWeighting

from .subject import Subject


@dataclass(frozen=True)
class TimedMethod:
    """A method in a comparison.

    Attributes:
        name: what tables and figures call it.
        balancer: makes it, for a subject and the number of its tasks.
        cycle: how many steps it takes until it does the same again. Its time is the mean over a cycle.
    """

    name: str
    balancer: Callable[[Subject, int], LossBalancer]
    cycle: int = 1


EQUAL = TimedMethod("equal", lambda subject, num_tasks: EqualWeighting(num_tasks))
AGAIN = TimedMethod("equal, again", EQUAL.balancer)
"""What two copies of the same thing differ by: the noise of the comparison."""
UNCERTAINTY = TimedMethod("uncertainty", lambda subject, num_tasks: UncertaintyWeighting(num_tasks))
FEATURES = TimedMethod("gradnorm features", lambda subject, num_tasks: GradNorm(subject.fork, tasks=num_tasks))
LAYER = TimedMethod("gradnorm layer", lambda subject, num_tasks: GradNorm(subject.fork, subject.wrt, tasks=num_tasks))
NO_FORK = TimedMethod("gradnorm, no fork", lambda subject, num_tasks: GradNorm(None, subject.wrt, tasks=num_tasks))
EVERY_TEN = TimedMethod(
    "gradnorm every 10",
    lambda subject, num_tasks: GradNorm(subject.fork, subject.wrt, tasks=num_tasks, update_every=10),
    cycle=10,
)
"""With respect to the layer, at every tenth step."""
