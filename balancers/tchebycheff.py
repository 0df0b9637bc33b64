"""Tchebycheff scalarisation: minimise the worst loss alone."""

from torch import Tensor

from .engine import LossBalancer, State, option, register, state


@register
class Tchebycheff(LossBalancer):
    r"""Minimise the largest of the losses' weighted distances from an ideal point.

    .. math:: \max_i \lambda_i (L_i - z_i)

    If several tasks share the largest distance, they share the weight. Unlike a weighted sum, this objective can
    reach any trade-off, whatever the shape of the Pareto front, but it trains one task at a time. Which task is the
    worst depends on the scales of the losses. To remove these scales, divide the preferences by typical losses, such
    as those of the first epoch.

    Args:
        tasks: see `LossBalancer`.
        preferences: :math:`\lambda_i`, not negative, not all zero: one per task or a dict by task name. They are used
            as they are, whatever their sum; by default :math:`1/T`.
        ideal: :math:`z_i`, the best possible losses: one number for all tasks, one per task, or a dict by task name.
        options: see `LossBalancer`.

    Raises:
        ValueError: a preference is negative or not finite, all preferences are zero, a number in ``ideal`` is not
            finite, or the number or the names of either are not those of the tasks.

    Example::

        balancer = Tchebycheff(["fit", "speed"], preferences=[1.0, 2.0], ideal={"fit": 0.1, "speed": 0.0})
        balancer(losses).backward()  # trains one of the two

    Source: Lin, Zhang, Yang, Liu, Wang and Zhang, "Smooth Tchebycheff Scalarization for Multi-Objective
    Optimization", ICML 2024; after Bowman, 1976.
    """

    name = "tchebycheff"
    summary = "Train only the task whose loss, weighted by preferences, is the largest."
    reads = "losses"
    use_when = "When the worst task is what counts, and losses have the same scale or known ideals and preferences."
    preferences: list[float] = option(lambda balancer: 1 / balancer.num_tasks, at_least=0, per_task=True)
    ideal: list[float] = option(0.0, per_task=True)
    last_weights: Tensor = state(lambda balancer: [each / balancer.num_tasks for each in balancer.preferences])

    def prepare(self) -> None:
        if not any(self.preferences):
            raise ValueError(f"preferences is {self.preferences}; expected at least one above 0")

    def weigh(self, losses: Tensor, state: State) -> Tensor:
        r"""Return :math:`\lambda_i` times `shares`, ``(..., T)``."""
        return state["preferences"] * self.shares(state["preferences"] * (losses - state["ideal"]))

    def shares(self, distances: Tensor) -> Tensor:
        """Return the objective's derivative in each weighted distance, ``(..., T)``, whose sum is 1."""
        largest = (distances == distances.amax(-1, keepdim=True)).to(distances.dtype)
        return largest / largest.sum(-1, keepdim=True)
