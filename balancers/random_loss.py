"""Random loss weighting: draw new weights in every step."""

import torch
from torch import Tensor

from .engine import Draws, LossBalancer, Result, State, register, state


@register
class RandomLossWeighting(LossBalancer):
    r"""Draw the weights as a softmax of standard normal numbers, whatever the losses.

    .. math:: w = \operatorname{softmax}(x), \quad x \sim \mathcal{N}(0, I)

    The weights of all tasks sum to 1. After each training step, new ones are drawn for all tasks, whether or not they
    had a loss in the step. Evaluating the losses between steps draws nothing.

    Args:
        tasks: see `LossBalancer`.
        seed: seed of the random numbers, which ``torch.manual_seed`` does not change.
        options: see `LossBalancer`.

    Raises:
        ValueError: ``seed`` is not an integer, 0 or more.

    Example::

        balancer = RandomLossWeighting(["depth", "normals"], seed=1)
        balancer(losses).backward()

    Source: Lin, Ye, Zhang and Tsang, "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task
    Learning", TMLR 2022, algorithm 1, with its normal distribution. As in LibMTL and TorchJD the sum is 1, not T.
    """

    name = "random"
    summary = "Draw the weights at random in every step."
    use_when = "As a baseline: what a method gains over it is due to its weights, not to their noise."
    reads = "nothing"
    sees_all_tasks = True
    next_weights: Tensor = state(lambda balancer: balancer.first())
    """:math:`w_i`, ``(T,)``."""
    last_weights: Tensor = state(lambda balancer: balancer.first())

    def first(self) -> list[float]:
        """Return the weights of the first step."""
        return _draw(Draws(self.seed, -1, torch.zeros((), dtype=torch.float64, device="cpu")), self.num_tasks).tolist()

    def weigh(self, state: State) -> Tensor:
        """Return the weights drawn after the last step, ``(T,)``."""
        return state["next_weights"]

    def update(self, draws: Draws) -> Result:
        return Result(state={"next_weights": _draw(draws, self.num_tasks)})


def _draw(draws: Draws, num_tasks: int) -> Tensor:
    return torch.softmax(draws.normal(num_tasks), -1)
