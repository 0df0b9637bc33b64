"""GradNorm: train the weights so that gradient norms meet a common scale, and those of slower tasks exceed it."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .engine.base import Range
from .engine.fork import Fork
from .engine.gradients import GradientBalancer
from .engine.host_flag import Later
from .engine.loss_input import Entries, entries
from .engine.method_registry import register
from .engine.state_optimizer import OptimizerName, StateOptimizer
from .engine.window import Pass
from .static import StaticWeighting

LOWEST_WEIGHT = 1e-4
"""Lower bound of a weight; algorithm 1 alone lets weights fall below zero."""
CUBE_ROOT = 1 / 3
"""Exponent that makes a negative loss NaN in the check of a step."""


@register
class GradNorm(GradientBalancer):
    r"""Train the weights so that each task's gradient norm meets a target, which is higher for tasks that learn slowly.

    With the norms :math:`G_i = \lVert \nabla_W w_i L_i \rVert_2`, their mean over the tasks :math:`\bar G`, and the
    relative inverse training rates :math:`r_i = \tilde L_i / \overline{\tilde L}`, where
    :math:`\tilde L_i = L_i / L_i(0)`, the loss

    .. math:: L_\text{grad} = \sum_i \big| G_i - \bar G\, r_i^\alpha \big|

    is differentiated with respect to the weights :math:`w_i` alone; the target :math:`\bar G r_i^\alpha` is held
    constant. Because :math:`G_i` is linear in :math:`w_i`, the derivative is
    :math:`\operatorname{sign}(G_i - \bar G r_i^\alpha)\, \lVert \nabla_W L_i \rVert_2`, and no second backward pass
    is needed.

    Each step weighs the network's losses with :math:`w_i(t)` and then computes :math:`w_i(t+1)`. These are raised to
    at least 1e-4 and then rescaled to sum to T. The weights start at 1. Losses must be positive. A task whose loss
    has been zero from the start counts as not yet begun, :math:`\tilde L_i = 1`.

    Args:
        fork, wrt, tasks, update_every, accumulate, check_finite: see `GradientBalancer`. The paper's :math:`W` is the
            last shared layer: ``wrt=net.trunk[-1]``.
        alpha: :math:`\alpha`, the asymmetry, 0 or more: how strongly slower tasks are favoured. 0 makes all gradient
            norms equal.
        lr: learning rate of the weights; the default is the paper's.
        optimizer: optimiser of the weights, ``"adam"`` (the paper's) or ``"sgd"``.
        initial_losses: :math:`L_i(0)` if they are known, one per task or a dict by task name; for example
            :math:`\log C` for a cross-entropy over C classes. By default, those of the first step.
        freeze_after: number of valid updates after which the weights stay fixed and nothing is measured any more. The
            update that reaches this number waits for the device.

    Raises:
        ValueError: ``alpha``, ``lr``, ``optimizer``, ``initial_losses`` or ``freeze_after`` is not as described
            above.

    Source: Chen, Badrinarayanan, Lee and Rabinovich, "GradNorm: Gradient Normalization for Adaptive Loss Balancing in
    Deep Multitask Networks", ICML 2018, algorithm 1.
    """

    name = "gradnorm"
    summary = "Train the weights so that all gradient norms meet a common scale, with larger norms for slower tasks."
    use_when = "When tasks learn at different speeds and their noise is unknown; measured at the last shared layer."
    default_wrt = "layer"
    tunable = {"alpha": Range(0.0, 3.0), "lr": Range(1e-4, 1e-1, log=True)}

    next_weights: Tensor
    """:math:`w_i(t+1)`, ``(T,)``."""
    initial_losses: Tensor
    """:math:`L_i(0)`, ``(T,)``; zero until it is known."""
    shares: Tensor
    """1/T for each task, ``(T,)``."""
    weights_sum: Tensor
    """Sum over all valid updates of the weights :math:`w_i(t)` that the step used, ``(T,)``."""
    _frozen = False
    _copied: tuple[Tensor, int] | None = None
    """The tensor that `weights` is a copy of, and its version when it was copied."""

    def __init__(
        self,
        fork: Fork | None,
        wrt: nn.Module | nn.Parameter | Iterable[nn.Parameter] | None = None,
        *,
        alpha: float = 1.5,
        lr: float = 0.025,
        optimizer: OptimizerName = "adam",
        initial_losses: Sequence[float] | Mapping[str, float] | None = None,
        freeze_after: int | None = None,
        tasks: int | Sequence[str] | None = None,
        update_every: int = 1,
        accumulate: int = 1,
        check_finite: bool = False,
    ) -> None:
        super().__init__(
            fork, wrt, tasks=tasks, update_every=update_every, accumulate=accumulate, check_finite=check_finite
        )
        if not (isinstance(alpha, int | float) and math.isfinite(alpha) and alpha >= 0):
            raise ValueError(f"alpha is {alpha!r}; expected a finite number, 0 or more")
        if freeze_after is not None and not (isinstance(freeze_after, int) and freeze_after >= 0):
            raise ValueError(f"freeze_after is {freeze_after!r}; expected a number of updates, 0 or more")
        self.alpha = alpha
        self.freeze_after = freeze_after
        self.optimizer = StateOptimizer(optimizer, lr, self.num_tasks)
        self._most_updates = 0  # counts invalid ones too: only the device knows which updates were valid
        self.register_buffer("next_weights", torch.ones(self.num_tasks))
        self._register_constants("initial_losses", self._initial(initial_losses))
        self._register_constants("shares", [1 / self.num_tasks] * self.num_tasks, persistent=False)
        self._all_begun: Later | bool = initial_losses is not None
        self.register_buffer("weights_sum", torch.zeros(self.num_tasks))
        self.register_load_state_dict_post_hook(_after_loading)
        self._freeze_when_due()

    def weigh(self, losses: Tensor) -> Tensor:
        """Return :math:`w_i(t)`, ``(T,)``."""
        latest = self.next_weights, self.next_weights._version
        if self._copied is None or self._copied[0] is not latest[0] or self._copied[1] != latest[1]:
            self._copied = latest
            return latest[0].clone()
        return self.weights  # still equal: no update since the last copy

    def adapt(self, losses: Tensor, gradient_norms: Tensor, given: Tensor | None) -> Tensor:
        weights = self.next_weights
        # The mean over the given tasks is a dot product with equal shares that sum to 1.
        shares = self.shares if given is None else self.shares * given / torch.dot(self.shares, given.to(losses.dtype))
        ratios = self._loss_ratios(losses)
        rates = ratios / torch.dot(ratios, shares)
        weighted_norms = weights * gradient_norms
        targets = torch.dot(weighted_norms, shares) * rates**self.alpha
        gradient = torch.sign(weighted_norms - targets) * gradient_norms
        # Not finite if any loss, norm or target is not. The cube root makes a negative loss NaN; it is a power
        # because the step uses that operator already.
        valid = torch.dot(losses**CUBE_ROOT, targets) < math.inf

        known = valid if given is None else valid & given

        if not self._begun:
            self._begin_where(known, losses)
        self.weights_sum.addcmul_(weights, valid)
        self.optimizer.update(weights, gradient, valid, given)
        torch.where(known, self._renormalized(weights, shares, given), weights, out=weights)

        self.statistics.update(loss_ratios=ratios, gradient_norms=weighted_norms, targets=targets)
        if self.freeze_after is not None:
            self._most_updates += 1
            if self._most_updates >= self.freeze_after:
                self._freeze_when_due()
        return valid

    def _loss_ratios(self, losses: Tensor) -> Tensor:
        """Return each loss over its initial value, or 1 where that value is not known yet."""
        ratios = losses / self.initial_losses
        return ratios if self._begun else torch.where(self.initial_losses > 0, ratios, 1.0)

    def _begin_where(self, known: Tensor, losses: Tensor) -> None:
        """Store the losses as the initial ones of those ``known`` tasks that have none yet."""
        initial = self.initial_losses
        torch.where(known & (initial == 0), losses, initial, out=initial)
        if not (initial.is_cuda and torch.cuda.is_current_stream_capturing()):
            self._all_begun = Later((initial > 0).all())

    @property
    def _begun(self) -> bool:
        """Return whether the CPU knows that every task has an initial loss; later steps then skip the search."""
        if isinstance(self._all_begun, Later) and self._all_begun.is_true():
            self._all_begun = True
        return self._all_begun is True

    def average_weights(self) -> StaticWeighting:
        """Return *GradNorm static*: a balancer with the mean weights of all updates so far, :math:`E_t[w_i(t)]`.

        Use it to train a network anew.

        Raises:
            RuntimeError: there was no valid update yet.
        """
        if not self.optimizer.step:
            raise RuntimeError("there are no weights to average before GradNorm's first update")
        return StaticWeighting(self.weights_sum / self.optimizer.step, tasks=self.tasks)

    def _renormalized(self, weights: Tensor, shares: Tensor, given: Tensor | None) -> Tensor:
        """Return weights of at least `LOWEST_WEIGHT` that sum to T; tasks without a loss keep theirs."""
        raised = weights.clamp(min=LOWEST_WEIGHT)
        if given is None:
            return raised / torch.dot(raised, shares)
        held = (weights * ~given).sum()
        return raised * ((self.num_tasks - held) / (raised * given).sum())

    def not_capturable(self) -> str | None:
        if self.freeze_after is not None:
            return "with freeze_after its steps are not all alike"
        return super().not_capturable()

    @property
    def _measuring(self) -> bool:
        return not self._frozen and super()._measuring

    def _watch(self, stacked: Tensor, losses: Entries, this: Pass) -> None:
        if not self._frozen:
            super()._watch(stacked, losses, this)

    def _freeze_when_due(self) -> None:
        self._most_updates = int(self.optimizer.step)
        self._frozen = self.freeze_after is not None and self._most_updates >= self.freeze_after
        self._set_recording()

    def _initial(self, losses: Sequence[float] | Mapping[str, float] | None) -> list[float]:
        if losses is None:
            return [0.0] * self.num_tasks
        if isinstance(losses, Mapping):
            if self.tasks is None or set(losses) != set(self.tasks):
                raise ValueError(f"initial_losses names ({', '.join(losses)}), but {self._reader.made_for()}")
            losses = [losses[task] for task in self.tasks]
        values = [float(loss) for loss in losses]
        if len(values) != self.num_tasks:
            raise ValueError(f"initial_losses has {entries(values)}, but {self._reader.made_for()}")
        if not all(math.isfinite(value) and value > 0 for value in values):
            raise ValueError(f"initial_losses is {values}; expected positive, finite numbers")
        return values


def _after_loading(balancer: nn.Module, _: object) -> None:
    assert isinstance(balancer, GradNorm)
    balancer._all_begun = bool((balancer.initial_losses > 0).all())
    balancer._freeze_when_due()
