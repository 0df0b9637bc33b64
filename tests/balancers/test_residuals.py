"""NTK weighting against `torch.func.jacrev`, and when a balancer takes residuals."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from balancers import Fork, ForkError, NTKWeighting
from balancers.engine.classes import residuals as engine

pytestmark = pytest.mark.on_device
TASKS = ("equation", "boundary", "start")


class Physics(nn.Module):
    """A network whose derivatives are in the residuals, of unlike numbers of points."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 1)).double()

    def forward(self, seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        inside, edge, start = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (13, 12, 1))

        def u(point: Tensor) -> Tensor:
            return self.layers(point).squeeze()

        slope = vmap(grad(u))(inside)
        second = vmap(grad(lambda point: grad(u)(point)[0]))(inside)[:, 0]
        equation = slope[:, 1] - 0.1 * second + self.layers(inside).squeeze(1) * slope[:, 0]
        return equation, 3 * self.layers(edge).view(4, 3) - 1, self.layers(start).squeeze() ** 2


class Convolutions(nn.Module):
    """A network for images, two of whose tasks share it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.GroupNorm(3, 3), nn.SiLU(), nn.Conv2d(3, 2, 2, stride=2), nn.Flatten(2)
        ).double()
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.unused = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, seed: int) -> tuple[Tensor, ...]:
        x = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        z = self.layers(x) * self.scale
        return z[:, 0], z[:2, 1].mean(1) - 1, (z[0] * z[1]).sum(0)


NETS: Mapping[str, Callable[[], nn.Module]] = {"physics": Physics, "convolutions": Convolutions}
nets = pytest.mark.parametrize("net", NETS)


def kernel(net: nn.Module, seed: int) -> Tensor:
    """Return the mean diagonal of each residual's tangent kernel, ``(T,)``."""
    named = dict(net.named_parameters())
    rows = jacrev(lambda parameters: functional_call(net, parameters, (seed,)))(named)
    found = []
    for residual, of_all in zip(net(seed), rows, strict=True):
        J = torch.cat([part.reshape(residual.numel(), -1) for part in of_all.values()], 1)
        found.append((J @ J.mT).diagonal().mean())
    return torch.stack(found)


def losses_of(residuals: Sequence[Tensor], tasks: Sequence[str] = TASKS) -> dict[str, Tensor]:
    return {task: residuals[TASKS.index(task)].square().mean() for task in tasks}


def make(net: nn.Module, **options: Any) -> NTKWeighting:
    return NTKWeighting(None, wrt=net, tasks=TASKS, **{"update_every": 1, **options})


def step(balancer: NTKWeighting, net: nn.Module, seed: int, tasks: Sequence[str] = TASKS, give: bool = True) -> Tensor:
    """Make a step, and return its weights."""
    residuals = net(seed)
    if give:
        balancer.residuals({task: residuals[TASKS.index(task)] for task in tasks})
    net.zero_grad()
    balancer(losses_of(residuals, tasks)).backward()
    return balancer.weights


# The kernel and the weights


@nets
@pytest.mark.parametrize("at_once", [1, 5, 64])
def test_the_diagonal_is_that_of_jacrev(net: str, at_once: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine, "AT_ONCE", at_once)
    model = NETS[net]()
    balancer = make(model)
    for seed in range(3):
        step(balancer, model, seed)
        torch.testing.assert_close(balancer.statistics["kernel"], kernel(model, seed), rtol=1e-10, atol=0)


def test_large_parameters_are_differentiated_one_by_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine, "ENTRIES", 10)
    model = Physics()
    balancer = make(model)
    step(balancer, model, 0)
    torch.testing.assert_close(balancer.statistics["kernel"], kernel(model, 0), rtol=1e-10, atol=0)


@nets
@pytest.mark.parametrize("alpha", [0.0, 0.9])
def test_weights_are_averages_of_the_ratios(net: str, alpha: float):
    model = NETS[net]()
    balancer = make(model, alpha=alpha)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    expected = torch.ones(3, dtype=torch.float64)
    for seed in range(20):
        k = kernel(model, seed)
        expected = alpha * expected + (1 - alpha) * k.mean() / k
        torch.testing.assert_close(step(balancer, model, seed), expected, rtol=1e-10, atol=0)
        optimizer.step()
    assert expected.std() > 0.1


@nets
def test_the_steps_gradient_has_its_new_weights(net: str):
    model = NETS[net]()
    weights = step(make(model), model, 0)
    found = [parameter.grad for parameter in model.parameters()]
    total = torch.dot(weights, torch.stack(list(losses_of(model(0)).values())))
    for one, other in zip(found, torch.autograd.grad(total, list(model.parameters()), allow_unused=True), strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, rtol=1e-12, atol=1e-14)


