"""DB-MTL: train on log-losses, with averaged gradients that are all scaled to the largest one's norm."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .engine.base import Range
from .engine.combining import Combination, CombiningBalancer
from .engine.measure import joint_norms
from .engine.method_registry import register
from .engine.per_task_state import keep, rows
from .engine.ranks import over_ranks, world_size


@register
class DBMTL(CombiningBalancer):
    r"""Balance the losses by logarithms, and their gradients by a common norm (dual balancing).

    In step k, counted from 1, the method updates a moving average of each log-loss's gradient,

    .. math:: y_i \leftarrow \beta_k\, y_i + (1 - \beta_k) \nabla \log L_i, \quad \beta_k = \beta / k^\sigma,

    and the shared parameters ``wrt`` receive

    .. math:: \max_j \lVert y_j \rVert\, \sum_i \frac{y_i}{\lVert y_i \rVert}.

    All other parameters receive the gradients of the log-losses. The scale of a loss cancels out. The averages
    :math:`y_i` start at zero. They are not corrected for that start, which Adam does not notice. They take as much
    memory as T copies of the parameters ``wrt``. ``weights`` holds the factors of the gradients of this step's losses
    themselves, :math:`\max_j \lVert y_j \rVert / (\lVert y_i \rVert L_i)`.

    Args:
        beta: :math:`\beta`, at least 0 and below 1: fraction of itself that an average keeps in a step.
        sigma: :math:`\sigma`, 0 or more: how fast this fraction shrinks from step to step; 0 or 0.5 in the paper.
        fork, wrt, tasks, accumulate, check_finite: see `CombiningBalancer`. The method replaces the gradients of the
            shared parameters, so give these as ``wrt``, with ``fork=None``. ``update_every`` must be 1.

    Raises:
        ValueError: ``beta`` or ``sigma`` is out of range, ``update_every`` is not 1, or a fork is given.

    Source: Lin et al., "Dual-Balancing for Multi-Task Learning", arXiv 2023, algorithm 1. The defaults are those of
    LibMTL, which is the authors' code. It adds 1e-8 in the logarithm and to the norm; this class does not.
    """

    name = "db-mtl"
    summary = "Train on log-losses, with averaged gradients that are all scaled to the largest one's norm."
    reads = "gradients"
    heads = "weighted"
    needs_positive_losses = True
    use_when = "When losses and gradients have very different scales, and all tasks are equally important."
    default_wrt = "parameters"
    undefined_for = {
        "features": "a moving average of feature gradients would mix different samples",
        "layer": "it replaces the gradients of all shared parameters, not those of one layer",
    }
    tunable = {"beta": Range(0.1, 0.9), "sigma": Range(0.0, 0.5)}

    steps: Tensor
    """Number of valid steps so far: k - 1 in step k; a scalar."""

    def __init__(self, *args: Any, beta: float = 0.9, sigma: float = 0.0, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.update_every > 1:
            raise ValueError(f"update_every is {self.update_every}; expected 1: gradients are tracked at every step")
        if not 0 <= beta < 1:
            raise ValueError(f"beta is {beta!r}; expected a number at least 0 and below 1")
        if not (math.isfinite(sigma) and sigma >= 0):
            raise ValueError(f"sigma is {sigma!r}; expected a finite number, 0 or more")
        self.beta, self.sigma = beta, sigma
        self.register_buffer("steps", torch.zeros(()))
        for k, parameter in enumerate(self._wrt or ()):
            self.register_buffer(f"averages_{k}", torch.zeros(self.num_tasks, *parameter.shape))

    def weigh(self, losses: Tensor) -> Tensor:
        """Return :math:`1 / L_i`, ``(..., T)``, or 1 where a loss is not positive and finite."""
        return torch.where(_positive(losses), 1 / losses, 1.0)

    def _weighed(self, losses: Tensor, mask: Tensor | None, learning: bool) -> Tensor:
        if learning and world_size() > 1:
            losses, _ = over_ranks(losses, mask)
        return super()._weighed(losses, mask, learning)

    def combine(self, gradients: Sequence[Tensor], losses: Tensor) -> Combination:
        if world_size() > 1:
            losses, _ = over_ranks(losses, None)
        kept = self.beta * (self.steps + 1) ** -self.sigma
        states = [self.get_buffer(f"averages_{k}") for k in range(len(gradients))]
        y = [
            torch.lerp(gradient, rows(state, self.present), kept)
            for state, gradient in zip(states, gradients, strict=True)
        ]
        norms = joint_norms(y, self.weights.dtype)
        valid = norms.isfinite().all() & _positive(losses).all()
        factors = torch.where(norms > 0, norms.amax() / norms, 1.0)
        directions = [torch.tensordot(factors, each, 1) for each in y]
        # If they are not valid, combine this step's own gradients with the weights of the step before.
        held = rows(self.weights, self.present) / self.weigh(losses)
        directions = [
            torch.where(valid, direction, torch.tensordot(held, gradient, 1))
            for direction, gradient in zip(directions, gradients, strict=True)
        ]
        for state, average in zip(states, y, strict=True):
            keep(state, self.present, average, valid)
        self.steps.add_(valid)
        return Combination(factors, valid, directions)


def _positive(losses: Tensor) -> Tensor:
    """Return, as a bool tensor, which losses are positive and finite, and so have a logarithm."""
    return (losses > 0) & (losses < math.inf)
