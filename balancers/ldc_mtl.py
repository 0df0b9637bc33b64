"""LDC-MTL: learn weights that bring neighbouring tasks' weighted losses together."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .engine import LearnedState, Range, Read, Result, State, option, register, state


@register
class LDCMTL(LearnedState):
    r"""Learn weights that also keep the weighted losses of neighbouring tasks close (loss discrepancy control).

    Network and logits :math:`\phi_i` minimise one objective, in which :math:`u_i = \sigma(\phi_i)` is a sigmoid:

    .. math:: \frac{\sum_i u_i L_i}{\sum_j u_j} + \rho \sum_{i < T} |u_i L_i - u_{i+1} L_{i+1}|

    The sum :math:`\sum_j u_j` is taken as a constant. With the signs
    :math:`s_i = \operatorname{sign}(u_i L_i - u_{i+1} L_{i+1})`, where :math:`s_0 = s_T = 0`, the network's weights and
    the slopes of the logits are

    .. math:: w_i = \frac{u_i}{\sum_j u_j} + \rho u_i (s_i - s_{i-1}), \quad
        \frac{\partial}{\partial \phi_i} = (1 - u_i) L_i w_i

    Two weighted losses that are equal have the sign 0, as in autograd's derivative of an absolute value. The logits
    start at 1. A task without a loss in a step is passed over: its neighbours are then each other's. The weight of a
    single task is 1.

    **Weights may be negative**, if :math:`2 \rho \sum_j u_j > 1`, which takes more than 50 tasks at the default
    :math:`\rho`. A task whose weighted loss is below both neighbours' then gets worse.

    The order of the tasks matters. The losses are compared as they are given, so bring them to one scale first.
    Positive losses lower all :math:`u_i` in the course of time. This leaves the first term as it is, and weakens the
    second.

    Args:
        tasks: see `LossBalancer`.
        rho: :math:`\rho`, 0 or more: how strongly neighbouring tasks are brought together.
        lr: learning rate of the logits; 1e-3 in the official code.
        optimizer: optimiser of the logits, ``"adam"`` or ``"sgd"``.
        options: see `LossBalancer`.

    Raises:
        ValueError: ``rho`` is negative or not finite, ``lr`` is not positive, or ``optimizer`` is neither ``"adam"``
            nor ``"sgd"``.

    Example::

        balancer = LDCMTL(["near", "middle", "far"], rho=0.05)  # compares near with middle, and middle with far
        balancer(losses).backward()

    Source: Xiao, Dong, Zou and Ji, "LDC-MTL: Balancing Multi-Task Learning through Scalable Loss Discrepancy Control",
    arXiv:2502.08585, 2025, as in the official code for CelebA. For its other data sets the code finds the weights by a
    linear layer and a softmax from the features, and has :math:`\rho` 0.05 or 0.1. It scales the losses by the first
    ones (NYUv2), takes logarithms of these ratios (QM9), or has the unweighted losses in the penalty (Cityscapes).
    """

    name = "ldc-mtl"
    summary = "Learn weights that bring neighbouring tasks' weighted losses together."
    reads = "losses"
    may_ascend = True
    use_when = "When all losses have one scale and should stay at similar values."
    rho: float = option(0.01, at_least=0, tune=Range(0.01, 0.1, log=True))
    lr: float = option(1e-3, above=0, tune=Range(1e-4, 1e-1, log=True))
    learns = "logits"
    logits: Tensor = state(1.0)
    r""":math:`\phi_i`, ``(T,)``."""
    last_weights: Tensor = state(lambda balancer: 1 / balancer.num_tasks)

    def weigh(self, losses: Tensor, state: State) -> Tensor:
        r"""Return :math:`u_i / \sum_j u_j + \rho u_i (s_i - s_{i-1})`, ``(..., T)``."""
        u = torch.sigmoid(state["logits"])
        shares = torch.softmax(F.logsigmoid(state["logits"]), -1)  # u / u.sum(), also if all of these underflow
        weighted = u * losses
        signs = F.pad(torch.sign(weighted[..., :-1] - weighted[..., 1:]), (1, 1))
        return shares + self.rho * u * signs.diff()

    def update(self, read: Read, state: State) -> Result:
        u = torch.sigmoid(state["logits"])
        return Result(gradient=(1 - u) * read.losses * self.weigh(read.losses, state))
