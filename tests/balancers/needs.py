"""Give balancers what they need beside the losses, in tests that run every method."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from balancers import LossBalancer, Losses
from balancers.engine import ResidualBalancer

_optimizers: weakref.WeakKeyDictionary[LossBalancer, torch.optim.Optimizer] = weakref.WeakKeyDictionary()
"""Optimisers that balancers follow, and that are in no other hands."""


def supply(balancer: LossBalancer, again: Callable[[], Losses], optimizer: torch.optim.Optimizer | None = None) -> None:
    """Give a balancer a second batch, an optimiser to follow, and in each step residuals, if it needs them.

    The residuals are the losses themselves, as tensors of one entry.

    Args:
        balancer: made for a network.
        again: computes the losses of a second batch.
        optimizer: that of the network. None: SGD of the balancer's parameters, whose step `end_window` pretends.
    """
    if balancer.needs_second_batch:
        balancer.second_batch(again)
    if balancer.needs_optimizer:
        if optimizer is None:
            optimizer = _optimizers[balancer] = torch.optim.SGD(balancer.measured_parameters(), lr=0.1)
        balancer.follow(optimizer)
    if isinstance(balancer, ResidualBalancer) and _give_residuals not in balancer._forward_pre_hooks.values():
        balancer.register_forward_pre_hook(_give_residuals)


def _give_residuals(balancer: Any, arguments: tuple[Losses]) -> None:
    losses = arguments[0]
    balancer.residuals(list(losses.unbind()) if isinstance(losses, Tensor) else losses)


def end_window(balancer: LossBalancer) -> None:
    """Make an optimiser's step that changes nothing, if a balancer that follows it waits for it."""
    optimizer = _optimizers.get(balancer)
    if optimizer is None or balancer._window.count < balancer.accumulate:
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    optimizer.step()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
