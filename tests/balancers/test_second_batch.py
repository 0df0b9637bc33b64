"""MoDo, SDMGrad and Auto-Lambda against their peers and definitions, and what a second batch asks of a balancer."""

import copy
import gc
import itertools
import pickle
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from balancers import (
    MGDA,
    AutoLambda,
    CoBa,
    Fork,
    ForkError,
    GradNorm,
    LossBalancer,
    MoDo,
    SDMGrad,
    UncertaintyWeighting,
)
from balancers.engine.classes.second_batch import moved

from ..slow_params import others_slow

pytestmark = pytest.mark.on_device
TASKS = ("a", "b", "c")
METHODS = (MoDo, SDMGrad, AutoLambda, CoBa)
OPTIONS: Mapping[type[LossBalancer], Mapping[str, Any]] = {
    AutoLambda: {"lr": 0.05},
    CoBa: {"window": 4, "warm_up": 1},
    MoDo: {},
    SDMGrad: {"lr": 0.01},
}
"""Options with which few steps change the weights."""
methods = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


class Net(nn.Module):
    """A trunk and three heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.LayerNorm(5), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(5, 2) for _ in TASKS)
        self.double()

    def losses(self, seed: int, tasks: Sequence[str] = TASKS) -> dict[str, Tensor]:
        """Return the losses of a batch."""
        x = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        z = self.trunk(x)
        heads = dict(zip(TASKS, self.heads, strict=True))
        return {task: (heads[task](z) - TASKS.index(task) - 1).square().mean() for task in tasks}


class Subject:
    """A network, its optimiser, and a balancer with a second batch in each step."""

    def __init__(self, method: type[LossBalancer], *, momentum: float = 0.0, **options: Any) -> None:
        self.net = Net()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=momentum)
        self.balancer = self.make(method, **options)
        self.calls = 0
        """The number of second batches drawn."""
        self.give()

    def make(self, method: type[LossBalancer], **options: Any) -> Any:
        options = {"tasks": TASKS, **OPTIONS.get(method, {}), **options}
        return method(**options) if method is CoBa else method(None, wrt=self.net.trunk, **options)

    def give(self) -> None:
        """Give the balancer what it needs."""
        self.balancer.second_batch(self.draw)
        if self.balancer.needs_optimizer:
            self.balancer.follow(self.optimizer)

    def draw(self) -> dict[str, Tensor]:
        self.calls += 1
        return self.net.losses(1000 + self.calls)

    def backward(self, seed: int, tasks: Sequence[str] = TASKS, scale: float = 1.0) -> Tensor:
        """Make a backward pass, and return the weights."""
        self.optimizer.zero_grad()
        (scale * self.balancer(self.net.losses(seed, tasks))).backward()
        return self.balancer.weights

    def step(self, seed: int, tasks: Sequence[str] = TASKS) -> Tensor:
        weights = self.backward(seed, tasks)
        self.optimizer.step()
        return weights

    def saved(self) -> dict[str, Tensor]:
        return {key: value.clone() for key, value in self.balancer.state_dict().items()}


def jacobian(losses: Mapping[str, Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Return the losses' gradients, ``(T, P)``."""
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses.values()]
    filled = [[torch.zeros_like(p) if g is None else g for g, p in zip(row, parameters, strict=True)] for row in rows]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in filled])


def gradient(net: Net) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in net.trunk.parameters()])


# Against TorchJD


class Planted:
    """Losses with planted gradients, of a balancer with the peer's options."""

    def __init__(self, method: type[LossBalancer], num_tasks: int, **options: Any) -> None:
        self.theta = nn.Parameter(torch.zeros(6, dtype=torch.float64))
        self.balancer: Any = method(None, wrt=[self.theta], tasks=num_tasks, **options)

    def weights(self, *rows: Tensor) -> Tensor:
        """Return the weights of a step with gradients ``(T, 6)``: of the step's losses, and of each second batch."""
        own, *others = (list((each @ self.theta).unbind()) for each in rows)
        batches = iter(others)
        self.balancer.second_batch(lambda: next(batches))
        self.balancer(own).backward()
        return self.balancer.weights


def rows(number: int, num_tasks: int, spread: float = 1.0) -> Iterator[list[Tensor]]:
    """Yield three sets of gradients each, of different lengths, those of one task alike."""
    generator = torch.Generator().manual_seed(num_tasks)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    for _ in range(number):
        common = normal(num_tasks, 6) * normal(num_tasks, 1).mul(spread).exp()
        yield [common + 0.5 * normal(num_tasks, 6) for _ in range(3)]


@pytest.mark.parametrize("num_tasks", [1, 2, 5])
@pytest.mark.parametrize("options", [{}, {"gamma": 0.01, "rho": 0.0}, {"gamma": 1e-3, "rho": 2.0}], ids=str)
@pytest.mark.parametrize("steps", others_slow([50, 250], 50))
def test_modo_against_torchjd(options: Mapping[str, float], num_tasks: int, steps: int):
    peer = pytest.importorskip("torchjd.aggregation").MoDoWeighting(**options)
    planted = Planted(MoDo, num_tasks, **options)
    for own, other, _ in rows(steps, num_tasks):
        expected = peer(own @ other.mT)
        torch.testing.assert_close(planted.weights(own, other), expected, rtol=1e-9, atol=1e-12)


