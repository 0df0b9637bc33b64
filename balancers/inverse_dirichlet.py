"""Inverse-Dirichlet weighting: bring the gradients of all terms to the same variance."""

import torch
from torch import Tensor

from .engine import GradientBalancer, Range, Read, Result, State, option, register, state


@register
class InverseDirichlet(GradientBalancer):
    r"""Scale each gradient so that the standard deviation of its entries matches the largest one.

    .. math:: \hat\lambda_i = \frac{\max_j \operatorname{std}(\nabla L_j)}{\operatorname{std}(\nabla L_i)}, \quad
        \lambda_i \leftarrow (1 - \alpha) \lambda_i + \alpha \hat\lambda_i

    The standard deviation is over all entries of a gradient with respect to ``wrt``. Each step applies the weights
    that it has just computed. :math:`\lambda_i` starts at 1. A task whose gradient has no variance keeps its weight.

    At a fork, the weights are those of the trunk alone, and the heads are trained on the losses as they are. The paper
    weighs the losses, heads included, as ``fork=None`` does.

    Args:
        alpha: :math:`\alpha`, above 0 and up to 1: fraction of the average that each step replaces.
        fork, wrt, options: see `GradientBalancer`. Where it trains on whole data sets, the official code updates the
            weights at every fifth step: ``update_every=5``.

    Raises:
        ValueError: ``alpha`` is not above 0 and up to 1.

    Example::

        balancer = InverseDirichlet(None, wrt=net, tasks=["equation", "boundary"], update_every=5)
        balancer(losses).backward()

    Source: Maddu, Sturm, Müller and Sbalzarini, "Inverse Dirichlet Weighting Enables Reliable Training of Physics
    Informed Neural Networks", Machine Learning: Science and Technology 2022. The official code takes an equation's
    residual in place of the task with the largest deviation.
    """

    name = "inverse-dirichlet"
    summary = "Bring the standard deviations of all gradients to the largest one."
    reads = "gradients"
    use_when = "For physics-informed networks and other terms of very different scales, none of which may vanish."
    default_wrt = "parameters"
    undefined_for = {"features": "the variance must be over parameters, and feature gradients also vary over samples"}
    alpha: float = option(0.5, above=0, at_most=1, tune=Range(1e-2, 1.0, log=True))
    multipliers: Tensor = state(1.0)
    r""":math:`\lambda_i`, ``(T,)``."""

    def update(self, read: Read, state: State) -> Result:
        before = state["multipliers"]
        deviations = torch.cat([gradient.flatten(1) for gradient in read.gradients], 1).std(1, correction=0)
        targets = deviations.amax() / deviations
        multipliers = torch.where(targets.isfinite(), torch.lerp(before, targets, self.alpha), before)
        return Result(multipliers, {"multipliers": multipliers})
