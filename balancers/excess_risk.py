"""ExcessMTL: give more weight to a task, the further it is from the best it can do."""

import math

import torch
from torch import Tensor

from .engine import GradientBalancer, Range, Read, Result, State, option, register, state

EPSILON = 1e-7
"""Added to the sums of squared gradients before the square root is taken."""


@register
class ExcessMTL(GradientBalancer):
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

    At a fork, the weights are those of the trunk alone, and the heads are trained on the losses as they are. Beside
    them, the trunk learns T times more slowly than in the paper, which weighs the losses, heads included, as
    ``fork=None`` does.

    Args:
        step_size: :math:`\eta`, positive; the default is LibMTL's.
        fork, wrt, options: see `GradientBalancer`. The paper measures all
            shared parameters.

    Raises:
        ValueError: ``step_size`` is not positive and finite.

    Example::

        balancer = ExcessMTL(None, wrt=net.trunk, tasks=["depth", "normals"], step_size=0.1)
        balancer(losses).backward()

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
    step_size: float = option(0.01, above=0, tune=Range(1e-3, 1.0, log=True))
    tracks = "squares"
    last_weights: Tensor = state(lambda balancer: 1 / balancer.num_tasks)
    log_weights: Tensor = state(lambda balancer: -math.log(balancer.num_tasks))
    r""":math:`\log w_i`, ``(T,)``."""
    initial_risks: Tensor = state()
    """:math:`E_i(0)`, ``(T,)``; zero until it is known."""

    def track(self, gradient: Tensor, tracked: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Return the new sums of squares, ``(T', ...)``, and the risks, ``(T',)``."""
        square = gradient.square_()  # in place where it can be: new memory takes longer than the arithmetic
        inverse = (tracked + square).add_(EPSILON).rsqrt_()
        risks = inverse.mul_(square).flatten(1).sum(1)
        return square.add_(tracked), risks

    def update(self, read: Read, state: State) -> Result:
        risks, initial, before = read.tracked, state["initial_risks"], state["log_weights"]
        initial = torch.where(initial > 0, initial, risks)
        relative = torch.where(initial > 0, risks / initial, 1.0)
        log_weights = torch.log_softmax(before + self.step_size * relative, -1) + before.logsumexp(-1)
        return Result(log_weights.exp(), {"initial_risks": initial, "log_weights": log_weights})
