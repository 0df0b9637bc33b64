"""Balancers that need no more of the tasks' gradients than all their inner products: the Gramian."""

import math
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .combining import Combination, CombiningBalancer
from .ranks import world_size


class GramianBalancer(CombiningBalancer):
    r"""A balancer whose weights are a function of the Gramian :math:`M_{ij} = \langle \nabla L_i, \nabla L_j \rangle`.

    Args:
        fork, wrt, tasks, update_every, accumulate, check_finite: see `CombiningBalancer`. The inner products are of
            gradients with respect to ``wrt``; combined are those of the features, or without a fork of all parameters.
    """

    reads = "gramian"

    identity: Tensor

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("identity", torch.eye(self.num_tasks), persistent=False)

    def solve(self, gramian: Tensor) -> Tensor:
        """Weights ``(..., T)`` for Gramians ``(..., T, T)`` of finite numbers: without waiting for the device."""
        raise NotImplementedError(f"{type(self).__name__} must override solve")

    def decide(self, gramian: Tensor, valid: Tensor) -> Tensor:
        """Return a step's weights, ``(T,)``; for methods with a state, which stays as it is if ``valid`` is false."""
        return self.solve(gramian)

    def _combined(self, columns: list[Tensor], scale: Tensor, losses: Tensor) -> Combination:
        rows = [column.flatten(1).to(self.weights.dtype) for column in columns]
        gramian = reduce(torch.add, [each @ each.mT for each in rows]) / scale.square()
        if self._wrt is None and world_size() > 1:
            # Each rank's features are variables of their own, in a loss that is the mean over ranks.
            dist.all_reduce(gramian)
            gramian = gramian / world_size() ** 2
        valid = gramian.trace() < math.inf  # no product is larger than the squares of both
        identity = self.identity if len(gramian) == self.num_tasks else self.identity[: len(gramian), : len(gramian)]
        gramian = torch.where(valid, gramian, identity)
        self.statistics["gramian"] = gramian
        return Combination(self.decide(gramian, valid), valid)
