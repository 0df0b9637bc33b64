"""FairGrad: an alpha-fair share of the progress for each task."""

import math
from typing import Any

from torch import Tensor

from .engine.base import Range
from .engine.gramian import GramianBalancer
from .engine.method_registry import register
from .solvers.bargaining import fair_bargaining


@register
class FairGrad(GramianBalancer):
    r"""Weights under which the tasks' gains :math:`\nabla L_i^\top d` are alpha-fair.

    .. math:: M w = w^{-1/\alpha}, \quad w_i > 0

    With :math:`\alpha = 1` this is `NashMTL`; the larger it is, the more the task that gains least counts.

    Args:
        alpha: the fairness, positive; the paper's is 2 for the most part.
        fork, wrt, tasks, update_every, accumulate, check_finite: see `CombiningBalancer`.

    Raises:
        ValueError: ``alpha`` is not positive and finite.

    Source: Ban and Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024, eq. 4.
    """

    name = "fairgrad"
    summary = "Shares the progress out fairly, the more evenly the larger alpha."
    use_when = "Some tasks are left behind, and how much that matters is a choice."
    default_wrt = "parameters"
    tunable = {"alpha": Range(0.5, 5.0, log=True)}

    def __init__(self, *args: Any, alpha: float = 2.0, **options: Any) -> None:
        super().__init__(*args, **options)
        if not (math.isfinite(alpha) and alpha > 0):
            raise ValueError(f"alpha is {alpha!r}; expected a positive, finite number")
        self.alpha = alpha

    def solve(self, gramian: Tensor) -> Tensor:
        """Weights ``(..., T)``, positive."""
        return fair_bargaining(gramian, self.alpha)
