"""GradVac: turn gradients towards each other until they agree as much as they usually do."""

import torch
from torch import Tensor

from .engine import Draws, GradientBalancer, Range, Read, Result, State, option, register, state
from .pcgrad import orders


@register
class GradVac(GradientBalancer):
    r"""Turn each gradient towards the others that it agrees with less than usual (gradient vaccine).

    For each task i, start from :math:`g = \nabla L_i` and go through the other tasks j in a random order. Let
    :math:`\phi` be the cosine between :math:`g` and :math:`\nabla L_j`, and :math:`\hat\phi_{ij}` its moving average.
    Where :math:`\phi < \hat\phi_{ij}`,

    .. math:: g \leftarrow g + \frac{\lVert g \rVert \big( \hat\phi_{ij} \sqrt{1 - \phi^2}
        - \phi \sqrt{1 - \hat\phi_{ij}^2} \big)}{\lVert \nabla L_j \rVert \sqrt{1 - \hat\phi_{ij}^2}} \nabla L_j

    In every case :math:`\hat\phi_{ij} \leftarrow (1 - \beta) \hat\phi_{ij} + \beta \phi`. The averages start at 0, so
    that the first step is that of `PCGrad`. The direction is the sum of all :math:`g`.

    Args:
        beta: :math:`\beta`, from 0 to 1: fraction of the average that each step replaces; 0.01 in the paper.
        seed: seed of the random orders, which ``torch.manual_seed`` does not change.
        fork, wrt, options: see `GradientBalancer`.

    Raises:
        ValueError: ``beta`` is not between 0 and 1, or ``seed`` is not an integer, 0 or more.

    Example::

        balancer = GradVac(net.fork, wrt=net.trunk, beta=0.1, seed=1)
        balancer(losses).backward()

    Source: Wang, Tsvetkov, Firat and Cao, "Gradient Vaccine: Investigating and Improving Multi-task Optimization in
    Massively Multilingual Models", ICLR 2021, eqs. 2 and 3, algorithm 1. The cosines are of whole gradients, not of
    each layer's.
    """

    name = "gradvac"
    summary = "Turn gradients towards each other until they agree as much as they usually do."
    reads = "gramian"
    use_when = "For many related tasks, such as languages, whose gradients mostly agree."
    default_wrt = "parameters"
    undefined_for = {"features": "the average agreement of feature gradients would mix different samples"}
    beta: float = option(0.01, at_least=0, at_most=1, tune=Range(1e-3, 1.0, log=True))
    agreements: Tensor = state(shape="TT")
    r""":math:`\hat\phi_{ij}`, ``(T, T)``."""

    def update(self, read: Read, state: State, draws: Draws) -> Result:
        order = orders(read.gramian, draws)
        weights, agreements = vaccinate(read.gramian, state["agreements"], order, self.beta)
        return Result(weights, {"agreements": agreements})


def vaccinate(gramian: Tensor, agreements: Tensor, order: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return GradVac's weights ``(..., T)`` and the new average cosines ``(..., T, T)``.

    Args:
        gramian: ``(..., T, T)``.
        agreements: average cosines so far, ``(T, T)`` or ``(..., T, T)``.
        order: for each task the other tasks in the order in which to visit them, ``(..., T, T - 1)``.
        beta: fraction of the averages to replace.
    """
    norms = gramian.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt().unsqueeze(-2).expand_as(gramian)
    parts = torch.eye(gramian.shape[-1], dtype=gramian.dtype, device=gramian.device).repeat(*gramian.shape[:-2], 1, 1)
    products, agreements = gramian.clone(), agreements.expand_as(gramian).clone()
    for k in range(order.shape[-1]):
        other = order[..., k : k + 1]
        norm = (parts * products).sum(-1, keepdim=True).clamp(min=0).sqrt()
        other_norm, usual = norms.gather(-1, other), agreements.gather(-1, other)
        cosine = torch.where(norm * other_norm > 0, products.gather(-1, other) / (norm * other_norm), 0.0).clamp(-1, 1)
        sine, usual_sine = (1 - cosine.square()).sqrt(), (1 - usual.square()).clamp(min=0).sqrt()
        steps = norm * (usual * sine - cosine * usual_sine) / (other_norm * usual_sine)
        turned = (cosine < usual) & (other_norm * usual_sine > 0)
        steps = torch.where(turned, steps, 0.0)
        parts.scatter_add_(-1, other, steps)
        products += steps * gramian.gather(-2, other.expand_as(gramian))
        agreements.scatter_(-1, other, (1 - beta) * usual + beta * cosine)
    return parts.sum(-2), agreements
