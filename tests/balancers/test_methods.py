"""Equal, static and uncertainty weighting, against their definitions."""

import pytest
import torch

from balancers import EqualWeighting, LossBalancer, StaticWeighting, UncertaintyWeighting

from .nets import build, inputs, losses_of

pytestmark = pytest.mark.on_device


def gradients_are_those_of(balancer: LossBalancer, weights: list[float]) -> None:
    net = build("linear", len(weights))
    parameters = list(net.parameters())
    for x in inputs("linear", 2):
        losses = losses_of(net(x), x)
        total = sum(w * loss for w, loss in zip(weights, losses, strict=True))
        expected = torch.autograd.grad(total, parameters, retain_graph=True)
        net.zero_grad()
        loss = balancer(losses)
        loss.backward()
        torch.testing.assert_close(loss, total, rtol=1e-12, atol=0)
        torch.testing.assert_close([p.grad for p in parameters], list(expected), rtol=1e-12, atol=1e-15)


def test_equal():
    gradients_are_those_of(EqualWeighting(3), [1, 1, 1])


@pytest.mark.parametrize("weights", [[1, 2, 0], [0.5, 2.0, 0.25], [0.1, 0.3, 7.7], [1 / 48**2, 1 / 3**2, 1 / 54**2]])
@pytest.mark.parametrize(
    "form", [list, tuple, lambda w: torch.tensor(w, dtype=torch.float64)], ids=["list", "tuple", "tensor"]
)
def test_static(form, weights: list[float]):
    gradients_are_those_of(StaticWeighting(form(weights)), weights)


def test_static_ones_are_equal_weighting():
    gradients_are_those_of(StaticWeighting([1, 1, 1]), [1, 1, 1])


@pytest.mark.parametrize(
    "weights", [[1, 2], [1.0, 2.0], torch.tensor([1, 2]), torch.tensor([1.0, 2.0]).half()], ids=str
)
def test_weights_are_floating_point(weights):
    balancer = StaticWeighting(weights)
    assert balancer.weights.dtype == torch.float32
    balancer([torch.tensor(1.0, requires_grad=True)] * 2)
    assert balancer.weights.tolist() == [1, 2]


def test_static_is_not_changed_with_the_callers_tensor():
    weights = torch.tensor([1.0, 2.0])
    balancer = StaticWeighting(weights)
    weights.zero_()
    assert balancer.weights.tolist() == [1, 2]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(
    ("likelihoods", "shares"),
    [("gaussian", [0.5, 0.5, 0.5]), ("softmax", [1, 1, 1]), (["softmax", "gaussian", "softmax"], [1, 0.5, 1])],
    ids=["gaussian", "softmax", "both"],
)
def test_uncertainty_is_its_likelihood_differentiated(likelihoods, shares: list[float], optimizer: str):
    """The log-variances are trained on sum_i c_i exp(-s_i) L_i + s_i / 2, the network on the same objective."""
    net = build("linear", 3)
    balancer = UncertaintyWeighting(3, likelihoods, lr=0.05, optimizer=optimizer)
    s = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    own = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]([s], lr=0.05)
    parameters = list(net.parameters())
    for x in inputs("linear", 50):
        losses = losses_of(net(x), x)
        objective = torch.dot(torch.tensor(shares).double() * torch.exp(-s), torch.stack(losses)) + s.sum() / 2
        *expected, s.grad = torch.autograd.grad(objective, [*parameters, s], retain_graph=True)
        net.zero_grad()
        balancer(losses).backward()
        own.step()
        torch.testing.assert_close([p.grad for p in parameters], expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(balancer.log_variances, s.detach(), rtol=0, atol=1e-12)


def test_uncertainty_by_name():
    balancer = UncertaintyWeighting(["depth", "labels"], {"labels": "softmax", "depth": "gaussian"})
    assert balancer.weights.tolist() == [0.5, 1.0]


def test_uncertainty_learns_at_its_own_default_rate():
    balancer = UncertaintyWeighting(1)
    balancer([torch.tensor(3.0, requires_grad=True)]).backward()
    torch.testing.assert_close(balancer.log_variances, torch.tensor([0.025]))


def test_eval_only_weighs():
    net = build("linear", 2)
    (x,) = inputs("linear")
    balancer = UncertaintyWeighting(2)
    balancer(losses_of(net(x), x)).backward()
    learned = balancer.log_variances.clone()
    balancer.eval()(losses_of(net(x), x)).backward()
    assert balancer.log_variances.equal(learned)


def test_uncertainty_against_torchjd():
    """TorchJD's objective is that of Gaussian likelihoods. 200 steps of SGD."""
    theirs = pytest.importorskip("torchjd.scalarization").UW(3).double()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.02)
    ours = UncertaintyWeighting(3, "gaussian", lr=0.02, optimizer="sgd")
    generator = torch.Generator().manual_seed(3)
    for _ in range(200):
        losses = torch.rand(3, generator=generator, dtype=torch.float64).mul(4).requires_grad_()
        ours(losses).backward()
        optimizer.zero_grad()
        losses.grad = None
        theirs(losses).backward()
        torch.testing.assert_close(ours.weights, losses.grad, rtol=1e-4, atol=0)
        optimizer.step()
