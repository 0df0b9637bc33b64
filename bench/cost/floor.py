"""The least time that measuring can take with a `Fork` and PyTorch's operators, for the limits table.

A balancer that weighs equally, and in the same backward pass forms what GradNorm measures, of a layer its weight alone
and not its bias: nothing is looked for, checked, kept or updated. What it takes more than equal weighting no balancer
that measures the same can do without.
"""

from functools import partial

import torch
from torch import Tensor, nn

from balancers import EqualWeighting

from .subject import Subject
from .timed_methods import TimedMethod


class Floor(EqualWeighting):
    """Equal weights, and the norms of the tasks' gradients, unweighted: `norms`, by task or, for None, of all.

    Args:
        subject: of a model with a fork.
        num_tasks: T.
        of_layer: whether of the weight of the last shared layer, a ``Linear`` whose ReLU is handed to the fork; else of
            the features.
    """

    def __init__(self, subject: Subject, num_tasks: int, of_layer: bool) -> None:
        super().__init__(num_tasks)
        assert subject.fork is not None
        self.norms: dict[int | None, Tensor] = {}
        self._inputs: Tensor | None = None
        if of_layer:
            assert isinstance(subject.wrt, nn.Linear)
            subject.wrt.register_forward_pre_hook(self._keep)
        subject.fork.reading.recording = True
        subject.fork.reading.observer = self._of_layer if of_layer else self._of_features

    def _keep(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        self._inputs = inputs[0].detach()

    def _of_layer(self, z: Tensor, task: int | None, gradients: Tensor, spare: int) -> None:
        assert self._inputs is not None
        if task is None:
            torch.ops.aten.threshold_backward.grad_input(gradients, z, 0, grad_input=gradients)
            products = torch.bmm(gradients.mT, self._inputs.expand(len(gradients), *self._inputs.shape))
        else:
            products = torch.mm(torch.ops.aten.threshold_backward(gradients, z, 0).t(), self._inputs)
        self.norms[task] = torch.linalg.vector_norm(products, dim=(-2, -1))

    def _of_features(self, z: Tensor, task: int | None, gradients: Tensor, spare: int) -> None:
        self.norms[task] = torch.linalg.vector_norm(gradients, dim=(-2, -1))


LAYER_FLOOR = TimedMethod("products alone", partial(Floor, of_layer=True))
FEATURES_FLOOR = TimedMethod("norms alone", partial(Floor, of_layer=False))
