"""The audit of the first step refuses wrong losses and passes right ones if one product computes all heads."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from balancers import ForkError, GradNorm

from .heads import NAMES, TASKS, Batched, build, inputs, losses_of, wrt_of

Losses = Callable[[Batched, Tensor], object]


def swapped(net: Batched, losses: Tensor):
    return losses[[1, 0, 2]]


def swapped_list(net: Batched, losses: Tensor):
    return [losses[0], losses[2], losses[1]]


def same_loss_twice(net: Batched, losses: Tensor):
    return [losses[0], losses[0], losses[2]]


def consistency_term(net: Batched, losses: Tensor):
    return [losses[0], losses[1], losses[2] + 0.1 * losses[1]]


def mixed_outputs(net: Batched, losses: Tensor):
    outputs = net(inputs(6))
    return losses_of(outputs + outputs.roll(1, -2).tanh())


def mixed_losses(net: Batched, losses: Tensor):
    return torch.full((3, 3), 0.1, dtype=losses.dtype) @ losses


def mean_over_tasks(net: Batched, losses: Tensor):
    """Average over the wrong dimensions, which goes unnoticed if there are as many samples as tasks."""
    return net(inputs(TASKS)).square().mean((1, 2))


def skip_around(net: Batched, losses: Tensor):
    return losses + net.trunk(inputs(6)).square().mean()


def penalty_on_trunk(net: Batched, losses: Tensor):
    return [losses[0] + 1e-3 * net.trunk[0].weight.square().sum(), *losses[1:]]


def detached(net: Batched, losses: Tensor):
    return [losses[0], torch.ones((), requires_grad=True) * losses[1].detach(), losses[2]]


def own_trunk_pass(net: Batched, losses: Tensor):
    return [losses[0], net.trunk(inputs(6)).square().mean(), losses[2]]


REFUSED: list[tuple[Losses, str]] = [
    (swapped, "'depth' depends on the features that the fork handed to task 'normals'"),
    (swapped_list, "'normals' depends on the features that the fork handed to task 'edges'"),
    (same_loss_twice, "'normals' depends on the features that the fork handed to task 'depth'"),
    (consistency_term, "'edges' depends on the features that the fork handed to task 'normals'"),
    (mixed_outputs, "'depth' depends on the features that the fork handed to task 'edges'"),
    (mixed_losses, "'depth' depends on the features that the fork handed to task 'normals'"),
    (mean_over_tasks, "'depth' depends on the features that the fork handed to task 'normals'"),
    (skip_around, "'depth' reaches a parameter of shape .* around the fork"),
    (penalty_on_trunk, "'depth' reaches a parameter of shape .* around the fork"),
    (detached, "'normals' does not depend on the features"),
    (own_trunk_pass, "'normals' reaches a parameter of shape .* around the fork"),
]


@pytest.mark.parametrize("wrt", ["features", "layer"])
@pytest.mark.parametrize("case", range(len(REFUSED)), ids=lambda i: REFUSED[i][0].__name__)
def test_refused(case: int, wrt: str):
    losses, words = REFUSED[case]
    net = build(Batched)
    balancer = GradNorm(**wrt_of(net, wrt), tasks=NAMES)
    with pytest.raises(ForkError, match=words):
        balancer(losses(net, losses_of(net(inputs(6)))))
    balancer(losses_of(net(inputs(6)))).backward()


@pytest.mark.parametrize("wrt", ["head", "other model"])
def test_wrt_not_upstream(wrt: str):
    net = build(Batched)
    balancer = GradNorm(net.fork, wrt=net.heads if wrt == "head" else nn.Linear(7, 2).double())
    with pytest.raises(ForkError, match=r"wrt holds a parameter of shape \(.*upstream of the fork"):
        balancer(losses_of(net(inputs(6))))


def scaled(net: Batched, losses: Tensor):
    return losses * torch.tensor([1.0, 2.0, 3.0])


def flat_just_now(net: Batched, losses: Tensor):
    """Give one task a gradient that is zero in this step."""
    return losses * torch.tensor([1.0, 0.0, 1.0])


def concatenated(net: Batched, losses: Tensor):
    return torch.cat([loss.view(1) for loss in losses])


def taken_apart(net: Batched, losses: Tensor):
    outputs = net(inputs(6)).unbind(-2)
    return [outputs[0].square().mean(), outputs[1].abs().mean(), outputs[2][:, 0].exp().mean()]


def frozen_heads(net: Batched, losses: Tensor):
    net.heads.requires_grad_(False)
    return losses_of(net(inputs(6)))


def frozen_trunk_part(net: Batched, losses: Tensor):
    net.trunk[0].requires_grad_(False)
    return losses_of(net(inputs(6)))


def in_any_order(net: Batched, losses: Tensor):
    return dict(zip(NAMES[::-1], reversed(losses.unbind()), strict=True))


def two_of_three(net: Batched, losses: Tensor):
    return dict(zip(NAMES[1:], losses[1:], strict=True))


PASSING: list[Losses] = [
    scaled,
    flat_just_now,
    concatenated,
    taken_apart,
    frozen_heads,
    frozen_trunk_part,
    in_any_order,
    two_of_three,
]


@pytest.mark.parametrize("wrt", ["features", "layer"])
@pytest.mark.parametrize("losses", PASSING, ids=lambda f: f.__name__)
def test_passes(losses: Losses, wrt: str):
    net = build(Batched)
    balancer = GradNorm(**wrt_of(net, wrt), tasks=NAMES)
    balancer(losses(net, losses_of(net(inputs(6))))).backward()
    assert not balancer.next_weights.equal(torch.ones(TASKS, dtype=balancer.next_weights.dtype))
