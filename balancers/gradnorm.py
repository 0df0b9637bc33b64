"""GradNorm: train the weights so that gradient norms meet a common scale, and those of slower tasks exceed it."""

import torch
from torch import Tensor

from .engine import GradientBalancer, LearnedState, Range, Read, Result, State, option, register, state
from .static import StaticWeighting

LOWEST_WEIGHT = 1e-4
"""Lower bound of a weight; algorithm 1 alone lets weights fall below zero."""


@register
class GradNorm(GradientBalancer, LearnedState):
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
    at least 1e-4 and then rescaled to sum to T. The weights start at 1. Losses must be zero or more. A task whose loss
    has been zero from the start counts as not yet begun, :math:`\tilde L_i = 1`. Where all losses of a step are zero,
    all :math:`r_i` are 1.

    Args:
        fork, wrt, options: see `GradientBalancer`. The paper's :math:`W` is the
            last shared layer: ``wrt=net.trunk[-1]``.
        alpha: :math:`\alpha`, the asymmetry, 0 or more: how strongly slower tasks are favoured. 0 makes all gradient
            norms equal.
        lr: learning rate of the weights; the default is the paper's.
        optimizer: optimiser of the weights, ``"adam"`` (the paper's) or ``"sgd"``.
        initial_losses: :math:`L_i(0)` if they are known, one per task or a dict by task name; for example
            :math:`\log C` for a cross-entropy over C classes. By default, those of the first step.
        freeze_after: number of valid updates after which the weights stay fixed. From when the host learns of it, which
            on the CPU is at once, nothing is measured any more.

    Raises:
        ValueError: ``alpha``, ``lr``, ``optimizer``, ``initial_losses`` or ``freeze_after`` is not as described
            above.

    Example::

        balancer = GradNorm(net.fork, wrt=net.trunk[-1], alpha=1.5, update_every=10)
        balancer(losses).backward()
        balancer.statistics["gradient_norms"]  # those of the weighted losses, (T,)

    Source: Chen, Badrinarayanan, Lee and Rabinovich, "GradNorm: Gradient Normalization for Adaptive Loss Balancing in
    Deep Multitask Networks", ICML 2018, algorithm 1.
    """

    name = "gradnorm"
    summary = "Train the weights so that all gradient norms meet a common scale, with larger norms for slower tasks."
    use_when = "When tasks learn at different speeds and their noise is unknown; measured at the last shared layer."
    default_wrt = "layer"

    needs_nonnegative_losses = True
    alpha: float = option(1.5, at_least=0, tune=Range(0.0, 3.0))
    freeze_after: int | None = option(None, at_least=0, whole=True)
    learns = "next_weights"
    next_weights: Tensor = state(1.0)
    """:math:`w_i(t+1)`, ``(T,)``."""
    initial_losses: Tensor = state(option=option(None, above=0, per_task=True))
    """:math:`L_i(0)`, ``(T,)``; zero until it is known."""
    weights_sum: Tensor = state()
    """Sum over each task's valid `updates` of the weight :math:`w_i(t)` that the step used, ``(T,)``."""

    def weigh(self, state: State) -> Tensor:
        """Return :math:`w_i(t)`, ``(T,)``."""
        return state["next_weights"]

    def update(self, read: Read, state: State) -> Result:
        weights, initial = state["next_weights"], state["initial_losses"]
        begun = initial > 0
        ratios = torch.where(begun, read.losses / initial, 1.0)
        weighted_norms = weights * read.norms
        mean_norm, mean_ratio = weighted_norms.mean(), ratios.mean()
        rates = torch.where(mean_ratio > 0, ratios / mean_ratio, 1.0)
        targets = mean_norm * rates**self.alpha
        gradient = torch.sign(weighted_norms - targets) * read.norms

        new = {
            "initial_losses": torch.where(begun, initial, read.losses),
            "weights_sum": state["weights_sum"] + weights,
        }
        shown = {"loss_ratios": ratios, "gradient_norms": weighted_norms, "targets": targets}
        return Result(state=new, gradient=gradient, statistics=shown)

    def project(self, values: Tensor, read: Read) -> Tensor:
        """Return weights of at least 1e-4, scaled so that those of all tasks sum to T."""
        raised = values.clamp(min=LOWEST_WEIGHT)
        if isinstance(read.rest, Tensor):  # the weights of tasks that were left out
            return raised / (raised.sum() / (self.num_tasks - read.rest))
        return raised / raised.mean()

    @property
    def updates(self) -> Tensor:
        """The number of valid updates that each task took part in, ``(T,)``."""
        return self.task_steps

    def settled(self, state: State) -> Tensor | None:
        return None if self.freeze_after is None else state["optimizer_steps"] >= self.freeze_after

    def average_weights(self) -> StaticWeighting:
        """Return *GradNorm static*: a balancer with the mean weights of all updates so far, :math:`E_t[w_i(t)]`.

        Use it to train a network anew.

        Raises:
            RuntimeError: a task has had no valid update yet.
        """
        if not self.updates.all():
            raise RuntimeError("there are no weights to average before GradNorm's first update")
        return StaticWeighting(self.weights_sum / self.updates, tasks=self.tasks)

    def not_capturable(self) -> str | None:
        frozen = self.freeze_after is not None
        return "with freeze_after its steps are not all alike" if frozen else super().not_capturable()
