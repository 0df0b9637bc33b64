"""SDMGrad: MGDA kept close to a preferred direction, with gradients of two independent batches."""

import torch
from torch import Tensor

from .engine import Range, Read, Result, SecondBatchBalancer, State, option, register, state
from .solvers.simplex import project

SMALL = 1e-4
"""Number added to the products of a task's gradients in the scale, so that pure noise is not blown up."""


@register
class SDMGrad(SecondBatchBalancer):
    r"""Find weights of a short combined gradient that stays near a preferred one (direction-oriented MGDA).

    .. math:: \min_w \Big\lVert \sum_i (w_i + \lambda p_i) \nabla L_i \Big\rVert^2

    over the simplex, by ``iterations`` steps of projected gradient descent with momentum, from the last step's weights:

    .. math:: z \leftarrow \mu z + A (w + \lambda p), \quad w \leftarrow \Pi_\Delta (w - \eta z), \quad
        A_{ij} = \frac{\langle \nabla L'_i, \nabla L''_j \rangle}{s^2}, \quad
        s = \frac1T \sum_i \sqrt{\max(\langle \nabla L'_i, \nabla L''_i \rangle, 0) + 10^{-4}}

    with losses :math:`L'` and :math:`L''` of two batches beside the step's, and :math:`z = 0` at first. The losses of
    the step have the weights :math:`(w + \lambda p) / (1 + \lambda)`. :math:`\lambda = 0` is MGDA with small batches,
    and a large :math:`\lambda` follows the preferences alone. Gradients shorter than 0.01 make smaller steps. In a step
    without some of the tasks, the others share the sum of :math:`w` that they had before.

    Args:
        regularization: :math:`\lambda`, 0 or more.
        preferences: :math:`p_i`, 0 or more, as parts of their sum: one number for all tasks, one per task, or a dict by
            task name.
        iterations: number of descent steps.
        lr: :math:`\eta`, positive.
        momentum: :math:`\mu`, at least 0 and below 1.
        fork, wrt, options: see `GradientBalancer`; ``fork`` is None. Give the other batches'
            losses with `second_batch`, whose closure is called twice.

    Raises:
        ValueError: an option is out of range.
        RuntimeError: `second_batch` was not called.

    Example::

        balancer = SDMGrad(None, wrt=net.trunk, tasks=["class", "box"], regularization=0.5, preferences=[2.0, 1.0])
        balancer.second_batch(lambda: losses_of(net, next(validation)))
        balancer(losses).backward()

    Source: Xiao, Ban and Ji, "Direction-oriented Multi-objective Learning: Simple and Provable Stochastic Algorithms",
    NeurIPS 2023, algorithm 1, with the scaling of the authors' code. That code multiplies the weights by T and then
    clips the gradient of the shared parameters to norm 1. It draws three batches, as this class does, but by a slip all
    three are the last one. TorchJD adds :math:`10^{-8}` to :math:`s^2` in place of the
    :math:`10^{-4}`.
    """

    name = "sdmgrad"
    summary = "Find a short combined gradient near the preferred one, judged by two batches beside the step's."
    use_when = "Instead of mgda, when the mean gradient should not be left far behind and batches are small."
    second_batches = 2
    regularization: float = option(0.3, at_least=0, tune=Range(0.1, 1.0, log=True))
    preferences: list[float] = option(1.0, at_least=0, per_task=True)
    iterations: int = option(20, at_least=1, whole=True)
    lr: float = option(10.0, above=0, tune=Range(1.0, 20.0, log=True))
    momentum: float = option(0.5, at_least=0, below=1)
    last_weights: Tensor = state(lambda balancer: balancer.initial_weights())
    shares: Tensor = state(lambda balancer: 1 / balancer.num_tasks)
    """:math:`w_i`, ``(T,)``."""

    def prepare(self) -> None:
        if not sum(self.preferences) > 0:
            raise ValueError(f"preferences is {self.preferences!r}; expected a number above 0 among them")
        self.constant("preferred", [each / sum(self.preferences) for each in self.preferences])

    def initial_weights(self) -> list[float]:
        """Return the weights before the first step."""
        preferred = (each / sum(self.preferences) for each in self.preferences)
        return [(1 / self.num_tasks + self.regularization * p) / (1 + self.regularization) for p in preferred]

    def update(self, read: Read, state: State) -> Result:
        size = (read.products.diagonal().clamp(min=0) + SMALL).sqrt().mean()
        A = read.products / size.square()
        w = state["shares"]
        total, pull, z = w.sum(), self.regularization * state["preferred"], torch.zeros_like(w)
        for _ in range(self.iterations):
            z = self.momentum * z + A @ (w + pull)
            w = project(w - self.lr * z, total)
        return Result(state={"shares": w})

    def weigh(self, state: State) -> Tensor:
        r"""Return :math:`(w + \lambda p) / (1 + \lambda)`, ``(T,)``."""
        return (state["shares"] + self.regularization * state["preferred"]) / (1 + self.regularization)
