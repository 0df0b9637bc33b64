"""VQGAN's adaptive weight: give the adversarial loss a gradient as long as the reconstruction's."""

import torch
from torch import Tensor

from .engine import GradientBalancer, Range, Read, Result, State, option, register, state

EPSILON = 1e-4
"""Added to the norm of the adversarial loss's gradient; the official code's."""
LARGEST_RATIO = 1e4
"""Upper bound of the ratio of the norms."""


@register
class AdaptiveAdversarialWeight(GradientBalancer):
    r"""Weigh an adversarial loss so that its gradient is as long as that of a reference loss.

    With the norms of the gradients at one layer, the last of a decoder, and k steps before this one,

    .. math:: w_\text{adv} = \begin{cases}
        d\, \min\Big( \dfrac{\lVert \nabla L_\text{ref} \rVert}{\lVert \nabla L_\text{adv} \rVert + 10^{-4}}, 10^4 \Big)
        & k \ge \text{start} \\ 0 & k < \text{start} \end{cases}

    All other weights are 1. Nothing is averaged over steps. A single task is the reference.

    In a step without the adversarial loss all weights are 1. In a step without the reference, or in which its gradient
    is zero, the adversarial loss has nothing to be compared to, and the weight 0. Such steps count in k. Steps that are
    not finite don't, and with ``update_every`` only those count that are measured.

    Args:
        reference: the task of :math:`L_\text{ref}`, by its index or its name; the first one by default. In VQGAN it is
            the sum of the pixels' and the perceptual reconstruction loss.
        adversarial: the task of :math:`L_\text{adv}`, by its index or its name; the last one by default.
        factor: :math:`d`, positive: the length of the weighted adversarial gradient, relative to the reference's
            (``disc_weight`` in the official code, whose configurations have 0.75 to 1).
        start: number of steps in which the adversarial loss has the weight 0 (``disc_start``).
        fork, wrt, options: see `GradientBalancer`. The official code measures the weight of the decoder's last
            convolution, without its bias: ``wrt=[decoder.last.weight]``, with a fork at the output.

    Raises:
        ValueError: ``reference`` or ``adversarial`` is not a task, both are the same, or ``factor`` or ``start`` is out
            of range.

    Example::

        last = [net.trunk[-1].weight]
        balancer = AdaptiveAdversarialWeight(net.fork, wrt=last, tasks=["reconstruction", "adversarial"], start=1000)
        balancer(losses).backward()  # the adversarial loss has the weight 0 in the first 1,000 steps

    Source: Esser, Rombach and Ommer, "Taming Transformers for High-Resolution Image Synthesis", CVPR 2021, eq. 7. As in
    the official code, the bound is :math:`10^4`, and :math:`10^{-4}` is added to the denominator, where the paper has
    :math:`10^{-6}`. There the weight is 0 outside of training; here an evaluation uses the last weights, as with all
    methods.
    """

    name = "vqgan"
    summary = "Weigh an adversarial loss by the ratio of a reference's gradient norm to its own."
    reads = "gramian"
    use_when = (
        "For a generator that a discriminator also judges, when its loss should count as much as a reconstruction's."
    )
    default_wrt = "layer"
    reference: int | str = option(0, task=True)
    adversarial: int | str = option(lambda balancer: balancer.num_tasks - 1, task=True)
    factor: float = option(1.0, above=0, tune=Range(0.1, 1.0, log=True))
    start: int = option(0, at_least=0, whole=True)
    steps: Tensor = state(shape="")
    """k: the number of valid steps so far; a scalar."""
    last_weights: Tensor = state(
        lambda balancer: [
            float(i == balancer.reference or i != balancer.adversarial) for i in range(balancer.num_tasks)
        ]
    )

    def prepare(self) -> None:
        if self.reference == self.adversarial and self.num_tasks > 1:
            task = self.label(int(self.adversarial))
            raise ValueError(f"reference and adversarial are both {task}; expected two tasks")
        if self.num_tasks == 1:  # a single task is the reference
            self.constant("is_adversarial", [0.0])

    def update(self, read: Read, state: State) -> Result:
        is_reference, is_adversarial = state["is_reference"] > 0, state["is_adversarial"] > 0
        norms = read.gramian.diagonal().clamp(min=0).sqrt()
        ratio = torch.where(is_reference, norms, 0.0).sum() / (norms + EPSILON)
        weights = torch.where(state["steps"] >= self.start, self.factor * ratio.clamp(max=LARGEST_RATIO), 0.0)
        return Result(torch.where(is_adversarial, weights, 1.0), {"steps": state["steps"] + 1})