def test_the_size_and_the_number_of_residuals_do_not_matter():
    """A residual repeated, or shifted by a constant, has the same kernel; one times c has c² times the kernel."""
    model = Physics()
    one, other, scaled = (make(model, alpha=0.0) for _ in range(3))
    first, second, third = model(0)
    one.residuals([first, second, third])
    other.residuals([torch.cat([first, first]) + 5, second, third.expand(4)])
    scaled.residuals([10 * first, second, third])
    for balancer in (one, other, scaled):
        balancer(losses_of((first, second, third))).backward(retain_graph=True)
    torch.testing.assert_close(other.statistics["kernel"], one.statistics["kernel"], rtol=1e-12, atol=0)
    factors = torch.tensor([100.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(scaled.statistics["kernel"], factors * one.statistics["kernel"], rtol=1e-12, atol=0)


def test_one_task_keeps_a_weight_of_one():
    model = Physics()
    balancer = NTKWeighting(None, wrt=model, tasks=1, update_every=1)
    for seed in range(3):
        residual = model(seed)[0]
        balancer.residuals([residual])
        balancer([residual.square().mean()]).backward()
        torch.testing.assert_close(balancer.weights, torch.ones(1, dtype=torch.float64))


def test_a_residual_without_a_gradient_keeps_its_weight():
    """As one whose unit is dead. The mean is that of the others, as in `InverseGradientNorm`."""
    model = Physics()
    balancer = make(model, alpha=0.5)
    before = step(balancer, model, 0)
    residuals = model(1)
    dead = residuals[1] * 0.0
    balancer.residuals([residuals[0], dead, residuals[2]])
    balancer(losses_of((residuals[0], dead, residuals[2]))).backward()
    k = balancer.statistics["kernel"]
    assert k[1] == 0
    assert balancer.weights[1] == before[1]
    expected = 0.5 * before + 0.5 * k[[0, 2]].mean() / k
    torch.testing.assert_close(balancer.weights[[0, 2]], expected[[0, 2]], rtol=1e-12, atol=0)


def test_derivatives_by_autograd_are_those_of_functions():
    """As most physics-informed networks are written: by ``create_graph=True``."""
    model = Physics()
    points = torch.randn(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    inside = points.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(model.layers(inside).sum(), inside, create_graph=True)
    by_function = vmap(grad(lambda point: model.layers(point).squeeze()))(points)
    kernels = []
    for slope in (by_autograd, by_function):
        balancer = make(model)
        residuals = [slope[:, 0], slope, model.layers(points).squeeze(1)]
        balancer.residuals(residuals)
        balancer(losses_of(residuals)).backward(retain_graph=True)
        kernels.append(balancer.statistics["kernel"])
    torch.testing.assert_close(*kernels, rtol=1e-12, atol=0)


# Probes


@pytest.mark.slow
@nets
def test_probes_estimate_the_diagonal(net: str):
    """Their mean over many is the diagonal, and the mean of few is as far from it as chance has it."""
    model = NETS[net]()
    exact = kernel(model, 0)
    balancer = make(model, probes=4)
    found = []
    for _ in range(400):
        step(balancer, model, 0)
        found.append(balancer.statistics["kernel"])
    ratios = torch.stack(found) / exact
    error = ratios.std(0) / len(found) ** 0.5
    assert ((ratios.mean(0) - 1).abs() <= 4 * error + 1e-9).all()
    assert ratios.std(0).max() > 0.05


@pytest.mark.slow
def test_many_probes_come_close():
    model = Physics()
    balancer = make(model, probes=5000)
    step(balancer, model, 0)
    torch.testing.assert_close(balancer.statistics["kernel"], kernel(model, 0), rtol=0.1, atol=0)


def test_probes_follow_the_seed_and_the_step():
    model = Physics()

    def run(**options: Any) -> Tensor:
        balancer = make(model, probes=2, **options)
        return torch.stack([step(balancer, model, 0) for _ in range(3)])

    one = run()
    assert one.equal(run())
    assert not one.equal(run(seed=3))
    balancer = make(model, probes=2)
    kernels = []
    for _ in range(2):
        step(balancer, model, 0)
        kernels.append(balancer.statistics["kernel"])
    assert not kernels[0].equal(kernels[1])
    assert balancer.drawn == 2
    exact = make(model)
    step(exact, model, 0)
    assert exact.drawn == 0


# When residuals are taken


def test_residuals_are_needed_in_the_steps_that_update():
    model = Physics()
    balancer = make(model, update_every=3)
    needed, weights = [], []
    for seed in range(7):
        needed.append(balancer.needs_residuals)
        weights.append(step(balancer, model, seed, give=needed[-1]))
    assert needed == [True, False, False, True, False, False, True]
    assert weights[0].equal(weights[2])
    assert not weights[2].equal(weights[3])


def test_residuals_are_needed_once_a_window():
    model = Physics()
    balancer = make(model, update_every=2, accumulate=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    balancer.follow(optimizer)
    needed = []
    for passes in (2, 2, 1, 2, 2):
        for _ in range(passes):
            needed.append(balancer.needs_residuals)
            step(balancer, model, len(needed), give=needed[-1])
        optimizer.step()
    assert needed == [True, False, False, False, True, False, False, True, False]


def test_by_default_every_thousandth_step_updates():
    balancer = NTKWeighting(None, wrt=Physics(), tasks=3)
    assert (balancer.update_every, balancer.alpha, balancer.probes) == (1000, 0.9, 0)
    assert balancer.needs_residuals


def test_residuals_that_are_needed_and_not_given():
    model = Physics()
    balancer, calm = make(model, update_every=2), make(model, update_every=2)
    step(balancer, model, 0)
    step(balancer, model, 1, give=False)
    with pytest.raises(RuntimeError, match=r"NTKWeighting measures residuals in this step.*needs_residuals says"):
        balancer(losses_of(model(2)))
    step(balancer, model, 2)
    with pytest.raises(RuntimeError, match="measures residuals"):
        step(calm, model, 0, give=False)
    for seed in range(3):
        weights = step(calm, model, seed)
    assert weights.equal(balancer.weights)


@pytest.mark.slow
def test_residuals_that_are_not_needed_are_ignored():
    """They are not even kept, nor looked at."""
    model = Physics()
    balancer = make(model, update_every=2)
    step(balancer, model, 0)
    before = balancer.weights
    residuals = list(model(1))
    held = weakref.ref(residuals[0])
    balancer.residuals(residuals)
    balancer.residuals(["not", "residuals", 3])
    del residuals
    gc.collect()
    assert held() is None
    assert step(balancer, model, 1, give=False).equal(before)
    balancer.eval()
    balancer.residuals(3)
    assert not balancer.needs_residuals


@pytest.mark.slow
def test_residuals_are_used_once():
    model = Physics()
    balancer = make(model)
    residuals = model(0)
    balancer.residuals(list(residuals))
    held = weakref.ref(residuals[0])
    losses = losses_of(residuals)
    total = balancer(losses)
    total.backward()
    del total, losses, residuals
    gc.collect()
    assert held() is None
    with pytest.raises(RuntimeError, match="measures residuals"):
        step(balancer, model, 1, give=False)


def test_a_step_without_gradients_or_in_eval_mode_needs_none():
    model = Physics()
    balancer = make(model)
    weights = step(balancer, model, 0)
    state = {key: value.clone() for key, value in balancer.state_dict().items()}
    with torch.no_grad():
        balancer({task: torch.ones((), dtype=torch.float64) for task in TASKS})
    balancer.eval()
    assert step(balancer, model, 1, give=False).equal(weights)
    assert all(value.equal(state[key]) for key, value in balancer.state_dict().items())


def test_held_weights():
    model = Physics()
    balancer, plain = make(model), make(model)
    shown = balancer.weights.double()
    expected = step(plain, model, 0)
    with balancer.held():
        assert balancer.needs_residuals
        assert step(balancer, model, 0).equal(shown)
        assert not balancer.needs_residuals
        assert step(balancer, model, 1, give=False).equal(shown)
    torch.testing.assert_close(balancer.weights, expected, rtol=1e-12, atol=0)


def test_a_list_a_tuple_and_a_dict_are_alike():
    model = Physics()
    found = []
    for form in (list, tuple, lambda residuals: dict(zip(TASKS[::-1], residuals[::-1], strict=True))):
        balancer = make(model)
        residuals = model(0)
        balancer.residuals(form(residuals))
        balancer(losses_of(residuals)).backward()
        found.append(balancer.weights)
    assert found[0].equal(found[1])
    assert found[0].equal(found[2])
    unnamed = NTKWeighting(None, wrt=model, tasks=3, update_every=1)
    residuals = model(0)
    unnamed.residuals(dict(zip(TASKS, residuals, strict=True)))
    unnamed(list(losses_of(residuals).values())).backward()
    assert unnamed.weights.equal(found[0])


def test_a_task_left_out_keeps_its_weight():
    """Its residual may be given or not; the others' mean is their own."""
    model = Physics()
    for extra in (False, True):
        balancer = make(model, alpha=0.0)
        before = step(balancer, model, 0)
        residuals = model(1)
        given = {task: residuals[TASKS.index(task)] for task in (TASKS if extra else ("equation", "start"))}
        balancer.residuals(given)
        balancer(losses_of(residuals, ("equation", "start"))).backward()
        k = kernel(model, 1)[[0, 2]]
        assert balancer.weights[1] == before[1]
        torch.testing.assert_close(balancer.weights[[0, 2]], k.mean() / k, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda given: given[:2], ValueError, "residuals has 2 entries, but this balancer was made for 3 tasks"),
        (lambda given: [given[0], None, given[2]], ValueError, "the residual of task 'boundary'.*is missing"),
        (lambda given: {"equation": given[0]}, ValueError, "the residual of task 'boundary'.*is missing"),
        (lambda given: dict(zip("abc", given, strict=True)), ValueError, "residuals has an unknown task 'a'"),
        (lambda given: [given[0], 3.0, given[2]], TypeError, "of task 'boundary' is of type float"),
        (lambda given: [given[0], given[1].detach(), given[2]], ValueError, "'boundary' does not require grad"),
        (lambda given: [given[0], given[1][:0], given[2]], ValueError, "'boundary' has no entry"),
        (lambda given: [given[0], given[1].long(), given[2]], ValueError, "'boundary' is of dtype torch.int64"),
    ],
    ids=["few", "none", "left out", "unknown", "number", "detached", "empty", "whole numbers"],
)
def test_wrong_residuals(change: Callable[[list[Tensor]], Any], error: type[Exception], message: str):
    """The state is as before, and the next step is an ordinary one."""
    model = Physics()
    balancer, calm = make(model), make(model)
    for each in (balancer, calm):
        step(each, model, 0)
    residuals = model(1)
    balancer.residuals(change(list(residuals)))
    with pytest.raises(error, match=message):
        balancer(losses_of(residuals))
    assert step(balancer, model, 1).equal(step(calm, model, 1))


@pytest.mark.parametrize("given", [torch.ones(3), "abc", 3, {1, 2, 3}], ids=str)
def test_what_are_no_residuals(given: Any):
    with pytest.raises(TypeError, match=r"residuals is of type .*; expected a list of tensors, or a dict by task"):
        make(Physics()).residuals(given)


def test_residuals_off_the_parameters():
    """Of one task, that is told; of all, it is an error."""
    model, other = Physics(), Physics()
    balancer = make(model)
    residuals = (model(0)[0], other(0)[1], model(0)[2])
    balancer.residuals(residuals)
    with pytest.warns(RuntimeWarning, match="no gradient of the loss of task 'boundary' arrived"):
        balancer(losses_of(residuals)).backward()
    assert balancer.weights[1] == 1
    foreign = other(0)
    balancer.residuals(foreign)
    with pytest.raises(ForkError, match="no loss depends on the parameters that wrt names"):
        balancer(losses_of(foreign))


def test_gradients_are_left_alone():
    model = Physics()
    balancer = make(model)
    sum(losses_of(model(3)).values()).backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    residuals = model(0)
    balancer.residuals(residuals)
    balancer(losses_of(residuals))
    assert all(each.grad.equal(own) for each, own in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("strict", [False, True])
def test_a_kernel_that_is_not_finite_leaves_the_weights(strict: bool):
    model = Physics()
    balancer = make(model, check_finite=strict)
    before = step(balancer, model, 0)
    residuals = list(model(1))
    residuals[1] = residuals[1] + torch.sqrt(0 * residuals[1])  # whose gradient is not finite
    balancer.residuals(residuals)
    total = balancer(losses_of(residuals))
    assert balancer.weights.equal(before)
    with pytest.raises(FloatingPointError, match="state is unchanged") if strict else nullcontext():
        total.backward()
    assert balancer.next_weights.equal(before)
    after = step(balancer, model, 2)
    k = kernel(model, 2)
    torch.testing.assert_close(after, 0.9 * before + 0.1 * k.mean() / k, rtol=1e-10, atol=0)


@pytest.mark.parametrize("probes", [0, 2])
@pytest.mark.parametrize("how", ["loaded", "deepcopy", "pickle"])
def test_a_copy_goes_on_alike(how: str, probes: int):
    model = Physics()
    balancer = make(model, probes=probes)
    for seed in range(3):
        step(balancer, model, seed)
    balancer.residuals(model(9))
    if how == "loaded":
        its, twin = model, make(model, probes=probes)
        twin.load_state_dict(balancer.state_dict())
    else:
        copied = copy.deepcopy if how == "deepcopy" else lambda pair: pickle.loads(pickle.dumps(pair))
        its, twin = copied((model, balancer))
    with pytest.raises(RuntimeError, match="measures residuals"):
        step(twin, its, 3, give=False)
    for seed in range(3, 6):
        assert step(twin, its, seed).equal(step(balancer, model, seed))


def test_wrong_places_and_options():
    for options in ({"alpha": 1.0}, {"alpha": -0.1}, {"probes": -1}, {"probes": 0.5}, {"update_every": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
            make(Physics(), **options)
    with pytest.raises(ValueError, match=r"does not measure at the features.*residuals are differentiated without"):
        NTKWeighting(Fork(2))
