"""GradNorm against numbers worked out by hand, and its options and limits."""

import math

import pytest
import torch
from torch import Tensor, nn

from balancers import Fork, GradNorm, StaticWeighting

from .nets import build, inputs, losses_of
from .reference import Reference

pytestmark = pytest.mark.on_device


class Scalar(nn.Module):
    """z = W x with W = 2; the tasks' losses are L_1 = z and L_2 = 3 z + 2."""

    def __init__(self) -> None:
        super().__init__()
        self.fork = Fork(2)
        self.trunk = nn.Linear(1, 1, bias=False).double()
        nn.init.constant_(self.trunk.weight, 2.0)

    def forward(self, x: Tensor, fork: nn.Module) -> list[Tensor]:
        first, second = fork(self.trunk(x))
        return [first.sum(), 3 * second.sum() + 2]


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Always x = 1 and alpha = 1, so that dL/dW = (1, 3); the weights' lr is 0.1, the network's 1/8.
#
# Step 0: W = 2, L = (2, 8), r = (1, 1), w = (1, 1): G = (1, 3), mean 2, targets (2, 2), signs (-, +),
#   dL_grad/dw = (-1, 3). The network's gradient is 1 + 3 = 4, and W becomes 3/2.
#   SGD: w = (1.1, 0.7), renormalised (11/9, 7/9). Adam's first step is lr times the sign: w = (1.1, 0.9).
# Step 1: L = (1.5, 6.5), ratios (0.75, 0.8125), mean 0.78125, r = (0.96, 1.04).
#   SGD: G = (11/9, 21/9), mean 16/9, targets (1.7067, 1.8489), dL_grad/dw = (-1, 3), the network's gradient 32/9;
#     w = (11.9/9, 4.3/9), renormalised (119/81, 43/81).
#   Adam: G = (1.1, 2.7), mean 1.9, targets (1.824, 1.976), dL_grad/dw = (-1, 3) once more, so that Adam again moves by
#     lr: w = (1.2, 0.8); the network's gradient is 3.8.
BY_HAND = {
    "sgd": ([tensor(11 / 9, 7 / 9), tensor(119 / 81, 43 / 81)], [4, 32 / 9]),
    "adam": ([tensor(1.1, 0.9), tensor(1.2, 0.8)], [4, 3.8]),
}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("which", ["layer", "features", "parameters", "reference"])
def test_two_steps_by_hand(which: str, optimizer: str):
    weights, slopes = BY_HAND[optimizer]
    net = Scalar()
    options = {"alpha": 1.0, "lr": 0.1, "optimizer": optimizer}
    if which == "reference":
        balancer = Reference(2, **options)
    elif which == "parameters":
        balancer = GradNorm(None, wrt=net.trunk.weight, tasks=2, **options)
    else:
        balancer = GradNorm(net.fork, wrt=net.trunk if which == "layer" else None, **options)
    for t in range(2):
        net.zero_grad()
        if isinstance(balancer, Reference):
            balancer.backward(net(tensor(1), lambda z: (z, z)), [net.trunk.weight])
            result = balancer.weights.detach()
        else:
            balancer(net(tensor(1), net.fork)).backward()
            result = balancer.next_weights
        torch.testing.assert_close(result.cpu(), weights[t], rtol=0, atol=1e-8 if optimizer == "adam" else 1e-14)
        torch.testing.assert_close(net.trunk.weight.grad.item(), float(slopes[t]), rtol=0, atol=1e-8)
        with torch.no_grad():
            net.trunk.weight.fill_(1.5)


def test_statistics_by_hand():
    net = Scalar()
    balancer = GradNorm(net.fork, wrt=net.trunk, alpha=1.0, lr=0.1, optimizer="sgd")
    balancer(net(tensor(1), net.fork)).backward()
    with torch.no_grad():
        net.trunk.weight.fill_(1.5)
    balancer(net(tensor(1), net.fork)).backward()
    expected = {
        "losses": tensor(1.5, 6.5),
        "loss_ratios": tensor(0.75, 0.8125),
        "gradient_norms": tensor(11 / 9, 21 / 9),
        "targets": tensor(0.96, 1.04) * 16 / 9,
    }
    assert set(balancer.statistics) >= set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(balancer.statistics[key], value)


