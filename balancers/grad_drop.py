"""GradDrop (gradient sign dropout): at each feature, keep only the gradients of one sign, chosen at random."""

import torch
from torch import Tensor

from .engine import Draws, GradientBalancer, Read, Result, State, option, register


@register
class GradDrop(GradientBalancer):
    r"""Where tasks disagree on the sign of a feature's gradient, draw one sign and drop the other.

    For each entry of the features, let :math:`P` be the purity of the positive sign and :math:`U` a uniform random
    number:

    .. math:: P = \frac12 \Big( 1 + \frac{\sum_i \nabla L_i}{\sum_i |\nabla L_i|} \Big), \quad
        M_i = [P > U] [\nabla L_i > 0] + [P < U] [\nabla L_i < 0].

    The trunk receives :math:`\sum_i (\ell_i + (1 - \ell_i) M_i) \nabla L_i`. ``weights`` are all 1.

    Args:
        leak: :math:`\ell_i`, from 0 to 1, the fraction of a task's gradient that is never dropped: one number for all
            tasks, one per task, or a dict by task name.
        seed: seed of the random numbers, which ``torch.manual_seed`` does not change.
        fork, wrt, options: see `GradientBalancer`. With ``update_every`` above
            1, the steps in between drop nothing.

    Raises:
        ValueError: a leak is not between 0 and 1, the number or the names of the leaks are not those of the tasks, or
            ``seed`` is not an integer, 0 or more.

    Example::

        balancer = GradDrop(net.fork, tasks=["class", "box"], leak={"class": 0.0, "box": 0.2}, seed=1)
        balancer(losses).backward()

    Source: Chen et al., "Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout", NeurIPS
    2020, eqs. 1 and 2, algorithm 1. As in TorchJD, the features of each sample have signs of their own. The paper's
    algorithm, LibMTL and the official code first multiply the gradients by the signs of the features and sum over the
    batch; the official code also restores the norm of the plain sum.
    """

    name = "graddrop"
    summary = "At each feature, keep only the gradients of one sign, drawn by how far the tasks agree on it."
    reads = "gradients"
    replaces_gradients = True
    use_when = "When tasks conflict, and a random choice may escape a bad compromise that a mean would settle in."
    undefined_for = {
        "layer": "it drops gradients of features, not of parameters",
        "parameters": "it drops gradients of features, not of parameters",
    }
    leak: list[float] = option(0.0, at_least=0, at_most=1, per_task=True)

    def update(self, read: Read, state: State, draws: Draws) -> Result:
        directions = [_drop(gradient, state["leak"], draws) for gradient in read.gradients]
        return Result(torch.ones_like(read.losses), directions=directions)


def _drop(gradient: Tensor, leak: Tensor, draws: Draws) -> Tensor:
    """Return the combined gradient of one tensor of features, ``(...)``, from gradients ``(T, ...)``."""
    purity = (1 + gradient.sum(0) / gradient.abs().sum(0)) / 2
    draw = draws.uniform(*purity.shape)
    kept = torch.where(gradient > 0, purity > draw, purity < draw).to(gradient.dtype)
    leak = leak.view(-1, *[1] * purity.ndim)
    return ((leak + (1 - leak) * kept) * gradient).sum(0)
