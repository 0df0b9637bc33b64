"""Learning-rate annealing: lift boundary and data terms to the largest gradient entry of a residual."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .engine.base import Range
from .engine.combining import Combination, CombiningBalancer
from .engine.method_registry import register
from .engine.per_task_state import keep, rows


@register
class LearningRateAnnealing(CombiningBalancer):
    r"""Lift each term's mean gradient towards the largest gradient entry of a reference term.

    The reference :math:`L_r` is the residual of a differential equation. The weights are moving averages:

    .. math:: \hat\lambda_i = \frac{\max |\nabla L_r|}{\operatorname{mean} |\lambda_i \nabla L_i|}, \quad
        \lambda_i \leftarrow (1 - \alpha) \lambda_i + \alpha \hat\lambda_i.

    Maximum and mean are over all entries of a gradient with respect to ``wrt``. Each step applies the weights that it
    has just computed. :math:`\lambda_i` starts at 1, and the reference's stays 1. A term whose gradient is zero keeps
    its weight. In a step without the reference, all terms keep their weights.

    Args:
        reference: the task whose weight stays 1, by its index or its name.
        alpha: :math:`\alpha`, above 0 and up to 1: fraction of the average that each step replaces.
        fork, wrt, tasks, update_every, accumulate, check_finite: see `CombiningBalancer`. The official code updates
            the weights at every tenth step: ``update_every=10``.

    Raises:
        ValueError: ``reference`` is not a task, or ``alpha`` is not above 0 and up to 1.

    Source: Wang, Teng and Perdikaris, "Understanding and Mitigating Gradient Flow Pathologies in Physics-Informed
    Neural Networks", SIAM Journal on Scientific Computing 2021, algorithm 1. As in the official code, the denominator
    has the weighted gradient, and :math:`\alpha = 0.1`, where the text has 0.9. The mean is over all entries; the
    official code averages the means of the weight matrices.
    """

    name = "lr-annealing"
    summary = "Lift each term's mean gradient towards the largest gradient entry of a reference term."
    reads = "gradients"
    use_when = "For physics-informed networks whose residual has far larger gradients than the boundary and data terms."
    default_wrt = "parameters"
    undefined_for = {"features": "the mean of feature gradients falls with the number of samples, the maximum does not"}
    tunable = {"alpha": Range(1e-2, 1.0, log=True)}

    multipliers: Tensor
    r""":math:`\lambda_i`, ``(T,)``."""
    is_reference: Tensor
    """``(T,)``: 1 for the reference, 0 for the others."""

    def __init__(self, *args: Any, reference: int | str = 0, alpha: float = 0.1, **options: Any) -> None:
        super().__init__(*args, **options)
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha is {alpha!r}; expected a number above 0 and up to 1")
        self.alpha = alpha
        places = range(self.num_tasks) if isinstance(reference, int) else self.tasks or ()
        if reference not in places:
            raise ValueError(f"reference is {reference!r}, but {self._reader.made_for()}")
        self.register_buffer("multipliers", torch.ones(self.num_tasks))
        is_reference = torch.tensor([float(place == reference) for place in places])
        self.register_buffer("is_reference", is_reference, persistent=False)

    def combine(self, gradients: Sequence[Tensor], losses: Tensor) -> Combination:
        before, is_reference = rows(self.multipliers, self.present), rows(self.is_reference, self.present) > 0
        entries = torch.cat([gradient.flatten(1) for gradient in gradients], 1).abs()  # (T, n)
        means = entries.mean(1)
        valid = means.isfinite().all()
        largest = torch.where(is_reference, entries.amax(1), 0.0).sum()
        targets = largest / (before * means)
        known = valid & is_reference.any() & ~is_reference & targets.isfinite()
        multipliers = torch.where(known, torch.lerp(before, targets, self.alpha), before)
        keep(self.multipliers, self.present, multipliers, valid)
        return Combination(multipliers, valid)
