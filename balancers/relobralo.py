"""ReLoBRaLo: compare each loss with the step before and, now and then, with the first step."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .engine.base import LossBalancer, Range, _positive
from .engine.method_registry import register
from .engine.rng import Draws


@register
class ReLoBRaLo(LossBalancer):
    r"""Make all losses fall by the same factor (relative loss balancing with random lookback).

    The progress of the losses since step :math:`t'` gives the weights

    .. math:: \hat\lambda_i(t, t') = T\, \frac{e^{L_i(t) / (\tau L_i(t'))}}{\sum_j e^{L_j(t) / (\tau L_j(t'))}}.

    The weights used are an exponential average of those for :math:`t' = t - 1`. In each step a random number
    :math:`\rho` decides what to average with: with probability :math:`E[\rho]` it is 1 and keeps the history;
    otherwise it is 0 and begins a new history by looking back to the first step:

    .. math:: w_i(t) = \alpha \big( \rho\, w_i(t - 1) + (1 - \rho)\, \hat\lambda_i(t, 0) \big)
        + (1 - \alpha)\, \hat\lambda_i(t, t - 1)

    The weights sum to T, and :math:`w_i(0) = 1`. The scale of a loss cancels out. A task without a loss in a step
    keeps its weight; for the other tasks' weights it counts with its last loss.

    Args:
        tasks: see `LossBalancer`.
        alpha: :math:`\alpha`, from 0 to 1: fraction of the history that a step keeps.
        temperature: :math:`\tau`, positive. The larger it is, the more equal are the weights.
        rho: :math:`E[\rho]`, from 0 to 1. The paper tunes ``alpha``, ``temperature`` and ``rho``.
        seed: seed of the random numbers.
        accumulate, check_finite: see `LossBalancer`.

    Raises:
        ValueError: ``alpha``, ``temperature`` or ``rho`` is out of range, or ``seed`` is not an integer, 0 or more.

    Source: Bischof and Kraus, "Multi-Objective Loss Balancing for Physics-Informed Deep Learning", arXiv:2110.09813,
    2021, eq. 11. The official code takes the second step's losses for the first's, has :math:`\alpha = 0` in that
    step, and adds 1e-12 to the denominators.
    """

    name = "relobralo"
    summary = "Make all losses fall by the same factor, compared with the step before or, at random, the first."
    use_when = "When losses are the terms of one problem, as in physics-informed networks, and batches are not noisy."
    reads = "losses"
    needs_positive_losses = True
    random = True
    tunable = {
        "alpha": Range(0.9, 0.9999),
        "temperature": Range(1e-2, 10.0, log=True),
        "rho": Range(0.9, 1.0),
    }

    history: Tensor
    """:math:`w_i(t - 1)`, ``(T,)``."""
    initial_losses: Tensor
    """:math:`L_i(0)`, ``(T,)``; zero until it is known."""
    previous_losses: Tensor
    """:math:`L_i(t - 1)`, ``(T,)``; zero until it is known."""
    keeps: Tensor
    r""":math:`\rho` of the next step, a scalar."""
    _draws: Draws

    def __init__(
        self,
        tasks: int | Sequence[str],
        *,
        alpha: float = 0.999,
        temperature: float = 0.1,
        rho: float = 0.999,
        seed: int = 0,
        accumulate: int = 1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(tasks, accumulate=accumulate, check_finite=check_finite)
        for option, value in (("alpha", alpha), ("rho", rho)):
            if not 0 <= value <= 1:
                raise ValueError(f"{option} is {value!r}; expected a number from 0 to 1")
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature is {temperature!r}; expected a positive, finite number")
        self.alpha, self.temperature, self.rho = alpha, temperature, rho
        self._draws = Draws(seed)
        self.register_buffer("history", torch.ones(self.num_tasks))
        self.register_buffer("initial_losses", torch.zeros(self.num_tasks))
        self.register_buffer("previous_losses", torch.zeros(self.num_tasks))
        self.register_buffer("keeps", torch.ones(()))

    def weigh(self, losses: Tensor) -> Tensor:
        """Return weights of shape ``(..., T)`` for positive ``losses`` of shape ``(..., T)``."""
        kept = torch.where(self.keeps > 0, self.history, self._balance(losses, self.initial_losses))
        return torch.lerp(self._balance(losses, self.previous_losses), kept, self.alpha)

    def _balance(self, losses: Tensor, before: Tensor) -> Tensor:
        r"""Return :math:`\hat\lambda_i`, ``(..., T)``; a task whose loss ``before`` is unknown counts as constant."""
        ratios = losses / (self.temperature * torch.where(before > 0, before, losses))
        ratios = ratios.clamp(max=torch.finfo(losses.dtype).max)  # a softmax of inf is NaN
        return self.num_tasks * torch.softmax(ratios, -1)

    def update(self, losses: Tensor, given: Tensor | None) -> Tensor:
        if given is not None:
            last = torch.where(self.previous_losses > 0, self.previous_losses, 1.0)
            losses = torch.where(given, losses, last)
        valid = _positive(losses)
        known = valid if given is None else valid & given
        initial = torch.where(self.initial_losses > 0, self.initial_losses, losses)
        self.history.copy_(torch.where(known, self.weigh(losses), self.history))
        self.initial_losses.copy_(torch.where(known, initial, self.initial_losses))
        self.previous_losses.copy_(torch.where(known, losses, self.previous_losses))
        draw = torch.rand((), dtype=losses.dtype, device=losses.device, generator=self._draws.on(losses.device))
        self.keeps.copy_(torch.where(valid, draw < self.rho, self.keeps))
        return valid
