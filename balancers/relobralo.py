"""ReLoBRaLo: compare each loss with the step before and, now and then, with the first step."""

import torch
from torch import Tensor

from .engine import Draws, LossBalancer, Range, Read, Result, State, option, register, state


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
    keeps its weight, and the other tasks share the rest: in place of T there stands the sum of their :math:`w_j(t-1)`.

    Args:
        tasks: see `LossBalancer`.
        alpha: :math:`\alpha`, from 0 to 1: fraction of the history that a step keeps.
        temperature: :math:`\tau`, positive. The larger it is, the more equal are the weights.
        rho: :math:`E[\rho]`, from 0 to 1. The paper tunes ``alpha``, ``temperature`` and ``rho``.
        seed: seed of the random numbers, which ``torch.manual_seed`` does not change.
        options: see `LossBalancer`.

    Raises:
        ValueError: ``alpha``, ``temperature`` or ``rho`` is out of range, or ``seed`` is not an integer, 0 or more.

    Example::

        balancer = ReLoBRaLo(["equation", "boundary"], alpha=0.99, temperature=0.1, rho=0.999)
        balancer(losses).backward()

    Source: Bischof and Kraus, "Multi-Objective Loss Balancing for Physics-Informed Deep Learning", Computer Methods
    in Applied Mechanics and Engineering 2025; arXiv:2110.09813, eq. 11. The official code takes the second step's
    losses for the first's, has :math:`\alpha = 0` in that step, and adds 1e-12 to the denominators.
    """

    name = "relobralo"
    summary = "Make all losses fall by the same factor, compared with the step before or, at random, the first."
    use_when = "When losses are the terms of one problem, as in physics-informed networks, and batches are not noisy."
    reads = "losses"
    needs_positive_losses = True
    alpha: float = option(0.999, at_least=0, at_most=1, tune=Range(0.9, 0.9999))
    temperature: float = option(0.1, above=0, tune=Range(1e-2, 10.0, log=True))
    rho: float = option(0.999, at_least=0, at_most=1, tune=Range(0.9, 1.0))
    history: Tensor = state(1.0)
    """:math:`w_i(t - 1)`, ``(T,)``."""
    initial_losses: Tensor = state()
    """:math:`L_i(0)`, ``(T,)``; zero until it is known."""
    previous_losses: Tensor = state()
    """:math:`L_i(t - 1)`, ``(T,)``; zero until it is known."""
    keeps: Tensor = state(1.0, shape="")
    r""":math:`\rho` of the next step, a scalar."""

    def weigh(self, losses: Tensor, state: State) -> Tensor:
        """Return weights of shape ``(..., T)`` for positive ``losses`` of shape ``(..., T)``."""
        some = losses.shape[-1] < self.num_tasks
        total = state["history"].sum(-1, keepdim=True) if some else self.num_tasks
        kept = torch.where(state["keeps"] > 0, state["history"], self._balance(losses, state["initial_losses"], total))
        return torch.lerp(self._balance(losses, state["previous_losses"], total), kept, self.alpha)

    def _balance(self, losses: Tensor, before: Tensor, total: Tensor | int) -> Tensor:
        r"""Return :math:`\hat\lambda_i`, ``(..., T)``, whose sum is ``total``.

        A task whose loss ``before`` is unknown counts as constant.
        """
        ratios = losses / (self.temperature * torch.where(before > 0, before, losses))
        ratios = ratios.clamp(max=torch.finfo(losses.dtype).max)  # a softmax of inf is NaN
        return total * torch.softmax(ratios, -1)

    def update(self, read: Read, state: State, draws: Draws) -> Result:
        initial = state["initial_losses"]
        new = {
            "history": self.weigh(read.losses, state),
            "initial_losses": torch.where(initial > 0, initial, read.losses),
            "previous_losses": read.losses,
            "keeps": (draws.uniform() < self.rho).to(initial.dtype),
        }
        return Result(state=new)
