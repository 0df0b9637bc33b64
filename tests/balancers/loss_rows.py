"""Train balancers that read losses on given rows of them."""

import torch
from torch import Tensor

from balancers import LossBalancer


def run(balancer: LossBalancer, losses: Tensor) -> Tensor:
    """Train on rows of losses, and return each step's weights."""
    weights = []
    for row in losses:
        leaf = row.clone().requires_grad_()
        balancer(leaf).backward()
        torch.testing.assert_close(leaf.grad, balancer.weights, rtol=0, atol=0)
        weights.append(balancer.weights)
    return torch.stack(weights)
