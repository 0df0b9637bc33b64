"""Smooth Tchebycheff scalarisation: minimise a soft maximum of the losses."""

import torch
from torch import Tensor

from .engine import Range, option, register
from .tchebycheff import Tchebycheff


@register
class SmoothTchebycheff(Tchebycheff):
    r"""Minimise a soft maximum of the losses' weighted distances from an ideal point.

    .. math:: \mu \log \sum_i e^{\lambda_i (L_i - z_i) / \mu}, \quad
        w_i = \lambda_i \frac{e^{\lambda_i (L_i - z_i) / \mu}}{\sum_j e^{\lambda_j (L_j - z_j) / \mu}}

    For :math:`\mu \to 0` this becomes `Tchebycheff`; for large :math:`\mu` the weights become :math:`\lambda_i / T`.
    The method has no state.

    Args:
        mu: :math:`\mu`, positive, in units of :math:`\lambda_i L_i`: how far below the worst task a task must be to
            count little.
        tasks, preferences, ideal, options: see `Tchebycheff`.

    Raises:
        ValueError: ``mu`` is not positive and finite; see also `Tchebycheff`.

    Example::

        balancer = SmoothTchebycheff(["fit", "speed"], preferences=[1.0, 2.0], mu=0.1)
        balancer(losses).backward()

    Source: Lin, Zhang, Yang, Liu, Wang and Zhang, "Smooth Tchebycheff Scalarization for Multi-Objective
    Optimization", ICML 2024, where :math:`\mu` is 0.01 to 1. TorchJD has the same objective. The official code for
    multi-task learning minimises another one: T times this objective, of :math:`\log (L_i / n_i)` in place of the
    losses, with :math:`\lambda_i = 1` and by default :math:`\mu = 1`. There, training begins with epochs of plain
    log-losses, five by default, and :math:`n_i` is the mean loss over the last of them.
    """

    name = "stch"
    summary = "Minimise a soft maximum of the losses, weighted by preferences."
    use_when = "Instead of tchebycheff, when tasks that are close to the worst one should be trained too."
    mu: float = option(0.1, above=0, tune=Range(1e-2, 1.0, log=True))

    def shares(self, distances: Tensor) -> Tensor:
        return torch.softmax(distances / self.mu, -1)
