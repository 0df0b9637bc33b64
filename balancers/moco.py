"""MoCo: a multi-gradient direction of gradients tracked over steps, to take out the bias of small batches."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .engine.base import Range
from .engine.combining import Combination, CombiningBalancer
from .engine.method_registry import register
from .engine.per_task_state import keep, rows


@register
class MoCo(CombiningBalancer):
    r"""Multi-objective gradient correction: MGDA's weights, followed by small steps, on moving averages of gradients.

    In step k, from 1,

    .. math:: y_i &\leftarrow y_i + \frac{\beta}{k^\sigma} (\nabla L_i - y_i) \\
        \lambda &\leftarrow \Pi_\Delta \Big( \lambda - \frac{\gamma}{k^\sigma} (Y Y^\top + \rho I) \lambda \Big),

    with the projection :math:`\Pi_\Delta` on the simplex, and the shared parameters ``wrt`` get
    :math:`\sum_i \lambda_i y_i`. The tracked gradients :math:`y_i`, the rows of :math:`Y`, start at zero,
    :math:`\lambda_i` at :math:`1/T`. All other parameters get the gradients of the losses as they are. The tracked
    gradients take as much memory as T times the parameters ``wrt``.

    Args:
        beta: :math:`\beta`, above 0 and up to 1: how much of the tracked gradients the first step replaces.
        gamma: :math:`\gamma`, positive: the step of the weights.
        sigma: :math:`\sigma`, 0 or more: how fast both get smaller.
        rho: :math:`\rho`, 0 or more: how strongly the weights are pulled to :math:`1/T`.
        fork, wrt, tasks, accumulate, check_finite: see `CombiningBalancer`. Shared parameters without a fork alone:
            their gradients are replaced. ``update_every`` must be 1.

    Raises:
        ValueError: ``beta``, ``gamma``, ``sigma`` or ``rho`` is out of range.

    Source: Fernando et al., "Mitigating Gradient Bias in Multi-objective Learning: A Provably Convergent Approach",
    ICLR 2023, algorithm 1. As in the official code the tracked gradients are updated first, so that the first step goes
    somewhere; it takes twice the step :math:`\gamma`. LibMTL also divides each gradient by its norm, multiplies it by
    the loss, and has a softmax in place of the projection.
    """

    name = "moco"
    summary = "Combines tracked gradients with weights that step towards their shortest combination."
    reads = "gradients"
    use_when = "As mgda, where batches are small and their gradients noisy."
    default_wrt = "parameters"
    undefined_for = {
        "features": "a moving average of feature gradients would mix different samples",
        "layer": "the gradients of all shared parameters are replaced, not those of one layer",
    }
    tunable = {"beta": Range(0.05, 1.0, log=True), "gamma": Range(1e-3, 1.0, log=True)}

    shares: Tensor
    r""":math:`\lambda_i`, ``(T,)``."""
    steps: Tensor
    """k, a scalar."""

    def __init__(
        self,
        *args: Any,
        beta: float = 0.5,
        gamma: float = 0.1,
        sigma: float = 0.5,
        rho: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        if self.update_every > 1:
            raise ValueError(f"update_every is {self.update_every}; but this method tracks gradients at every step")
        if not 0 < beta <= 1:
            raise ValueError(f"beta is {beta!r}; expected a number above 0 and up to 1")
        if not (math.isfinite(gamma) and gamma > 0):
            raise ValueError(f"gamma is {gamma!r}; expected a positive, finite number")
        for what, value in (("sigma", sigma), ("rho", rho)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{what} is {value!r}; expected a finite number, 0 or more")
        self.beta, self.gamma, self.sigma, self.rho = beta, gamma, sigma, rho
        self._register_constants("shares", [1 / self.num_tasks] * self.num_tasks)
        self.register_buffer("steps", torch.zeros(()))
        for k, parameter in enumerate(self._wrt or ()):
            self.register_buffer(f"tracked_{k}", torch.zeros(self.num_tasks, *parameter.shape))

    def combine(self, gradients: Sequence[Tensor], losses: Tensor) -> Combination:
        slowed = (self.steps + 1) ** -self.sigma
        states = [self.get_buffer(f"tracked_{k}") for k in range(len(gradients))]
        y = [
            torch.lerp(rows(state, self.present), gradient, self.beta * slowed)
            for state, gradient in zip(states, gradients, strict=True)
        ]
        gramian = torch.stack([each.flatten(1) @ each.flatten(1).mT for each in y]).sum(0)
        valid = gramian.isfinite().all()
        before = rows(self.shares, self.present)
        slope = gramian @ before + self.rho * before
        shares = project(before - self.gamma * slowed * slope, before.sum())
        for state, tracked in zip(states, y, strict=True):
            keep(state, self.present, tracked, valid)
        keep(self.shares, self.present, shares, valid)
        self.steps.add_(valid)
        return Combination(shares, valid, [torch.tensordot(shares, each, 1) for each in y])


def project(point: Tensor, total: Tensor) -> Tensor:
    r"""The nearest to ``point`` ``(T,)`` of all :math:`\lambda_i \ge 0` with the sum ``total``.

    Source: Held, Wolfe and Crowder, "Validation of subgradient optimization", Mathematical Programming 1974.
    """
    counts = torch.arange(1, len(point) + 1, dtype=point.dtype, device=point.device)
    thresholds = (point.sort(descending=True).values.cumsum(0) - total) / counts
    return (point - thresholds.amax()).clamp(min=0)
