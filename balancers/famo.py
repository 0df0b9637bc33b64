"""FAMO: learn the weights from how much each log-loss fell in the last step."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .engine.base import LossBalancer, Range
from .engine.loss_input import Entries, Losses, per_task, stack
from .engine.method_registry import register
from .engine.ranks import over_ranks, world_size
from .engine.state_optimizer import StateOptimizer
from .engine.window import Pass


@register
class FAMO(LossBalancer):
    r"""Make all losses fall at the same rate (fast adaptive multitask optimization).

    The network is trained on the log-losses, weighted by :math:`z = \operatorname{softmax}(\xi)`. In terms of the
    losses' own gradients, and scaled to sum to 1, the weights are

    .. math:: w_i = c\, \frac{z_i}{L_i - b_i}, \quad c = \Big( \sum_j \frac{z_j}{L_j - b_j} \Big)^{-1}

    After the network's optimiser has stepped, ``after_step`` takes the losses :math:`L'` of the same batch and
    updates :math:`\xi`:

    .. math:: \xi \leftarrow \operatorname{Adam}\big(\xi, J^\top \delta + \gamma \xi\big), \quad
        \delta_i = \log (L_i - b_i) - \log (L'_i - b_i)

    with the Jacobian :math:`J` of the softmax. A task whose log-loss fell less than the others' gains weight.
    :math:`\xi` starts at 0. The cost is one more forward pass::

        loss = balancer(losses(batch))
        ...
        optimizer.step()
        with torch.no_grad():
            balancer.after_step(losses(batch))

    Args:
        tasks: see `LossBalancer`.
        min_losses: :math:`b_i`, 0 or more, a lower bound of each loss: one number for all tasks, one per task, or a
            dict by task name.
        lr: learning rate of :math:`\xi`; 0.025 in the paper.
        gamma: :math:`\gamma`, how strongly :math:`\xi` is pulled to 0; 1e-3 in the paper, 0.01 in the official code's
            example.
        accumulate, check_finite: see `LossBalancer`. ``after_step`` refers to the last pass before it.

    Raises:
        ValueError: ``lr`` is not positive, ``gamma`` or ``min_losses`` is negative or not finite, or the number or
            the names of ``min_losses`` are not those of the tasks.

    Source: Liu, Feng, Stone and Liu, "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023, algorithm 1. As in
    the official code, Adam updates :math:`\xi`, where the algorithm takes plain steps. The official code also adds
    1e-8 in the logarithms and clips the network's gradient; this class does neither.
    """

    name = "famo"
    summary = "Make all losses fall at the same rate, judged by how far each fell in the last step."
    reads = "losses"
    needs_positive_losses = True
    looks_again = True
    use_when = "For many tasks of different scales, if a second forward pass is cheaper than a gradient for each task."
    tunable = {"lr": Range(2.5e-3, 0.25, log=True), "gamma": Range(1e-4, 1e-2, log=True)}

    log_shares: Tensor
    r""":math:`\xi_i`, ``(T,)``."""
    min_losses: Tensor
    """:math:`b_i`, ``(T,)``."""

    def __init__(
        self,
        tasks: int | Sequence[str],
        *,
        min_losses: float | Sequence[float] | Mapping[str, float] = 0.0,
        lr: float = 0.025,
        gamma: float = 1e-3,
        accumulate: int = 1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(tasks, accumulate=accumulate, check_finite=check_finite)
        lowest = per_task("min_losses", min_losses, self._reader)
        if not all(math.isfinite(value) and value >= 0 for value in lowest):
            raise ValueError(f"min_losses is {lowest}; expected finite numbers, 0 or more")
        if not (math.isfinite(gamma) and gamma >= 0):
            raise ValueError(f"gamma is {gamma!r}; expected a finite number, 0 or more")
        self.gamma = gamma
        self.optimizer = StateOptimizer("adam", lr, self.num_tasks)
        self.register_buffer("log_shares", torch.zeros(self.num_tasks))
        self._register_constants("min_losses", lowest, persistent=False)
        self._before: tuple[Tensor, tuple[bool, ...] | None] | None = None

    def weigh(self, losses: Tensor) -> Tensor:
        """Return :math:`c z_i / (L_i - b_i)`, ``(..., T)``, or the last weights if a loss is not above its minimum."""
        gaps = losses - self.min_losses
        weights = torch.softmax(self.log_shares, -1) / gaps
        return torch.where((gaps > 0).all(-1, keepdim=True), weights / weights.sum(-1, keepdim=True), self.weights)

    def after_step(self, losses: Losses) -> None:
        """Update the weights from the losses of the last pass's batch, computed again after the optimiser's step.

        Raises:
            TypeError, ValueError: the losses do not fit this balancer, or are of other tasks than in the last pass.
            RuntimeError: there was no pass in training mode since the last call.
            FloatingPointError: with ``check_finite``, a loss is not valid.
        """
        in_order, given = self._reader.read(losses, learning=False)
        if self._before is None:
            raise RuntimeError("after_step needs a pass before it: call the balancer in training mode, then backward")
        before, given_before = self._before
        if given != given_before:
            raise ValueError(
                "after_step got the losses of other tasks than the call before it: pass the same tasks' losses, of the "
                "same batch"
            )
        self._before = None
        both = torch.stack([each.to(self.weights.dtype) for each in (before, stack(in_order).detach())])
        mask = None if given is None else self._mask(given)
        if world_size() > 1:
            means = [over_ranks(each, mask) for each in both]
            both, mask = torch.stack([mean for mean, _ in means]), means[0][1]
        valid = self._learn(both - self.min_losses, None if mask is None else mask > 0)
        if self.check_finite and not valid:
            raise FloatingPointError("this step's losses are not valid; the balancer's state is unchanged")

    def _learn(self, gaps: Tensor, given: Tensor | None) -> Tensor:
        r"""Update :math:`\xi`, and return a bool scalar: whether all gaps were positive and finite.

        Args:
            gaps: ``(2, T)``, how far each loss was above its minimum, before and after the optimiser's step.
            given: ``(T,)``, true for tasks that had a loss; None if all had.
        """
        log_shares = self.log_shares
        if given is not None:
            gaps = torch.where(given, gaps, 1.0)
            log_shares = torch.where(given, log_shares, -math.inf)
        shares = torch.softmax(log_shares, -1)
        before, after = gaps.log()
        fall = before - after
        gradient = shares * (fall - torch.dot(shares, fall)) + self.gamma * self.log_shares
        valid = ((gaps > 0) & (gaps < math.inf)).all()
        self.optimizer.update(self.log_shares, gradient, valid, given)
        return valid

    def _watch(self, stacked: Tensor, losses: Entries, this: Pass) -> None:
        given = None if this.given is None else tuple(loss is not None for loss in losses)
        self._before = this.losses, given
        super()._watch(stacked, losses, this)
