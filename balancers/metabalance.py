"""MetaBalance: bring the gradients of auxiliary tasks closer in size to the target's, for each parameter tensor."""

import torch
from torch import Tensor

from .engine import GradientBalancer, Range, Read, Result, State, option, register


@register
class MetaBalance(GradientBalancer):
    r"""Scale each auxiliary task's gradient towards the size of the target's, for each shared tensor of its own.

    For a tensor p of the shared parameters ``wrt``, the method keeps a moving average of each task's gradient norm.
    With t for the target,

    .. math:: m_{ip} \leftarrow \beta\, m_{ip} + (1 - \beta) \lVert \nabla_p L_i \rVert, \quad
        w_{ip} = r\, \frac{m_{tp}}{m_{ip}} + 1 - r,

    and p receives :math:`\sum_i w_{ip} \nabla_p L_i`. All other parameters receive the gradients of the losses as they
    are. The averages start at zero, which cancels out of their ratio. A gradient that is zero has the weight 1.
    ``weights`` holds each task's mean over the tensors. A step without the target changes nothing: it uses these means.

    Args:
        target: the task whose gradient stays as it is, by its index or its name.
        beta: :math:`\beta`, at least 0 and below 1: fraction of itself that an average keeps in a step.
        relax: :math:`r`, at least 0 and below 1, the relax factor: how close the sizes are brought. 0 is the plain sum.
        fork, wrt, options: see `GradientBalancer`. The method replaces the gradients of the shared parameters, so give
            all of these as ``wrt``, with a fork or with ``fork=None``. ``update_every`` must be 1.

    Raises:
        ValueError: ``target`` is not a task, ``beta`` or ``relax`` is out of range, ``update_every`` is not 1, or
            ``wrt`` is None.
        ForkError: on the first step, ``wrt`` is not all parameters upstream of the fork; on any step, other parameters
            of ``wrt`` are trained than when the balancer was made.

    Example::

        balancer = MetaBalance(net.fork, wrt=net.trunk, tasks=["purchase", "click"], target="purchase", relax=0.7)
        balancer(losses).backward()

    Source: He et al., "MetaBalance: Improving Multi-Task Recommendations via Adapting Gradient Magnitudes of Auxiliary
    Tasks", WWW 2022. As in the official code, gradients are both reduced and enlarged. Where a norm is zero that code
    divides by zero; torch-rechub adds 1e-5 to :math:`m_{ip}`, also to the target's. Both skip the parameters that
    follow one without a gradient.
    """

    name = "metabalance"
    summary = "Bring auxiliary tasks' gradients closer in size to a target task's, for each parameter tensor."
    reads = "gradients"
    use_when = "When one task is the aim, and auxiliary tasks are too strong in some layers and too weak in others."
    replaces_gradients = True
    default_wrt = "parameters"
    undefined_for = {
        "features": "it compares norms for each parameter tensor, and features are none",
        "layer": "it replaces the gradients of all shared parameters, not those of one layer",
    }
    target: int | str = option(0, task=True)
    beta: float = option(0.9, at_least=0, below=1)
    relax: float = option(0.7, at_least=0, below=1, tune=Range(0.1, 0.9))
    per_parameter = "norms"
    norms: Tensor
    """:math:`m_{ip}`, ``(T, number of tensors)``."""

    def update(self, read: Read, state: State) -> Result:
        before, is_target = state["norms"], state["is_target"].unsqueeze(1)
        norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in read.gradients], 1)
        means = torch.lerp(norms, before, self.beta)
        ratios = torch.where(norms > 0, (is_target * means).sum(0) / means, 1)
        has_target, last = is_target.sum() > 0, state["last_weights"]
        weights = torch.where(has_target, 1 + self.relax * (ratios - 1), last.unsqueeze(1))
        return Result(
            torch.where(has_target, weights.mean(1), last),
            {"norms": torch.where(has_target, means, before)},
            directions=[torch.tensordot(w, g, dims=1) for w, g in zip(weights.unbind(1), read.gradients, strict=True)],
        )
