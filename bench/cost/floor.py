"""Measure the least time in which gradients can be measured with a `Fork` and PyTorch's operators.

A floor is a balancer that weighs equally and forms what GradNorm measures in the same backward pass: at a layer, the
gradients of its weight but not of its bias. It searches, checks, keeps and updates nothing. Every balancer that
measures the same adds at least as much time to equal weighting. The limits table shows it.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from balancers import EqualWeighting, Losses
from balancers.engine.forks.fork import Passage, Reader
from balancers.engine.graph_behind import GraphBehind

from .subject import Subject
from .timed_methods import TimedMethod


class Floor(EqualWeighting):
    """Equal weighting that also forms the norms of the tasks' unweighted gradients.

    Args:
        subject: one whose model has a fork.
        num_tasks: T.
        of_layer: True for gradients of the last shared layer's weight (the layer is a ``Linear``, and the fork gets its
            ReLU); False for gradients of the features.

    Attributes:
        norms: each task's gradient norm, by task; or all norms ``(T,)`` under the key None, if one product gives them
            together.
    """

    def __init__(self, subject: Subject, num_tasks: int, of_layer: bool) -> None:
        super().__init__(num_tasks)
        assert subject.fork is not None
        self.norms: dict[int | None, Tensor] = {}
        self._inputs: Tensor | None = None
        if of_layer:
            assert isinstance(subject.wrt, nn.Linear)
            subject.wrt.register_forward_pre_hook(self._keep)
        self._reading = subject.fork.reading
        self._reading.attach(Reader(combines=False))
        self._observer = _FloorObserver(self._of_layer if of_layer else self._of_features)

    def forward(self, losses: Losses) -> Tensor:
        self._reading.claim(self._observer)
        return super().forward(losses)

    def _keep(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        self._inputs = inputs[0].detach()

    def _of_layer(self, _: Passage, z: Tensor, task: int | None, gradients: Tensor, spare: int) -> None:
        assert self._inputs is not None
        if task is None:
            torch.ops.aten.threshold_backward.grad_input(gradients, z, 0, grad_input=gradients)
            products = torch.bmm(gradients.mT, self._inputs.expand(len(gradients), *self._inputs.shape))
        else:
            products = torch.mm(torch.ops.aten.threshold_backward(gradients, z, 0).t(), self._inputs)
        self.norms[task] = torch.linalg.vector_norm(products, dim=(-2, -1))

    def _of_features(self, _: Passage, z: Tensor, task: int | None, gradients: Tensor, spare: int) -> None:
        self.norms[task] = torch.linalg.vector_norm(gradients, dim=(-2, -1))


class _FloorObserver:
    """Passes on what a fork shows in any backward pass."""

    combines, features = False, 0

    def __init__(self, observe: Callable[[Passage, Tensor, int | None, Tensor, int], None]) -> None:
        self.observe = observe

    def is_current(self) -> bool:
        return True

    def is_late(self) -> bool:
        return False

    def combined(self, passage: Passage) -> Tensor:
        raise NotImplementedError

    def gradients_of(
        self,
        leaves: Sequence[Tensor],
        features: Sequence[Tensor],
        graph: GraphBehind,
        passages: Sequence[Passage],
        retain_graph: bool,
    ) -> Sequence[Tensor | None]:
        raise NotImplementedError


LAYER_FLOOR = TimedMethod("products alone", partial(Floor, of_layer=True))
FEATURES_FLOOR = TimedMethod("norms alone", partial(Floor, of_layer=False))
