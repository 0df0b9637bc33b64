"""MoDo: follow MGDA's weights in small steps, with gradients of two independent batches."""

from torch import Tensor

from .engine import Range, Read, Result, SecondBatchBalancer, State, option, register, state
from .solvers.simplex import project


@register
class MoDo(SecondBatchBalancer):
    r"""Take one small step a training step towards MGDA's weights (multi-objective gradient with double sampling).

    .. math:: \lambda \leftarrow \Pi_\Delta \big( \lambda - \gamma (A \lambda + \rho \lambda) \big), \quad
        A_{ij} = \langle \nabla L_i, \nabla L'_j \rangle

    :math:`\Pi_\Delta` projects onto the simplex, :math:`L` are the losses of the step and :math:`L'` those of a second
    batch. The products of gradients of one batch with themselves are too large on average; those of two independent
    batches are not. :math:`\lambda_i` starts at :math:`1/T`, and the step is made with the new weights. The size of
    :math:`\gamma A` matters: losses that are multiplied by c need a :math:`\gamma` that is c² times smaller.

    In a step without some of the tasks, the others share the sum of the weights that they had before. So a step whose
    tasks all have the weight 0 trains nothing, and with one task a step the weights stay at :math:`1/T`.

    Args:
        gamma: :math:`\gamma`, positive: step size of the weights.
        rho: :math:`\rho`, 0 or more: how strongly the weights are pulled to :math:`1/T`.
        fork, wrt, options: see `GradientBalancer`; ``fork`` is None. Give the other batch's
            losses with `second_batch`.

    Raises:
        ValueError: ``gamma`` or ``rho`` is out of range.
        RuntimeError: `second_batch` was not called.

    Example::

        balancer = MoDo(None, wrt=net.trunk, tasks=["class", "box"], gamma=0.01)
        balancer.second_batch(lambda: losses_of(net, next(validation)))
        balancer(losses).backward()

    Source: Chen, Fernando, Ying and Chen, "Three-Way Trade-Off in Multi-Objective Learning: Optimization,
    Generalization and Conflict-Avoidance", NeurIPS 2023, algorithm 2; the weights are those of TorchJD's ``MoDo``. The
    paper's step also trains on the second batch; here that batch may be one to validate with, so it is not trained on.
    LibMTL, and the authors' code with its option ``three_grads``, choose the weights by two batches and train on a
    third. Here the batch that is trained on is one of the two that choose its weights.
    """

    name = "modo"
    summary = "Step towards the weights of the shortest combination, judged by gradients of two independent batches."
    use_when = "Instead of mgda or moco, when batches are small and a second one costs little."
    gamma: float = option(0.1, above=0, tune=Range(1e-3, 0.1, log=True))
    rho: float = option(0.1, at_least=0)
    last_weights: Tensor = state(lambda balancer: 1 / balancer.num_tasks)
    shares: Tensor = state(lambda balancer: 1 / balancer.num_tasks)
    r""":math:`\lambda_i`, ``(T,)``."""

    def update(self, read: Read, state: State) -> Result:
        before = state["shares"]
        slope = read.products @ before + self.rho * before
        return Result(state={"shares": project(before - self.gamma * slope, before.sum())})

    def weigh(self, state: State) -> Tensor:
        r"""Return :math:`\lambda`, ``(T,)``."""
        return state["shares"]
