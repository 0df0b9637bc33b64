"""ExcessMTL: give more weight to a task, the further it is from the best it can do."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .engine.base import Range
from .engine.combining import Combination, CombiningBalancer
from .engine.method_registry import register
from .engine.per_task_state import keep, rows

EPSILON = 1e-7
"""Added to the sums of squared gradients before the square root is taken."""


@register
class ExcessMTL(CombiningBalancer):
    r"""Give weight to tasks with a large excess risk: the distance from a task's own optimum, not the size of its loss.

    The excess risk is estimated to second order, with a diagonal matrix of squared gradients, which are summed over
    all steps s so far:

    .. math:: E_i = \nabla L_i^\top H_i^{-1} \nabla L_i, \quad
        H_i = \operatorname{diag} \Big( \sum_s \nabla L_i(s)^2 + 10^{-7} \Big)^{1/2}

    Each risk is divided by its value in the task's first step. These ratios update multiplicative weights, whose sum
    is 1:

    .. math:: w_i \leftarrow \frac{w_i\, e^{\eta E_i / E_i(0)}}{\sum_j w_j\, e^{\eta E_j / E_j(0)}}

    The weights start at :math:`1/T`. A task whose gradient has been zero from the start counts as not yet begun:
    :math:`E_i / E_i(0) = 1`. The sums take as much memory as T copies of the parameters ``wrt``.

    Args:
        step_size: :math:`\eta`, positive; the default is LibMTL's.
        fork, wrt, tasks, update_every, accumulate, check_finite: see `CombiningBalancer`. The paper measures all
            shared parameters.

    Raises:
        ValueError: ``step_size`` is not positive and finite.

    Source: He et al., "Robust Multi-Task Learning with Excess Risks", ICML 2024, eqs. 6, 7 and 9. As in the official
    code, risks are divided by those of the first step; the paper's appendix uses the mean over a warm-up instead. The
    weights of the official code sum to T. TorchJD without a warm-up adds an update by the first step's risks as they
    are.
    """

    name = "excess-mtl"
    summary = "Give weight to tasks that are far from their own optimum, as estimated from accumulated gradients."
    reads = "gradients"
    use_when = "When some labels are noisy: a large loss that cannot fall any further gets little weight."
    default_wrt = "parameters"
    undefined_for = {"features": "the sums of squared feature gradients would mix different samples"}
    tunable = {"step_size": Range(1e-3, 1.0, log=True)}

    log_weights: Tensor
    r""":math:`\log w_i`, ``(T,)``."""
    initial_risks: Tensor
    """:math:`E_i(0)`, ``(T,)``; zero until it is known."""

    def __init__(self, *args: Any, step_size: float = 0.01, **options: Any) -> None:
        super().__init__(*args, **options)
        if not (math.isfinite(step_size) and step_size > 0):
            raise ValueError(f"step_size is {step_size!r}; expected a positive, finite number")
        self.step_size = step_size
        self._register_constants("log_weights", [-math.log(self.num_tasks)] * self.num_tasks)
        self.register_buffer("initial_risks", torch.zeros(self.num_tasks))
        for k, parameter in enumerate(self._wrt or ()):
            self.register_buffer(f"squares_{k}", torch.zeros(self.num_tasks, *parameter.shape))

    def combine(self, gradients: Sequence[Tensor], losses: Tensor) -> Combination:
        sums = [self.get_buffer(f"squares_{k}") for k in range(len(gradients))]
        new = [rows(old, self.present) + gradient.square() for old, gradient in zip(sums, gradients, strict=True)]
        risks = torch.stack(
            [
                (gradient.square() / (squares + EPSILON).sqrt()).flatten(1).sum(1)
                for gradient, squares in zip(gradients, new, strict=True)
            ]
        ).sum(0)
        valid = torch.stack([*(squares.sum() for squares in new), risks.sum()]).isfinite().all()
        initial = rows(self.initial_risks, self.present)
        initial = torch.where(initial > 0, initial, risks)
        relative = torch.where(initial > 0, risks / initial, 1.0)
        before = rows(self.log_weights, self.present)
        log_weights = torch.log_softmax(before + self.step_size * relative, -1) + before.logsumexp(-1)
        for old, squares in zip(sums, new, strict=True):
            keep(old, self.present, squares, valid)
        keep(self.initial_risks, self.present, initial, valid)
        keep(self.log_weights, self.present, log_weights, valid)
        return Combination(log_weights.exp(), valid)
