"""IMTL: bring the losses to equal size by learned scales, then take a direction with equal projections."""

from torch import Tensor

from .engine import LearnedState, Read, Result, State, register, state
from .imtl_gradient import IMTLGradient
from .imtl_loss import grown


@register
class IMTL(IMTLGradient, LearnedState):
    r"""Scale the losses (IMTL-L), then combine their gradients (IMTL-G): impartial multi-task learning, both halves.

    The scales :math:`s_i` minimise

    .. math:: \sum_i e^{s_i} L_i - s_i

    and start at 0, so that :math:`e^{s_i} L_i` tends to 1. Losses must be zero or more. The heads are trained on
    :math:`e^{s_i} L_i`, and the trunk on `IMTLGradient`'s combination of the gradients of :math:`e^{s_i} L_i`. The
    scale of a loss that stays zero grows without bound.

    Args:
        lr: learning rate of the scales.
        optimizer: optimiser of the scales, ``"adam"`` or ``"sgd"``.
        fork, wrt, options: see `GradientBalancer`. The paper measures the
            gradients of the features, ``wrt=None``.

    Raises:
        ValueError: ``lr`` is not positive, or ``optimizer`` is neither ``"adam"`` nor ``"sgd"``.

    Example::

        balancer = IMTL(net.fork, lr=0.01)
        balancer(losses).backward()

    Source: Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021, eqs. 1 to 6, algorithm 1.
    """

    name = "imtl"
    summary = "Bring the losses to one size by learned scales, then take the direction with equal projections."
    use_when = "Instead of imtl-g, when the heads should be balanced too."
    needs_nonnegative_losses = True
    learns = "log_scales"
    log_scales: Tensor = state()
    """:math:`s_i`, ``(T,)``."""

    def weigh(self, state: State) -> Tensor:
        """Return :math:`e^{s_i}`, ``(T,)``."""
        return grown(state["log_scales"])

    def update(self, read: Read, state: State) -> Result:
        gradient = read.weights * read.losses - 1
        return Result(self.solve(read.gramian), gradient=gradient)