def sdmgrad_scaled(peer: Any, products: Tensor) -> Tensor:
    """Return TorchJD's weights with the scaling of the authors' code, by a learning rate that makes up for its own."""
    diagonal, lr = products.diagonal().clamp(min=0), peer.lr
    theirs, official = diagonal.sqrt().mean().square() + 1e-8, (diagonal + 1e-4).sqrt().mean().square()
    peer.lr = lr * (theirs / official).item()
    weights = peer(products)
    peer.lr = lr
    return weights


@pytest.mark.slow
@pytest.mark.parametrize("num_tasks", [1, 2, 5])
@pytest.mark.parametrize(
    ("options", "its"),
    [
        ({"lr": 0.1}, {"lr": 0.1}),
        ({"lr": 0.5, "momentum": 0.0, "iterations": 7}, {"lr": 0.5, "momentum": 0.0, "n_iter": 7}),
        ({"lr": 0.1, "regularization": 0.0}, {"lr": 0.1, "lambda_": 0.0}),
        ({"lr": 0.1, "regularization": 3.0}, {"lr": 0.1, "lambda_": 3.0}),
    ],
    ids=str,
)
def test_sdmgrad_against_torchjd(options: Mapping[str, Any], its: Mapping[str, Any], num_tasks: int):
    peer = pytest.importorskip("torchjd.aggregation").SDMGradWeighting(**its)
    planted = Planted(SDMGrad, num_tasks, **options)
    for step, one, other in rows(250, num_tasks):
        expected = sdmgrad_scaled(peer, one @ other.mT)
        torch.testing.assert_close(planted.weights(step, one, other), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_sdmgrad_with_the_papers_learning_rate_against_torchjd():
    """Steps of 10 amplify rounding, so that each case has an iteration from equal shares."""
    its = pytest.importorskip("torchjd.aggregation")
    for step, one, other in rows(250, 4):
        expected = sdmgrad_scaled(its.SDMGradWeighting(), one @ other.mT)
        torch.testing.assert_close(Planted(SDMGrad, 4).weights(step, one, other), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_sdmgrad_preferences_against_torchjd():
    """As parts of their sum: the peer takes them as they are."""
    preferred = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    peer = pytest.importorskip("torchjd.aggregation").SDMGradWeighting(lr=0.1, pref_vector=preferred)
    planted = Planted(SDMGrad, 3, lr=0.1, preferences=[5.0, 2.0, 3.0])
    first = (torch.full_like(preferred, 1 / 3) + 0.3 * preferred) / 1.3
    torch.testing.assert_close(planted.balancer.weights.double(), first, rtol=1e-6, atol=0)
    for step, one, other in rows(200, 3):
        expected = sdmgrad_scaled(peer, one @ other.mT)
        torch.testing.assert_close(planted.weights(step, one, other), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("method", [MoDo, SDMGrad], ids=lambda method: method.name)
def test_a_trained_sequence_against_torchjd(method: type[LossBalancer]):
    """The peer gets the products that `torch.autograd.grad` finds, and the network the gradient with its weights."""
    its = pytest.importorskip("torchjd.aggregation")
    peer = its.MoDoWeighting() if method is MoDo else its.SDMGradWeighting(lr=0.01)
    subject = Subject(method)
    parameters = list(subject.net.trunk.parameters())
    seen = []
    for t in range(200):
        first, second = (jacobian(subject.net.losses(1001 + subject.calls + k), parameters) for k in (0, 1))
        own = jacobian(subject.net.losses(t), parameters)
        expected = peer(own @ first.mT) if method is MoDo else sdmgrad_scaled(peer, first @ second.mT)
        weights = subject.backward(t)
        torch.testing.assert_close(weights, expected, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(gradient(subject.net), weights @ own, rtol=1e-10, atol=1e-12)
        subject.optimizer.step()
        seen.append(weights)
    assert torch.stack(seen).std(0).max() > 0.01
    assert subject.calls == 200 * subject.balancer.second_batches


def test_extremes_of_sdmgrad():
    """A large lambda follows the preferences; zero is MGDA: the weights of the shortest combination."""
    one = torch.tensor([[1.0, 0, 0, 0, 0, 0], [0, 2.0, 0, 0, 0, 0]], dtype=torch.float64)
    near = Planted(SDMGrad, 2, regularization=1e6, preferences=[1.0, 3.0]).weights(one, one, one)
    torch.testing.assert_close(near, torch.tensor([0.25, 0.75], dtype=torch.float64), rtol=1e-5, atol=0)
    shortest = Planted(SDMGrad, 2, regularization=0.0, lr=0.1, iterations=300).weights(one, one, one)
    torch.testing.assert_close(shortest, torch.tensor([0.8, 0.2], dtype=torch.float64), rtol=1e-6, atol=0)


class Products:
    """Losses with planted products of the gradients of two batches, in float32."""

    def __init__(self, method: type[LossBalancer]) -> None:
        self.theta = nn.Parameter(torch.zeros(2))
        self.balancer: Any = method(None, wrt=[self.theta], tasks=2)

    def weights(self, products: list[list[float]]) -> Tensor:
        eye, other = torch.eye(2), torch.tensor(products).mT
        batches = iter([eye, other] if self.balancer.second_batches == 2 else [other])
        self.balancer.second_batch(lambda: list((next(batches) @ self.theta).unbind()))
        self.balancer(list((eye @ self.theta).unbind())).backward()
        return self.balancer.weights


@pytest.mark.parametrize("method", [MoDo, SDMGrad], ids=lambda method: method.name)
@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6, 1e9, 1e12])
def test_shares_add_up_after_products_that_are_noise(scale: float, method: type[LossBalancer]):
    """Negative ones on the diagonal, which no gradients of one batch have, or large ones."""
    planted = Products(method)
    for noise in ([[-0.1, 0.02], [0.03, -0.2]], [[-0.1, 0.02], [0.03, 0.0]], [[0.1, 0.02], [0.03, 0.2]]):
        planted.weights([[scale * each for each in row] for row in noise])
        torch.testing.assert_close(planted.balancer.shares.sum().item(), 1.0)


def test_sdmgrad_of_noise_is_scaled_as_in_the_authors_code():
    """Their scale for products of a task that are all zero is 1e-4; ten times that is the size of a step."""
    planted = Products(SDMGrad)
    planted.balancer.iterations = 1
    planted.weights([[0.0, 0.0], [1e-6, 0.0]])
    down = 10 * 1e-6 / 1e-4 * (0.5 + 0.3 * 0.5)
    expected = torch.tensor([0.5 + down / 2, 0.5 - down / 2])
    torch.testing.assert_close(planted.balancer.shares, expected, rtol=1e-4, atol=0)


def test_gradients_of_zero():
    zero = torch.zeros(3, 6, dtype=torch.float64)
    for method in (MoDo, SDMGrad):
        weights = Planted(method, 3).weights(zero, zero, zero)
        torch.testing.assert_close(weights, torch.full_like(weights, 1 / 3))


# Auto-Lambda


def foreseen(
    subject: Subject, losses: Sequence[Tensor], lambdas: Tensor, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the parameters after the optimiser's step, as the official code finds them."""
    total = torch.dot(lambdas, torch.stack(list(losses)))
    gradients = torch.autograd.grad(total, list(parameters.values()), create_graph=True)
    (group,) = subject.optimizer.param_groups
    moved = {}
    for (name, parameter), own in zip(parameters.items(), gradients, strict=True):
        momentum = subject.optimizer.state[parameter].get("momentum_buffer", 0.0) * group["momentum"]
        moved[name] = parameter - group["lr"] * (momentum + own + group["weight_decay"] * parameter)
    return moved


class AutoSubject(Subject):
    """Auto-Lambda with plain steps of size 1, so that the change of its weights is minus their gradient."""

    def __init__(self, whole: bool, momentum: float, decay: float, **options: Any) -> None:
        self.whole = whole
        super().__init__(AutoLambda, momentum=momentum, lr=1.0, optimizer="sgd", **options)
        self.optimizer.param_groups[0]["weight_decay"] = decay

    def make(self, method: type[LossBalancer], **options: Any) -> Any:
        return method(None, wrt=self.net if self.whole else self.net.trunk, tasks=TASKS, **options)

    def moving(self) -> dict[str, Tensor]:
        names = dict(self.net.named_parameters())
        return {name: each for name, each in names.items() if self.whole or name.startswith("trunk")}

    def run(self, name: str, arguments: tuple[Any, ...], parameters: Mapping[str, Tensor]) -> Any:
        """Call a function of the network with other parameters."""

        class Called(nn.Module):
            def __init__(self, net: Net) -> None:
                super().__init__()
                self.net = net

            def forward(self, *given: Any) -> Any:
                return getattr(self.net, name)(*given)

        named = {f"net.{key}": value for key, value in parameters.items()}
        return functional_call(Called(self.net), named, arguments)


@pytest.mark.parametrize("primary", [None, ["a"], [0, "c"]], ids=str)
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("whole", [False, True], ids=["trunk", "whole"])
def test_auto_lambda_is_its_objective_differentiated(whole: bool, momentum: float, decay: float, primary: Any):
    """By autograd through the moved parameters, and by the finite differences of the official code."""
    subject = AutoSubject(whole, momentum, decay, primary=primary)
    with torch.no_grad():
        subject.balancer(subject.net.losses(0))  # widens the state to the losses' type
    counts = torch.tensor([float(primary is None or task in primary or i in primary) for i, task in enumerate(TASKS)])
    for t in range(6):
        before = subject.balancer.lambdas.double().clone()
        moving = subject.moving()
        lambdas = before.clone().requires_grad_()
        values = foreseen(subject, list(subject.net.losses(t).values()), lambdas, moving)
        second = subject.run("losses", (1001 + subject.calls,), values)
        objective = torch.dot(counts.double(), torch.stack(list(second.values())))
        (exact,) = torch.autograd.grad(objective, lambdas, retain_graph=True)

        found = torch.autograd.grad(objective, list(values.values()), allow_unused=True)
        pairs = zip(found, moving.values(), strict=True)
        slopes = [torch.zeros_like(each) if slope is None else slope for slope, each in pairs]
        norm = torch.cat([slope.flatten() for slope in slopes]).norm()
        for size, rtol in ((0.01, 1e-2), (1e-4, 1e-5)):  # the first is the official code's
            sides = []
            for eps in (size / norm, -size / norm):
                near = {n: each + eps * slope for (n, each), slope in zip(moving.items(), slopes, strict=True)}
                sides.append(torch.stack(list(subject.run("losses", (t,), near).values())).detach())
            official = -subject.optimizer.param_groups[0]["lr"] * (sides[0] - sides[1]) / (2 * size / norm)
            torch.testing.assert_close(exact, official, rtol=rtol, atol=1e-3 * rtol)

        weights = subject.step(t)
        torch.testing.assert_close(weights, before - exact, rtol=1e-10, atol=1e-13)
        assert exact.abs().max() > 1e-4


def test_auto_lambda_with_adam():
    """By default Adam moves the weights; the network's own Adam is foreseen as a plain step."""
    net = Net()
    parameters = list(net.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    balancer = AutoLambda(None, wrt=net, tasks=TASKS, lr=0.01)
    balancer.second_batch(lambda: net.losses(77))
    balancer.follow(optimizer)
    expected = nn.Parameter(torch.full((3,), 0.1, dtype=torch.float64))
    its = torch.optim.Adam([expected], lr=0.01)
    for t in range(20):
        own = jacobian(net.losses(t), parameters)
        step = 1e-2 * (expected.detach() @ own)
        sizes = [parameter.numel() for parameter in parameters]
        values = [each.detach() - part.view_as(each) for each, part in zip(parameters, step.split(sizes), strict=True)]
        with moved(parameters, values):
            slope = jacobian({"all": sum(net.losses(77).values())}, parameters)[0]
        expected.grad = -1e-2 * (own @ slope)
        its.step()
        optimizer.zero_grad()
        balancer(net.losses(t)).backward()
        torch.testing.assert_close(balancer.weights, expected.detach(), rtol=1e-6, atol=1e-9)
        optimizer.step()


def test_a_task_that_opposes_the_primary_one_falls_below_zero():
    theta = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([theta], lr=0.1)
    balancer = AutoLambda(None, wrt=[theta], tasks=TASKS[:2], primary=["a"], lr=0.05)

    def losses() -> dict[str, Tensor]:
        return {"a": theta.square().sum(), "b": -0.5 * theta.square().sum()}

    balancer.second_batch(losses)
    balancer.follow(optimizer)
    for _ in range(10):
        optimizer.zero_grad()
        balancer(losses()).backward()
        optimizer.step()
    assert balancer.may_ascend
    assert balancer.weights[0] > 0.3
    assert balancer.weights[1] < -0.1


@pytest.mark.parametrize("primary", ["d", [], ["d"], [3], [-1], 3, {"a"}], ids=str)
def test_primary_tasks_are_checked(primary: Any):
    with pytest.raises(ValueError, match=r"primary is .*expected tasks of this balancer.*a, b, c"):
        AutoLambda(None, wrt=Net(), tasks=TASKS, primary=primary)


def test_losses_as_one_tensor_count_the_primary_tasks_alone():
    found = []
    for form in (dict, lambda losses: torch.stack(list(losses.values())), lambda losses: list(losses.values())):
        subject = Subject(AutoLambda, primary=[0])
        subject.balancer.second_batch(lambda subject=subject, form=form: form(subject.draw()))
        subject.optimizer.zero_grad()
        subject.balancer(form(subject.net.losses(0))).backward()
        found.append(subject.balancer.moments_1.clone())
    assert found[0].equal(found[1])
    assert found[0].equal(found[2])


# The network is left as it was


@pytest.mark.parametrize("method", [MoDo, SDMGrad, AutoLambda], ids=lambda method: method.name)
@pytest.mark.parametrize("had_gradients", [False, True])
def test_parameters_and_their_gradients_are_untouched(method: type[LossBalancer], had_gradients: bool):
    subject = Subject(method)
    parameters = list(subject.net.parameters())
    if had_gradients:
        sum(subject.net.losses(5).values()).backward()
    losses = subject.net.losses(0)
    addresses = [parameter.data_ptr() for parameter in parameters]
    values = [parameter.detach().clone() for parameter in parameters]
    gradients = [None if each.grad is None else each.grad.clone() for each in parameters]
    versions = [parameter._version for parameter in parameters]
    total = subject.balancer(losses)
    assert [parameter.data_ptr() for parameter in parameters] == addresses
    assert [parameter._version for parameter in parameters] == versions
    for parameter, value, own in zip(parameters, values, gradients, strict=True):
        assert parameter.equal(value)
        assert (parameter.grad is None) == (own is None)
        assert own is None or parameter.grad.equal(own)
    total.backward()


class Various(nn.Module):
    """A trunk of layers that save their parameters for the backward pass, some as views."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.ModuleDict(
            {
                "embedding": nn.Embedding(9, 4),
                "convolution": nn.Conv1d(4, 3, 2),
                "recurrent": nn.GRU(3, 4, batch_first=True),
                "attention": nn.MultiheadAttention(4, 2, batch_first=True),
                "bilinear": nn.Bilinear(4, 4, 3),
            }
        ).double()
        self.scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.heads = nn.ModuleList(nn.Linear(3, 1).double() for _ in TASKS)

    def losses(self, seed: int) -> list[Tensor]:
        x = torch.randint(9, (3, 5), generator=torch.Generator().manual_seed(seed))
        z = self.layers["convolution"](self.layers["embedding"](x).mT).mT
        z, _ = self.layers["recurrent"](z * self.scale)
        z, _ = self.layers["attention"](z, z, z, need_weights=False)
        z = self.layers["bilinear"](z, z * self.scale.exp()).mean(1)
        return [(head(z) - i).square().mean() for i, head in enumerate(self.heads)]


@pytest.mark.parametrize("method", [MoDo, SDMGrad, AutoLambda], ids=lambda method: method.name)
def test_the_steps_gradient_is_that_of_the_weights(method: type[LossBalancer]):
    """Also where the graph recorded before the parameters moved has saved them."""
    net = Various()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    balancer: Any = method(None, wrt=net, tasks=3)
    balancer.second_batch(lambda: net.losses(8))
    balancer.follow(optimizer)
    for t in range(3):
        optimizer.zero_grad()
        balancer(net.losses(t)).backward()
        found = [parameter.grad.clone() for parameter in net.parameters()]
        total = torch.dot(balancer.weights, torch.stack(net.losses(t)))
        expected = torch.autograd.grad(total, list(net.parameters()))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
        optimizer.step()


def test_running_statistics_survive_a_step_that_is_not_finite():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    balancer = AutoLambda(None, wrt=net, tasks=2)
    balancer.second_batch(lambda: list(net(torch.randn(5, 3)).square().mean(0).unbind()))
    balancer.follow(optimizer)
    small, large = net(torch.randn(5, 3)).square().mean(0).unbind()
    balancer([small, large + (0 * large).sqrt()]).backward()  # the gradient alone is not finite
    torch.testing.assert_close(balancer.weights, torch.full((2,), 0.1))
    assert all(value.isfinite().all() for value in net.state_dict().values())


@pytest.mark.on_cpu
def test_moved_parameters_are_seen_under_autocast():
    """Autocast keeps copies of the parameters in half precision, which must not outlive their values."""
    layer = nn.Linear(3, 3)
    x = torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        before = layer(x)
        with moved([layer.weight], [layer.weight.detach() + 1]):
            within = layer(x)
        after = layer(x)
        plain = layer(x)
    assert after.equal(before)
    assert after.equal(plain)
    expected = x.bfloat16() @ (layer.weight.detach() + 1).bfloat16().mT + layer.bias.bfloat16()
    torch.testing.assert_close(within, expected, rtol=0.02, atol=0.02)


def test_an_exception_restores_the_parameters():
    layer = nn.Linear(3, 3)
    before, address = layer.weight.detach().clone(), layer.weight.data_ptr()
    weight, seen = layer.weight, list[bool]()

    def fail() -> None:
        seen.append(bool(weight.any()))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), moved([weight], [torch.zeros(3, 3)]):
        fail()
    assert seen == [False]
    assert layer.weight.equal(before)
    assert layer.weight.data_ptr() == address


# What is asked of the closure


@methods
def test_without_a_second_batch(method: type[LossBalancer]):
    subject = Subject(method)
    subject.balancer = subject.make(method)
    with pytest.raises(RuntimeError, match=rf"{method.__name__} learns from a second batch.*second_batch\(closure\)"):
        subject.balancer(subject.net.losses(0))
    subject.give()
    assert subject.backward(0).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["never", "gone", "another's"])
def test_auto_lambda_without_the_optimiser(how: str):
    subject = Subject(AutoLambda)
    subject.balancer = subject.make(AutoLambda)
    subject.balancer.second_batch(subject.draw)
    if how == "gone":
        subject.balancer.follow(torch.optim.SGD(subject.net.parameters(), lr=0.1))
        gc.collect()
    if how == "another's":
        other = torch.optim.SGD(Net().parameters(), lr=0.1)
        subject.balancer.follow(other)
    with pytest.raises(RuntimeError, match=r"call balancer\.follow\(optimizer\) with the optimiser of the parameters"):
        subject.balancer(subject.net.losses(0))


def test_parameters_that_the_optimiser_does_not_train_stay():
    """As those of a trunk with an optimiser of its own, for another part."""
    subject = Subject(AutoLambda, optimizer="sgd", lr=1.0)
    with torch.no_grad():
        subject.balancer(subject.net.losses(0))  # widens the state to the losses' type
    first, *_ = parameters = list(subject.net.trunk.parameters())
    subject.optimizer = torch.optim.SGD([first], lr=0.05)
    subject.give()
    own = jacobian(subject.net.losses(0), [first])
    lambdas = subject.balancer.lambdas.double().clone()
    with moved([first], [first.detach() - 0.05 * (lambdas @ own).view_as(first)]):
        slope = jacobian({"all": sum(subject.net.losses(1001).values())}, [first])
    with pytest.warns(RuntimeWarning, match="of the 6 parameters of wrt, which count as fixed"):
        found = subject.backward(0)
    torch.testing.assert_close(found, lambdas + 0.05 * (own @ slope[0]), rtol=1e-10, atol=0)
    assert len(parameters) > 1


@methods
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda losses: {"a": losses["a"], "b": losses["b"]}, "has no loss of task 'c'.*the same tasks"),
        (lambda losses: losses | {"d": losses["a"]}, "of the second batch, losses has an unknown task 'd'"),
        (lambda losses: [losses["a"]], "of the second batch, losses has 1 entry, but this balancer was made for 3"),
        (lambda losses: losses | {"b": losses["b"] * torch.ones(2)}, "of the second batch, the loss of task 'b' has"),
        (lambda losses: {}, "of the second batch, losses is empty"),
    ],
    ids=["few", "unknown", "number", "shape", "none"],
)
def test_a_closure_that_returns_something_else(method: type[LossBalancer], change: Callable[..., Any], message: str):
    subject, calm = Subject(method), Subject(method)
    for each in (subject, calm):
        each.step(0)
    subject.balancer.second_batch(lambda: change(subject.draw()))
    before, values = subject.saved(), [parameter.detach().clone() for parameter in subject.net.parameters()]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        subject.balancer(subject.net.losses(1))
    assert all(value.equal(before[key]) for key, value in subject.saved().items())
    assert all(each.equal(value) for each, value in zip(subject.net.parameters(), values, strict=True))
    subject.give()
    subject.calls = calm.calls
    assert subject.step(1).equal(calm.step(1))


@pytest.mark.parametrize("method", [MoDo, SDMGrad, AutoLambda], ids=lambda method: method.name)
def test_a_second_batch_without_gradients(method: type[LossBalancer]):
    subject = Subject(method)
    subject.balancer.second_batch(lambda: {task: loss.detach() for task, loss in subject.draw().items()})
    with pytest.raises(ValueError, match="of the second batch, the loss of task 'a' does not require grad"):
        subject.balancer(subject.net.losses(0))


def test_coba_takes_losses_without_gradients():
    subject = Subject(CoBa)
    asked = []

    def draw() -> dict[str, Tensor]:
        asked.append(torch.is_grad_enabled())
        return {task: loss.detach() for task, loss in subject.draw().items()}

    subject.balancer.second_batch(draw)
    subject.step(0)
    assert asked == [False]


@methods
def test_a_closure_that_raises(method: type[LossBalancer]):
    """The state and the parameters are as before, and the next step is an ordinary one."""
    subject, calm = Subject(method, momentum=0.9), Subject(method, momentum=0.9)
    for each in (subject, calm):
        each.step(0)

    def fail() -> dict[str, Tensor]:
        subject.net.losses(3)
        raise StopIteration

    subject.balancer.second_batch(fail)
    before, values = subject.saved(), [parameter.detach().clone() for parameter in subject.net.parameters()]
    with pytest.raises(StopIteration):
        subject.balancer(subject.net.losses(1))
    assert all(value.equal(before[key]) for key, value in subject.saved().items())
    assert all(each.equal(value) for each, value in zip(subject.net.parameters(), values, strict=True))
    subject.give()
    for t in (1, 2):
        assert subject.step(t).equal(calm.step(t))


def test_only_a_method_that_needs_it_takes_a_closure():
    with pytest.raises(TypeError, match="UncertaintyWeighting learns from no second batch"):
        UncertaintyWeighting(2).second_batch(list)
    with pytest.raises(TypeError, match="closure is of type dict; expected a function that returns losses"):
        CoBa(2).second_batch({})


def test_they_take_no_fork_and_are_not_captured():
    for method in (MoDo, SDMGrad, AutoLambda):
        with pytest.raises(ValueError, match=f"{method.__name__} does not measure at the features"):
            method(Fork(2))
    for method in METHODS:
        assert "another batch" in Subject(method).balancer.not_capturable()
    with pytest.raises(ValueError, match="MoDo learns before a step is weighed"):
        MGDA(None, wrt=Net(), tasks=3, weighting=MoDo(None, wrt=Net(), tasks=3))


@pytest.mark.parametrize("method", [MoDo, SDMGrad, AutoLambda], ids=lambda method: method.name)
def test_a_task_that_is_detached_from_the_parameters(method: type[LossBalancer]):
    subject = Subject(method)

    def detached() -> dict[str, Tensor]:
        losses = subject.net.losses(0)
        return losses | {"b": subject.net.heads[1].weight.square().sum()}

    subject.balancer.second_batch(detached)
    with pytest.raises(ForkError, match="the loss of task 'b' does not depend on the parameters that wrt names"):
        subject.balancer(detached())


def test_parameters_of_one_number():
    scales = nn.ParameterList(nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.5, -1.0))
    optimizer = torch.optim.SGD(scales.parameters(), lr=0.1)

    def losses() -> list[Tensor]:
        return [(scales[0] - 1).square(), (scales[0] + scales[1]).square()]

    for method in (MoDo, SDMGrad, AutoLambda):
        balancer: Any = method(None, wrt=scales, tasks=2)
        balancer.second_batch(losses)
        balancer.follow(optimizer)
        balancer(losses()).backward()
        assert balancer.weights.isfinite().all()


# When the second batch is drawn


def draws_a_step(method: type[LossBalancer]) -> int:
    return 2 if method is SDMGrad else 1


@methods
def test_one_call_a_window(method: type[LossBalancer]):
    """With ``accumulate``, with an optimiser that is followed, and for windows that are shorter."""
    subject = Subject(method, accumulate=2)
    subject.balancer.follow(subject.optimizer)
    each, weights = draws_a_step(method), []
    for t, passes in enumerate((2, 2, 1, 2)):
        for k in range(passes):
            weights.append(subject.backward(10 * t + k))
            assert subject.calls == each * (t + 1)
        assert all(other.equal(weights[-1]) for other in weights[-passes:])
        subject.optimizer.step()
    assert not weights[0].equal(weights[-1])


@methods
def test_a_window_is_its_first_pass(method: type[LossBalancer]):
    """What is learnt in a window is what a step learns from its first pass alone."""
    windows, single = Subject(method, accumulate=2), Subject(method)
    for t in range(4):
        assert windows.backward(t).equal(single.backward(t))
        windows.backward(t + 50)
        for each in (windows, single):
            if each.balancer.needs_optimizer:
                each.optimizer.zero_grad()
                each.optimizer.step()


@pytest.mark.parametrize("method", [MoDo, SDMGrad, AutoLambda], ids=lambda method: method.name)
def test_update_every(method: type[LossBalancer]):
    subject = Subject(method, update_every=3)
    weights = []
    for t in range(9):
        weights.append(subject.step(t))
        assert subject.calls == draws_a_step(method) * (t // 3 + 1)
    assert weights[0].equal(weights[2])
    assert not weights[2].equal(weights[3])


@methods
@pytest.mark.slow
def test_steps_that_the_optimiser_skips(method: type[LossBalancer]):
    """As a GradScaler does: the weights go on, and nobody is warned that nothing was learnt."""
    subject, calm = Subject(method), Subject(method)
    subject.balancer.follow(subject.optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for t in range(60):
            assert subject.backward(t).equal(calm.backward(t))
    assert subject.calls == 60 * draws_a_step(method)


@methods
@pytest.mark.parametrize("scale", [0.0, 2.0**14, torch.inf])
def test_the_scale_of_the_pass_does_not_matter(method: type[LossBalancer], scale: float):
    """The gradients of a second batch are unscaled, so that an overflow of the pass is none of theirs."""
    subject, calm = Subject(method), Subject(method)
    for t in range(3):
        assert subject.backward(t, scale=scale).equal(calm.backward(t))
    assert all(value.equal(calm.saved()[key]) for key, value in subject.saved().items())


@methods
def test_in_eval_mode_and_without_gradients_nothing_is_drawn(method: type[LossBalancer]):
    subject = Subject(method)
    last = subject.step(0)
    drawn, before = subject.calls, subject.saved()
    with torch.no_grad():
        subject.balancer(subject.net.losses(1))
    assert subject.balancer.weights.equal(last)
    subject.balancer.eval()
    assert subject.backward(2).equal(last)
    assert subject.calls == drawn
    assert all(value.equal(before[key]) for key, value in subject.saved().items())
    subject.balancer.train()
    assert not subject.backward(3).equal(last)


@methods
def test_a_call_without_a_backward_pass_changes_no_state(method: type[LossBalancer]):
    subject = Subject(method)
    subject.step(0)
    before = subject.saved()
    subject.balancer(subject.net.losses(1))
    after = subject.saved()
    assert all(value.equal(before[key]) for key, value in after.items() if key != "last_weights")


@methods
def test_held_weights(method: type[LossBalancer]):
    """The first evaluation draws and learns; the block has the weights from before it, the next step the new ones."""
    subject, plain = Subject(method), Subject(method)
    for each in (subject, plain):
        each.step(0)
    shown, drawn = subject.balancer.weights, subject.calls
    expected = plain.backward(1)
    with subject.balancer.held():
        for k in range(3):
            assert subject.backward(1 if k == 0 else 30 + k).equal(shown)
        assert subject.calls == drawn + draws_a_step(method)
    assert subject.balancer.weights.equal(expected)
    assert all(value.equal(plain.saved()[key]) for key, value in subject.saved().items())


@methods
def test_a_checkpoint_around_the_step(method: type[LossBalancer]):
    """It runs the step again in the backward pass, but the second batch is drawn once, and the weights are the same."""
    subject, plain = Subject(method), Subject(method)
    for t in range(3):
        subject.optimizer.zero_grad()
        token = torch.zeros((), dtype=torch.float64, requires_grad=True)

        def step(token: Tensor, t: int = t) -> Tensor:
            losses = {task: loss + 0 * token for task, loss in subject.net.losses(t).items()}
            return subject.balancer(losses) * subject.balancer.weights.square().sum()

        checkpoint(step, token, use_reentrant=False).backward()
        expected = plain.backward(t)
        torch.testing.assert_close(subject.balancer.weights, expected, rtol=1e-10, atol=0)
        assert subject.calls == plain.calls
        factor = expected.square().sum()
        torch.testing.assert_close(gradient(subject.net), factor * gradient(plain.net), rtol=1e-9, atol=1e-12)
        for each in (subject, plain):
            each.optimizer.zero_grad()
            each.optimizer.step()


# Tasks that are left out


@methods
def test_a_task_left_out_keeps_its_weight(method: type[LossBalancer]):
    subject = Subject(method)
    for t in range(4):
        before = subject.step(t)
    after = subject.step(9, ("a", "b"))
    assert after[2].equal(before[2])
    assert not after[:2].equal(before[:2])
    if method is not AutoLambda:
        torch.testing.assert_close(after.sum(), before.sum())


@methods
def test_a_second_batch_may_lack_what_the_step_lacks(method: type[LossBalancer]):
    """Auto-Lambda's primary tasks are always needed."""
    options = {"primary": ["a", "c"]} if method is AutoLambda else {}
    whole, few = Subject(method, **options), Subject(method, **options)
    few.balancer.second_batch(lambda: {task: loss for task, loss in few.draw().items() if task != "b"})
    for t in range(3):
        assert few.step(t, ("a", "c")).equal(whole.step(t, ("a", "c")))


def test_auto_lambda_needs_its_primary_tasks():
    subject = Subject(AutoLambda)
    subject.balancer.second_batch(lambda: {task: loss for task, loss in subject.draw().items() if task != "b"})
    with pytest.raises(ValueError, match="the second batch has no loss of task 'b'"):
        subject.balancer(subject.net.losses(0, ("a", "c")))


# State


@methods
def test_the_first_step_that_is_not_valid_has_the_first_weights(method: type[LossBalancer]):
    subject = Subject(method)
    first = subject.balancer.weights
    assert first.sum() == pytest.approx(0.3 if method is AutoLambda else 1.0)
    subject.optimizer.zero_grad()
    losses = subject.net.losses(0)
    subject.balancer(losses | {"b": losses["b"] * torch.nan}).backward()
    torch.testing.assert_close(subject.balancer.weights.float(), first)


def loaded(subject: Subject) -> Subject:
    twin = Subject(type(subject.balancer), momentum=0.9)
    twin.net.load_state_dict(subject.net.state_dict())
    twin.optimizer.load_state_dict(copy.deepcopy(subject.optimizer.state_dict()))
    twin.balancer = twin.make(type(subject.balancer))
    twin.balancer.load_state_dict(subject.balancer.state_dict())
    twin.calls = subject.calls
    return twin


COPIES: Mapping[str, Callable[[Subject], Subject]] = {
    "loaded": loaded,
    "deepcopy": copy.deepcopy,
    "pickle": lambda subject: pickle.loads(pickle.dumps(subject)),
}


@methods
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_given_its_second_batch_anew(method: type[LossBalancer], how: str):
    """It then goes on with the same weights, and the original is as it was."""
    original = Subject(method, momentum=0.9)
    for t in range(5):
        original.step(t)
    twin = COPIES[how](original)
    with pytest.raises(RuntimeError, match="second_batch"):
        twin.balancer(twin.net.losses(5))
    twin.give()
    found = [twin.step(t) for t in range(5, 9)]
    assert all(weights.equal(original.step(t)) for t, weights in enumerate(found, 5))
    assert all(value.equal(original.saved()[key]) for key, value in twin.saved().items())


@pytest.mark.slow
@methods
def test_a_step_holds_no_graph(method: type[LossBalancer]):
    """The second batch's graph is gone when the balancer was called, and the step's after its backward pass."""
    subject = Subject(method)
    seen: list[weakref.ref[Any]] = []

    def draw() -> dict[str, Tensor]:
        losses = subject.draw()
        seen.extend(weakref.ref(loss) for loss in losses.values())
        return losses

    subject.balancer.second_batch(draw)
    losses = subject.net.losses(0)
    own = [weakref.ref(loss) for loss in losses.values()]
    total = subject.balancer(losses)
    gc.collect()
    assert all(each() is None for each in seen)
    total.backward()
    del total, losses
    gc.collect()
    assert all(each() is None for each in own)


@methods
def test_the_new_state_is_written_after_the_backward_pass(method: type[LossBalancer]):
    subject = Subject(method)
    subject.step(0)
    before = subject.saved()
    total = subject.balancer(subject.net.losses(1))
    assert all(value.equal(before[key]) for key, value in subject.saved().items() if key != "last_weights")
    total.backward()
    assert not all(value.equal(before[key]) for key, value in subject.saved().items() if key != "last_weights")


def test_a_balancer_beside_it_learns_from_the_same_losses():
    """Gradients of a second batch are no steps of a balancer whose loss they go through."""
    net = Net()
    inner = GradNorm(None, wrt=net.trunk, tasks=2)
    outer = MoDo(None, wrt=net.trunk, tasks=2)

    def losses(seed: int) -> list[Tensor]:
        a, b, c = net.losses(seed).values()
        return [inner([a, b]), c]

    seeds = itertools.count(100)
    outer.second_batch(lambda: losses(next(seeds)))
    before = inner.next_weights.clone()
    total = outer(losses(0))
    assert inner.next_weights.equal(before.to(inner.next_weights))
    total.backward()
    assert not inner.next_weights.equal(before.to(inner.next_weights))


@pytest.mark.parametrize("method", [MoDo, SDMGrad], ids=lambda method: method.name)
def test_a_second_batch_that_no_pass_went_through_is_freed(method: type[LossBalancer]):
    """A ReLU saves its own output, which must not hold the ReLU's node."""
    trunk, heads = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)), [nn.Linear(4, 1) for _ in range(2)]
    alive: list[weakref.ref[Tensor]] = []

    def losses() -> list[Tensor]:
        activation = trunk[1](trunk[0](torch.randn(5, 3)))
        alive.append(weakref.ref(activation))
        z = trunk[2](activation)
        return [head(z).square().mean() for head in heads]

    balancer = method(None, wrt=trunk, tasks=2)
    balancer.second_batch(losses)
    for _ in range(3):
        balancer(losses()).backward()
    gc.collect()
    assert not [each for each in alive if each() is not None]