def steps(balancer: GradNorm, net, count: int) -> list[Tensor]:
    """Train the weights, not the network; return those used at each step."""
    used = []
    for x in inputs("linear", count):
        balancer(losses_of(net(x), x)).backward()
        used.append(balancer.weights)
    return used


@pytest.mark.slow
def test_alpha_zero_brings_the_norms_together():
    net = build("linear", 3)
    balancer = GradNorm(net.fork, wrt=net.layer, alpha=0.0, lr=0.01)
    (x,) = inputs("linear")
    for _ in range(300):
        balancer(losses_of(net(x), x)).backward()
    norms = balancer.statistics["gradient_norms"]
    torch.testing.assert_close(norms, norms.mean().expand(3), rtol=0.05, atol=0)


@pytest.mark.parametrize("given", [[0.3, math.log(13)], {"b": math.log(13), "a": 0.3}], ids=["list", "dict"])
def test_initial_losses(given):
    net = build("linear", 2)
    balancer = GradNorm(net.fork, wrt=net.layer, tasks=["a", "b"], initial_losses=given)
    (x,) = inputs("linear")
    losses = losses_of(net(x), x)
    balancer(losses).backward()
    ratios = torch.stack(losses).detach() / tensor(0.3, math.log(13))
    torch.testing.assert_close(balancer.statistics["loss_ratios"], ratios, rtol=1e-12, atol=0)


def test_freeze_after():
    free, net = build("linear", 2), build("linear", 2)
    expected = steps(GradNorm(free.fork, wrt=free.layer), free, 4)
    used = steps(GradNorm(net.fork, wrt=net.layer, freeze_after=3), net, 8)
    torch.testing.assert_close(used[:4], expected)
    assert all(weights.equal(used[3]) for weights in used[3:])
    assert_identity(net.fork)


@pytest.mark.on_cpu  # another device's answer may come later
def test_freeze_at_once():
    net = build("linear", 2)
    balancer = GradNorm(net.fork, wrt=net.layer, freeze_after=0)
    assert all(weights.equal(torch.ones(2)) for weights in steps(balancer, net, 2))
    assert_identity(net.fork)


def assert_identity(fork: Fork) -> None:
    z = torch.randn(2, 3, requires_grad=True) * 2
    assert all(alias is z for alias in fork(z))


