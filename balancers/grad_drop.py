"""GradDrop (gradient sign dropout): at each feature, keep only the gradients of one sign, chosen at random."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .engine.combining import Combination, CombiningBalancer
from .engine.loss_input import per_task
from .engine.method_registry import register
from .engine.per_task_state import rows
from .engine.rng import Draws


@register
class GradDrop(CombiningBalancer):
    r"""Where tasks disagree on the sign of a feature's gradient, draw one sign and drop the other.

    For each entry of the features, let :math:`P` be the purity of the positive sign and :math:`U` a uniform random
    number:

    .. math:: P = \frac12 \Big( 1 + \frac{\sum_i \nabla L_i}{\sum_i |\nabla L_i|} \Big), \quad
        M_i = [P > U] [\nabla L_i > 0] + [P < U] [\nabla L_i < 0].

    The trunk receives :math:`\sum_i (\ell_i + (1 - \ell_i) M_i) \nabla L_i`. ``weights`` are all 1.

    Args:
        leak: :math:`\ell_i`, from 0 to 1, the fraction of a task's gradient that is never dropped: one number for all
            tasks, one per task, or a dict by task name.
        seed: seed of the random numbers.
        fork, wrt, tasks, update_every, accumulate, check_finite: see `CombiningBalancer`. With ``update_every`` above
            1, the steps in between drop nothing.

    Raises:
        ValueError: a leak is not between 0 and 1, the number or the names of the leaks are not those of the tasks, or
            ``seed`` is not an integer, 0 or more.

    Source: Chen et al., "Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout", NeurIPS
    2020, eqs. 1 and 2, algorithm 1. As in TorchJD, the features of each sample have signs of their own. The paper's
    algorithm, LibMTL and the official code first multiply the gradients by the signs of the features and sum over the
    batch; the official code also restores the norm of the plain sum.
    """

    name = "graddrop"
    summary = "At each feature, keep only the gradients of one sign, drawn by how far the tasks agree on it."
    reads = "gradients"
    use_when = "When tasks conflict, and a random choice may escape a bad compromise that a mean would settle in."
    undefined_for = {
        "layer": "it drops gradients of features, not of parameters",
        "parameters": "it drops gradients of features, not of parameters",
    }
    random = True

    leak: Tensor
    r""":math:`\ell_i`, ``(T,)``."""
    _draws: Draws

    def __init__(
        self, *args: Any, leak: float | Sequence[float] | Mapping[str, float] = 0.0, seed: int = 0, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        leaks = per_task("leak", leak, self._reader)
        if not all(0 <= value <= 1 for value in leaks):
            raise ValueError(f"leak is {leaks}; expected numbers from 0 to 1")
        self._draws = Draws(seed)
        self._register_constants("leak", leaks, persistent=False)

    def combine(self, gradients: Sequence[Tensor], losses: Tensor) -> Combination:
        leak = rows(self.leak, self.present)
        valid = torch.stack([gradient.isfinite().all() for gradient in gradients]).all()
        return Combination(torch.ones_like(losses), valid, [self._drop(gradient, leak) for gradient in gradients])

    def _drop(self, gradient: Tensor, leak: Tensor) -> Tensor:
        """Return the combined gradient of one tensor of features, ``(...)``, from gradients ``(T, ...)``."""
        purity = (1 + gradient.sum(0) / gradient.abs().sum(0)) / 2
        draw = torch.rand(
            purity.shape, dtype=purity.dtype, device=purity.device, generator=self._draws.on(purity.device)
        )
        kept = torch.where(gradient > 0, purity > draw, purity < draw).to(gradient.dtype)
        leak = leak.view(-1, *[1] * purity.ndim)
        return ((leak + (1 - leak) * kept) * gradient).sum(0)
