"""Learning-rate annealing: lift boundary and data terms to the largest gradient entry of a residual."""

import torch
from torch import Tensor

from .engine import GradientBalancer, Range, Read, Result, State, option, register, state


@register
class LearningRateAnnealing(GradientBalancer):
    r"""Lift each term's mean gradient towards the largest gradient entry of a reference term.

    The reference :math:`L_r` is the residual of a differential equation. The weights are moving averages:

    .. math:: \hat\lambda_i = \frac{\max |\nabla L_r|}{\operatorname{mean} |\lambda_i \nabla L_i|}, \quad
        \lambda_i \leftarrow (1 - \alpha) \lambda_i + \alpha \hat\lambda_i.

    Maximum and mean are over all entries of a gradient with respect to ``wrt``. Each step applies the weights that it
    has just computed. :math:`\lambda_i` starts at 1, and the reference's stays 1. A term whose gradient is zero keeps
    its weight. In a step without the reference, or in which its gradient is zero, all terms keep their weights.

    At a fork, the weights are those of the trunk alone, and the heads are trained on the losses as they are. The paper
    weighs the losses, heads included, as ``fork=None`` does.

    Args:
        reference: the task whose weight stays 1, by its index or its name.
        alpha: :math:`\alpha`, above 0 and up to 1: fraction of the average that each step replaces.
        fork, wrt, options: see `GradientBalancer`. The official code updates
            the weights at every tenth step: ``update_every=10``.

    Raises:
        ValueError: ``reference`` is not a task, or ``alpha`` is not above 0 and up to 1.

    Example::

        balancer = LearningRateAnnealing(None, wrt=net, tasks=["equation", "boundary"], reference="equation")
        balancer(losses).backward()

    Source: Wang, Teng and Perdikaris, "Understanding and Mitigating Gradient Flow Pathologies in Physics-Informed
    Neural Networks", SIAM Journal on Scientific Computing 2021, algorithm 2.1, eqs. 2.30 and 2.31. The preprint,
    arXiv:2001.04536, has the unweighted gradient in the denominator and :math:`\alpha = 0.9`. The mean is over all
    entries; the official code averages the means of the weight matrices, and applies new weights from the next step on.
    """

    name = "lr-annealing"
    summary = "Lift each term's mean gradient towards the largest gradient entry of a reference term."
    reads = "gradients"
    use_when = "For physics-informed networks whose residual has far larger gradients than the boundary and data terms."
    default_wrt = "parameters"
    undefined_for = {"features": "the mean of feature gradients falls with the number of samples, the maximum does not"}
    reference: int | str = option(0, task=True)
    alpha: float = option(0.1, above=0, at_most=1, tune=Range(1e-2, 1.0, log=True))
    multipliers: Tensor = state(1.0)
    r""":math:`\lambda_i`, ``(T,)``."""

    def update(self, read: Read, state: State) -> Result:
        before, is_reference = state["multipliers"], state["is_reference"] > 0
        entries = torch.cat([gradient.flatten(1) for gradient in read.gradients], 1).abs()  # (T, n)
        largest = torch.where(is_reference, entries.amax(1), 0.0).sum()
        targets = largest / (before * entries.mean(1))
        known = (largest > 0) & ~is_reference & targets.isfinite()
        multipliers = torch.where(known, torch.lerp(before, targets, self.alpha), before)
        return Result(multipliers, {"multipliers": multipliers})
