"""MoCo: combine gradients tracked over steps, to remove the bias of small batches."""

from torch import Tensor

from .engine import GradientBalancer, Range, Read, Result, State, option, register, state
from .solvers.simplex import project


@register
class MoCo(GradientBalancer):
    r"""Follow MGDA's weights in small steps, on moving averages of the gradients (multi-objective gradient correction).

    In step k, counted from 1,

    .. math:: y_i &\leftarrow y_i + \frac{\beta}{k^\sigma} (\nabla L_i - y_i) \\
        \lambda &\leftarrow \Pi_\Delta \Big( \lambda - \frac{\gamma}{k^\sigma} (Y Y^\top + \rho I) \lambda \Big),

    where :math:`\Pi_\Delta` projects onto the simplex, and :math:`Y` has the tracked gradients :math:`y_i` as rows.
    The shared parameters ``wrt`` receive :math:`\sum_i \lambda_i y_i`; all other parameters receive the gradients of
    the losses as they are. :math:`y_i` starts at zero, and :math:`\lambda_i` at :math:`1/T`. The tracked gradients
    take as much memory as T copies of the parameters ``wrt``.

    In a step without some of the tasks, the others share the sum of :math:`\lambda` that they had before. So a step
    whose tasks all have :math:`\lambda_i = 0` does not train the shared parameters, and with one task a step all
    :math:`\lambda_i` stay at :math:`1/T`.

    Args:
        beta: :math:`\beta`, above 0 and up to 1: fraction of the tracked gradients that the first step replaces.
        gamma: :math:`\gamma`, positive: step size of the weights in the first step.
        sigma: :math:`\sigma`, 0 or more: how fast the fraction and the step size shrink from step to step.
        rho: :math:`\rho`, 0 or more: how strongly the weights are pulled to :math:`1/T`.
        fork, wrt, options: see `GradientBalancer`. The method replaces the gradients of the shared parameters, so give
            all of these as ``wrt``, with a fork or with ``fork=None``. ``update_every`` must be 1.

    Raises:
        ValueError: ``beta``, ``gamma``, ``sigma`` or ``rho`` is out of range, ``update_every`` is not 1, or ``wrt`` is
            None.
        ForkError: on the first step, ``wrt`` is not all parameters upstream of the fork.

    Example::

        balancer = MoCo(net.fork, wrt=net.trunk, beta=0.5, gamma=0.1)
        balancer(losses).backward()

    Source: Fernando et al., "Mitigating Gradient Bias in Multi-objective Learning: A Provably Convergent Approach",
    ICLR 2023, algorithm 1. As in the official code, the tracked gradients are updated first, so that the first step
    is not zero. The official code for Office takes twice the step :math:`\gamma`; its code for NYUv2 does not, but
    multiplies the direction by T. LibMTL also divides each gradient by its norm,
    multiplies it by the loss, and has a softmax in place of the projection.
    """

    name = "moco"
    summary = "Combine tracked gradients with weights that step towards their shortest combination."
    reads = "gradients"
    use_when = "Instead of mgda, when batches are small and their gradients noisy."
    replaces_gradients = True
    default_wrt = "parameters"
    undefined_for = {
        "features": "a moving average of feature gradients would mix different samples",
        "layer": "it replaces the gradients of all shared parameters, not those of one layer",
    }
    beta: float = option(0.5, above=0, at_most=1, tune=Range(0.05, 1.0, log=True))
    gamma: float = option(0.1, above=0, tune=Range(1e-3, 1.0, log=True))
    sigma: float = option(0.5, at_least=0)
    rho: float = option(0.0, at_least=0)
    tracks = "tracked"
    last_weights: Tensor = state(lambda balancer: 1 / balancer.num_tasks)
    shares: Tensor = state(lambda balancer: 1 / balancer.num_tasks)
    r""":math:`\lambda_i`, ``(T,)``."""
    steps: Tensor = state(shape="")
    """Number of valid steps so far: k - 1 in step k; a scalar."""

    def tracking(self, state: State) -> State:
        r"""Add :math:`1 - \beta / k^\sigma`, a scalar: the share of :math:`y` that step k keeps."""
        return {**state, "kept": 1 - self.beta * (state["steps"] + 1) ** -self.sigma}

    def track(self, gradient: Tensor, tracked: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Return the new :math:`y`, ``(T', ...)``, and its inner products, ``(T', T')``."""
        y = gradient.lerp_(tracked, state["kept"])
        rows = y.flatten(1)
        return y, rows @ rows.mT

    def update(self, read: Read, state: State) -> Result:
        before, k = state["shares"], state["steps"] + 1
        slope = read.tracked @ before + self.rho * before
        shares = project(before - self.gamma * k**-self.sigma * slope, before.sum())
        return Result(shares, {"shares": shares, "steps": k})