def test_frozen_weights_still_train_the_network():
    net = build("linear", 2)
    balancer = GradNorm(net.fork, wrt=net.layer, freeze_after=2)
    steps(balancer, net, 3)
    (x,) = inputs("linear")
    net.zero_grad()
    losses = losses_of(net(x), x)
    parameters = list(net.parameters())
    expected = torch.autograd.grad(sum(w * loss for w, loss in zip(balancer.weights, losses, strict=True)), parameters)
    balancer(losses_of(net(x), x)).backward()
    torch.testing.assert_close([p.grad for p in parameters], list(expected), rtol=1e-12, atol=0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_average_weights(optimizer: str):
    net = build("linear", 3)
    balancer = GradNorm(net.fork, wrt=net.layer, tasks=["a", "b", "c"], optimizer=optimizer)
    used = steps(balancer, net, 7)
    average = balancer.average_weights()
    assert isinstance(average, StaticWeighting)
    assert average.tasks == ("a", "b", "c")
    (x,) = inputs("linear")
    losses = losses_of(net(x), x)
    expected = torch.stack(used).mean(0)
    torch.testing.assert_close(average(losses), torch.dot(expected, torch.stack(losses)), rtol=1e-12, atol=0)
    torch.testing.assert_close(average.weights, expected, rtol=1e-12, atol=0)


def test_average_weights_before_the_first_step():
    with pytest.raises(RuntimeError, match="before GradNorm's first update"):
        GradNorm(Fork(2)).average_weights()


def test_average_weights_leaves_out_invalid_steps():
    net = build("linear", 2)
    balancer = GradNorm(net.fork, wrt=net.layer)
    used = steps(balancer, net, 3)
    (x,) = inputs("linear")
    balancer([loss * math.nan for loss in losses_of(net(x), x)]).backward()
    average = balancer.average_weights()
    average(losses_of(net(x), x))
    torch.testing.assert_close(average.weights, torch.stack(used).mean(0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("features", [False, True])
def test_two_losses_before_their_backward_passes(features: bool):
    """Each pass is measured with its own weights, in any order of forward and backward passes."""
    net = build("linear", 2)
    balancer = GradNorm(net.fork, wrt=None if features else net.layer, lr=0.3)
    batches = inputs("linear", 3)
    norms = []
    for x in batches:
        fresh = GradNorm(net.fork, wrt=None if features else net.layer)
        fresh(losses_of(net(x), x)).backward()
        norms.append(fresh.statistics["gradient_norms"])
    # The loop is one batch ahead: forward, forward, backward, forward, backward, ...
    waiting = balancer(losses_of(net(batches[0]), batches[0]))
    for t, x in enumerate(batches):
        following = balancer(losses_of(net(batches[t + 1]), batches[t + 1])) if t + 1 < len(batches) else None
        weights = balancer.next_weights.clone()
        waiting.backward()
        measured = balancer.statistics["gradient_norms"] / weights
        torch.testing.assert_close(measured, norms[t], rtol=1e-9, atol=0, msg=f"pass {t}, x of sum {x.sum()}")
        waiting = following


def test_the_gradient_of_a_scalar_is_no_norm() -> None:
    """Its sign does not count, also where gradients of several passes are averaged before their norm is taken."""
    scalar = nn.Parameter(torch.tensor(-2.0))
    balancer = GradNorm(None, wrt=scalar, tasks=2, accumulate=2)
    for _ in range(2):
        balancer([-3 * scalar, -5 * scalar]).backward()
    torch.testing.assert_close(balancer.statistics["gradient_norms"], torch.tensor([3.0, 5.0]))


def test_losses_that_are_all_zero_count_as_equally_fast() -> None:
    """Such a step is valid: it may be of batches without positives. The targets are then the mean norm."""
    weight = nn.Parameter(tensor(1.0))
    balancer = GradNorm(None, wrt=weight, tasks=2, lr=0.1, optimizer="sgd", check_finite=True)
    balancer([weight.sum(), 3 * weight.sum()]).backward()
    before = balancer.next_weights.clone()
    balancer([(weight - 1).sum(), 3 * (weight - 1).sum()]).backward()
    norms = before * tensor(1.0, 3.0)
    expected = before - 0.1 * torch.sign(norms - norms.mean()) * tensor(1.0, 3.0)
    torch.testing.assert_close(balancer.next_weights, 2 * expected / expected.sum())


def test_the_target_of_a_task_with_no_loss_left_is_zero_at_any_alpha() -> None:
    weight = nn.Parameter(tensor(1.0))
    balancer = GradNorm(None, wrt=weight, tasks=2, alpha=0.01, initial_losses=[1.0, 1.0])
    balancer([weight.sum(), (weight - 1).sum()]).backward()
    torch.testing.assert_close(balancer.statistics["targets"], tensor(2**0.01, 0.0))


def test_a_loss_that_is_not_a_number_is_not_shown_as_one_that_has_not_begun() -> None:
    weight = nn.Parameter(tensor(1.0))
    balancer = GradNorm(None, wrt=weight, tasks=2)
    for scale in (1.0, math.nan):
        balancer([scale * weight.sum(), 3 * weight.sum()]).backward()
    torch.testing.assert_close(balancer.statistics["loss_ratios"], tensor(math.nan, 1.0), equal_nan=True)
    assert balancer.updates.tolist() == [1, 1]
