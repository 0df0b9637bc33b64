"""FAMO: learn the weights from how much each log-loss fell in the last step."""

import torch
from torch import Tensor

from .engine import LearnedState, Range, Read, Result, State, option, register, state


@register
class FAMO(LearnedState):
    r"""Make all losses fall at the same rate (fast adaptive multitask optimization).

    The network is trained on the log-losses, weighted by :math:`z = \operatorname{softmax}(\xi)`. In terms of the
    losses' own gradients, and scaled to sum to 1, the weights are

    .. math:: w_i = c\, \frac{z_i}{L_i - b_i}, \quad c = \Big( \sum_j \frac{z_j}{L_j - b_j} \Big)^{-1}

    After the network's optimiser has stepped, ``after_step`` takes the losses :math:`L'` of the same batch and
    updates :math:`\xi`:

    .. math:: \xi \leftarrow \operatorname{Adam}\big(\xi, J^\top \delta + \gamma \xi\big), \quad
        \delta_i = \log (L_i - b_i) - \log (L'_i - b_i)

    with the Jacobian :math:`J` of the softmax. A task whose log-loss fell less than the others' gains weight.
    :math:`\xi` starts at 0. The cost is one more forward pass.

    Args:
        tasks: see `LossBalancer`.
        min_losses: :math:`b_i`, 0 or more, a lower bound of each loss: one number for all tasks, one per task, or a
            dict by task name.
        lr: learning rate of :math:`\xi`; 0.025 in the paper.
        gamma: :math:`\gamma`, how strongly :math:`\xi` is pulled to 0; 1e-3 in the paper, 0.01 in the official code's
            example.
        options: see `LossBalancer`. ``after_step`` refers to the last pass before it.

    Raises:
        ValueError: ``lr`` is not positive, ``gamma`` or ``min_losses`` is negative or not finite, or the number or
            the names of ``min_losses`` are not those of the tasks.

    Example::

        balancer = FAMO(["class", "box"], min_losses={"class": 0.0, "box": 0.1})
        balancer(losses_of(net, batch)).backward()
        optimizer.step()
        with torch.no_grad():
            balancer.after_step(losses_of(net, batch))

    Source: Liu, Feng, Stone and Liu, "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023, algorithm 1. As in
    the official code, Adam updates :math:`\xi`, where the algorithm takes plain steps. The official code also adds
    1e-8 in the logarithms and clips the network's gradient; this class does neither.
    """

    name = "famo"
    summary = "Make all losses fall at the same rate, judged by how far each fell in the last step."
    reads = "losses"
    needs_positive_losses = True
    when = "after_step"
    use_when = "For many tasks of different scales, if a second forward pass is cheaper than a gradient for each task."
    min_losses: list[float] = option(0.0, at_least=0, per_task=True)
    lr: float = option(0.025, above=0, tune=Range(2.5e-3, 0.25, log=True))
    gamma: float = option(1e-3, at_least=0, tune=Range(1e-4, 1e-2, log=True))
    optimizer = "adam"
    learns = "log_shares"
    log_shares: Tensor = state()
    r""":math:`\xi_i`, ``(T,)``."""
    last_weights: Tensor = state(lambda balancer: 1 / balancer.num_tasks)

    def lowest_losses(self, state: State) -> Tensor:
        return state["min_losses"]

    def weigh(self, losses: Tensor, state: State) -> Tensor:
        """Return :math:`c z_i / (L_i - b_i)`, ``(..., T)``; not a number where a loss is not above its minimum."""
        gaps = losses - state["min_losses"]
        weights = torch.softmax(state["log_shares"], -1) / torch.where(gaps > 0, gaps, torch.nan)
        return weights / weights.sum(-1, keepdim=True)

    def update(self, read: Read, state: State) -> Result:
        shares = torch.softmax(state["log_shares"], -1)
        before, after = (torch.log(losses - state["min_losses"]) for losses in (read.losses_before, read.losses))
        fall = before - after
        gradient = shares * (fall - torch.dot(shares, fall)) + self.gamma * state["log_shares"]
        return Result(gradient=gradient)
