"""Penalty-based boundary intersection: go down a ray of preferences, and pay for every distance from it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .engine import LossBalancer, Range, State, option, register, state

ROUNDING = 4
"""Distance from the ray, in units of T times the type's precision, that counts as none."""


@register
class PBI(LossBalancer):
    r"""Minimise the losses along a ray of preferences, with a penalty on their distance from the ray.

    The ray starts at the ideal point :math:`z` and has the direction :math:`\hat r = r / \lVert r \rVert`. With
    :math:`f = L - z`,

    .. math:: d_1 + \theta d_2, \quad d_1 = f^\top \hat r, \quad p = f - d_1 \hat r, \quad d_2 = \lVert p \rVert, \quad
        w_i = \hat r_i + \theta \frac{p_i}{d_2}

    The losses are drawn towards the ray, where their distances from the ideal point are in proportion to the
    preferences: unlike that of `Tchebycheff`, a larger preference allows a larger loss. On the ray itself, as for a
    single task, the weights are :math:`\hat r`.

    **Weights may be negative.** A task that is too far ahead of the others then gets worse, to bring the losses back
    to the ray. With :math:`\theta = 0` no weight is negative.

    Args:
        tasks: see `LossBalancer`.
        preferences: :math:`r_i`, not negative, not all zero: one per task or a dict by task name. Only their ratios
            count. By default they are equal. Where all tasks of a step have the preference 0, the weights stay.
        ideal: :math:`z_i`, the best possible losses: one number for all tasks, one per task, or a dict by task name.
        theta: :math:`\theta`, 0 or more: the penalty on the distance from the ray; 5 in the paper.
        options: see `LossBalancer`.

    Raises:
        ValueError: ``theta`` or a preference is negative or not finite, all preferences are zero, a number in ``ideal``
            is not finite, or the number or the names of either are not those of the tasks.

    Example::

        balancer = PBI(["fit", "fairness"], preferences=[1.0, 2.0], ideal=[0.1, 0.0], theta=5.0)
        balancer(losses).backward()

    Source: Zhang and Li, "MOEA/D: A Multiobjective Evolutionary Algorithm Based on Decomposition", IEEE Transactions on
    Evolutionary Computation 2007. TorchJD adds 1e-12 to :math:`d_2^2`; libmoon leaves the ideal point out.
    """

    name = "pbi"
    summary = "Minimise the losses along a ray of preferences, with a penalty on their distance from it."
    reads = "losses"
    may_ascend = True
    use_when = "When losses should end in given proportions, even if some must rise for that."
    preferences: list[float] = option(lambda balancer: 1 / balancer.num_tasks, at_least=0, per_task=True)
    ideal: list[float] = option(0.0, per_task=True)
    theta: float = option(5.0, at_least=0, tune=Range(0.1, 10.0, log=True))
    last_weights: Tensor = state(lambda balancer: _direction(balancer.preferences))

    def prepare(self) -> None:
        if not any(self.preferences):
            raise ValueError(f"preferences is {self.preferences}; expected at least one above 0")

    def weigh(self, losses: Tensor, state: State) -> Tensor:
        r"""Return :math:`\hat r_i + \theta p_i / d_2`, ``(..., T)``."""
        gaps, ray = losses - state["ideal"], unit(state["preferences"])
        aside = gaps - (gaps * ray).sum(-1, keepdim=True) * ray
        precision = ROUNDING * gaps.shape[-1] * torch.finfo(gaps.dtype).eps
        is_off = norm(aside) > precision * norm(gaps)
        return ray + self.theta * torch.where(is_off, unit(aside), 0.0)


def _direction(preferences: Sequence[float]) -> list[float]:
    r"""Return :math:`\hat r`."""
    return [preference / math.hypot(*preferences) for preference in preferences]


def norm(vectors: Tensor) -> Tensor:
    """Return the lengths, ``(..., 1)``, of vectors ``(..., T)``."""
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return lengths


def unit(vectors: Tensor) -> Tensor:
    """Return vectors ``(..., T)``, each divided by its length."""
    return vectors / norm(vectors)
