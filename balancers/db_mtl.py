"""DB-MTL: log-losses, and averaged gradients all brought to the largest one's norm."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .engine.base import Range, over_ranks, world_size
from .engine.combining import Combination, CombiningBalancer
from .engine.measure import joint_norms
from .engine.method_registry import register
from .engine.per_task_state import keep, rows


@register
class DBMTL(CombiningBalancer):
    r"""Dual balancing: of loss scales by logarithms, of gradient magnitudes by the largest norm.

    In step k, from 1,

    .. math:: y_i \leftarrow \beta_k\, y_i + (1 - \beta_k) \nabla \log L_i, \quad \beta_k = \beta / k^\sigma,

    and the shared parameters ``wrt`` get

    .. math:: \max_j \lVert y_j \rVert\, \sum_i \frac{y_i}{\lVert y_i \rVert}.

    All other parameters get the gradients of the log-losses. The averages :math:`y_i` start at zero, and take as much
    memory as T times the parameters ``wrt``; they are not corrected for that start, which an Adam does not notice.
    ``weights`` is what the losses' own gradients, of this step, are multiplied by. A loss's scale cancels out.

    Args:
        beta: :math:`\beta`, from 0 up to, not including, 1: what the average keeps of itself.
        sigma: :math:`\sigma`, 0 or more: how fast that gets less; the paper has 0 or 0.5.
        fork, wrt, tasks, accumulate, check_finite: see `CombiningBalancer`. Shared parameters without a fork alone:
            their gradients are replaced. ``update_every`` must be 1.

    Raises:
        ValueError: ``beta`` or ``sigma`` is out of range.

    Source: Lin et al., "Dual-Balancing for Multi-Task Learning", arXiv 2023, algorithm 1. The defaults are those of
    LibMTL, the authors' code, whose 1e-8 in logarithm and norm are left out.
    """

    name = "db-mtl"
    summary = "Trains on log-losses, with averaged gradients all brought to the largest one's norm."
    reads = "gradients"
    heads = "weighted"
    needs_positive_losses = True
    use_when = "Losses and gradients of very different scales, all tasks alike important."
    default_wrt = "parameters"
    undefined_for = {
        "features": "a moving average of feature gradients would mix different samples",
        "layer": "the gradients of all shared parameters are replaced, not those of one layer",
    }
    tunable = {"beta": Range(0.1, 0.9), "sigma": Range(0.0, 0.5)}

    steps: Tensor
    """k, a scalar."""

    def __init__(self, *args: Any, beta: float = 0.9, sigma: float = 0.0, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.update_every > 1:
            raise ValueError(f"update_every is {self.update_every}; but this method tracks gradients at every step")
        if not 0 <= beta < 1:
            raise ValueError(f"beta is {beta!r}; expected a number from 0 up to, not including, 1")
        if not (math.isfinite(sigma) and sigma >= 0):
            raise ValueError(f"sigma is {sigma!r}; expected a finite number, 0 or more")
        self.beta, self.sigma = beta, sigma
        self.register_buffer("steps", torch.zeros(()))
        for k, parameter in enumerate(self._wrt or ()):
            self.register_buffer(f"averages_{k}", torch.zeros(self.num_tasks, *parameter.shape))

    def weigh(self, losses: Tensor) -> Tensor:
        """:math:`1 / L_i`, ``(..., T)``; 1 where that is not positive and finite."""
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
        # Where they are not valid, the step is one of this step's gradients, by the weights of the step before.
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
    """Where losses have a logarithm, bool."""
    return (losses > 0) & (losses < math.inf)
