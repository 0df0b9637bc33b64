"""Geometric loss strategy: minimise the geometric mean of the losses."""

from torch import Tensor

from .engine import LossBalancer, register, state


@register
class GeometricLossStrategy(LossBalancer):
    r"""Minimise the geometric mean of the losses, :math:`(\prod_j L_j)^{1/T}`.

    .. math:: w_i = \frac{1}{T\,L_i} \Big(\prod_j L_j\Big)^{1/T}

    The method has no parameters and no state. All parts :math:`w_i L_i` are equal, and their sum is the geometric
    mean. Multiplying one loss by k multiplies the whole gradient by :math:`k^{1/T}`.

    Example::

        balancer = GeometricLossStrategy(["depth", "normals"])
        loss = balancer(losses)  # the geometric mean of the losses
        loss.backward()

    Source: Chennupati et al., "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for
    Multi-Task Learning", CVPR Workshops 2019, eq. 2. Its focused strategy, a product of two such means, is left out.
    The weights that LibMTL reports are not those that it trains with.
    """

    name = "gls"
    summary = "Minimise the geometric mean of the losses."
    use_when = "When losses have different scales and all can come close to zero; nothing to tune."
    reads = "losses"
    needs_positive_losses = True
    last_weights: Tensor = state(lambda balancer: 1 / balancer.num_tasks)

    def weigh(self, losses: Tensor) -> Tensor:
        """Return weights of shape ``(..., T)`` for positive ``losses`` of shape ``(..., T)``."""
        return losses.log().mean(-1, keepdim=True).exp() / (losses.shape[-1] * losses)
