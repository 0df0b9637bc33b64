"""MoCo: combine gradients tracked over steps, to remove the bias of small batches."""

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
    r"""Follow MGDA's weights in small steps, on moving averages of the gradients (multi-objective gradient correction).

    In step k, counted from 1,

    .. math:: y_i &\leftarrow y_i + \frac{\beta}{k^\sigma} (\nabla L_i - y_i) \\
        \lambda &\leftarrow \Pi_\Delta \Big( \lambda - \frac{\gamma}{k^\sigma} (Y Y^\top + \rho I) \lambda \Big),

    where :math:`\Pi_\Delta` projects onto the simplex, and :math:`Y` has the tracked gradients :math:`y_i` as rows.
    The shared parameters ``wrt`` receive :math:`\sum_i \lambda_i y_i`; all other parameters receive the gradients of
    the losses as they are. :math:`y_i` starts at zero, and :math:`\lambda_i` at :math:`1/T`. The tracked gradients
    take as much memory as T copies of the parameters ``wrt``.

    Args:
        beta: :math:`\beta`, above 0 and up to 1: fraction of the tracked gradients that the first step replaces.
        gamma: :math:`\gamma`, positive: step size of the weights in the first step.
        sigma: :math:`\sigma`, 0 or more: how fast the fraction and the step size shrink from step to step.
        rho: :math:`\rho`, 0 or more: how strongly the weights are pulled to :math:`1/T`.
        fork, wrt, tasks, accumulate, check_finite: see `CombiningBalancer`. The method replaces the gradients of the
            shared parameters, so give these as ``wrt``, with ``fork=None``. ``update_every`` must be 1.

    Raises:
        ValueError: ``beta``, ``gamma``, ``sigma`` or ``rho`` is out of range, ``update_every`` is not 1, or a fork is
            given.

    Source: Fernando et al., "Mitigating Gradient Bias in Multi-objective Learning: A Provably Convergent Approach",
    ICLR 2023, algorithm 1. As in the official code, the tracked gradients are updated first, so that the first step
    is not zero. The official code takes twice the step :math:`\gamma`. LibMTL also divides each gradient by its norm,
    multiplies it by the loss, and has a softmax in place of the projection.
    """

    name = "moco"
    summary = "Combine tracked gradients with weights that step towards their shortest combination."
    reads = "gradients"
    use_when = "Instead of mgda, when batches are small and their gradients noisy."
    default_wrt = "parameters"
    undefined_for = {
        "features": "a moving average of feature gradients would mix different samples",
        "layer": "it replaces the gradients of all shared parameters, not those of one layer",
    }
    tunable = {"beta": Range(0.05, 1.0, log=True), "gamma": Range(1e-3, 1.0, log=True)}

    shares: Tensor
    r""":math:`\lambda_i`, ``(T,)``."""
    steps: Tensor
    """Number of valid steps so far: k - 1 in step k; a scalar."""

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
            raise ValueError(f"update_every is {self.update_every}; expected 1: gradients are tracked at every step")
        if not 0 < beta <= 1:
            raise ValueError(f"beta is {beta!r}; expected a number above 0 and up to 1")
        if not (math.isfinite(gamma) and gamma > 0):
            raise ValueError(f"gamma is {gamma!r}; expected a positive, finite number")
        for option, value in (("sigma", sigma), ("rho", rho)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{option} is {value!r}; expected a finite number, 0 or more")
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
    r"""Return the point nearest to ``point``, ``(T,)``, among all :math:`\lambda_i \ge 0` whose sum is ``total``.

    Source: Held, Wolfe and Crowder, "Validation of subgradient optimization", Mathematical Programming 1974.
    """
    counts = torch.arange(1, len(point) + 1, dtype=point.dtype, device=point.device)
    thresholds = (point.sort(descending=True).values.cumsum(0) - total) / counts
    return (point - thresholds.amax()).clamp(min=0)
