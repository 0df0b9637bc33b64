"""Properties of every method, over random tasks. The methods come from the registry, so a new one is tested too."""

import inspect
import re
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from balancers import Fork, GradientBalancer, LossBalancer, create, get, names

from .contract import REPRESENTATIVES
from .gramians import no_waiting
from .needs import supply

pytestmark = pytest.mark.filterwarnings("ignore:.* learns in after_step:RuntimeWarning")  # a call is no whole step here

quick = settings(max_examples=6, deadline=None, derandomize=True, database=None)

OURS = [name for name in names() if get(name).__module__.startswith("balancers.")]


def places(name: str) -> list[str]:
    """Return the places at which a method can measure; one empty name if it reads no gradients."""
    cls = get(name)
    if not issubclass(cls, GradientBalancer):
        return [""]
    return [wrt for wrt in ("features", "layer", "parameters") if wrt not in cls.undefined_for]


SLOW = pytest.mark.slow
KINDS = [(name, wrt) for name in OURS for wrt in places(name)]
TRACKS = ("db-mtl", "m-config", "moco")
"""Methods that use a moving average of the gradients in place of the gradients."""
ORDERED = ("ldc-mtl", "m-config")
"""Methods for which the order of the tasks matters, or whose turn it is."""


def each(chosen: Iterable[tuple[str, str]], of: Container[str] = OURS) -> pytest.MarkDecorator:
    """Run a test once for each method and place.

    Those where the method's paper does not measure, and those of methods that are not in ``of``, are slow tests.
    """
    homes = {name: getattr(get(name), "default_wrt", "") for name, _ in KINDS}
    return pytest.mark.parametrize(
        "kind",
        [
            pytest.param(
                (name, wrt),
                marks=[] if name in of and (wrt == homes[name] or homes[name] not in places(name)) else SLOW,
                id="-".join([name, wrt]),
            )
            for name, wrt in chosen
        ],
    )


kinds = each(KINDS)
kinds_of_methods = each(KINDS, REPRESENTATIVES)
"""The methods that stand for their kinds are quick, and all others slow."""
gradnorm = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[0] == "gradnorm"], ids="-".join)

scale = st.floats(1e-2, 1e2)
one_or_more = st.lists(scale, min_size=1, max_size=5)
two_or_more = st.lists(scale, min_size=2, max_size=5)


class Tasks(nn.Module):
    """Tasks on one linear layer, L_i = c_i mean((a_i z)^2), with fixed a_i and batches."""

    def __init__(self, scales: Sequence[float], heads: Sequence[int] | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.fork = Fork(len(scales))
        self.layer = nn.Linear(3, 4).double()
        self.layer.load_state_dict({"weight": random(4, 3), "bias": random(4)})
        self.x = random(5, 2, 3)
        self.heads = random(6, 4, 2)[list(heads or range(len(scales)))]
        self.scales = list(scales)

    def forward(self, t: int) -> list[Tensor]:
        each = zip(self.scales, self.heads, self.fork(self.layer(self.x[t])), strict=True)
        return [c * (z @ head).square().mean() for c, head, z in each]


def make(kind: tuple[str, str], net: Tasks, **options: Any) -> LossBalancer:
    name, wrt = kind
    if wrt == "parameters":
        balancer = create(name, None, **{"wrt": net.layer.parameters(), "tasks": net.fork.num_tasks} | options)
    elif wrt:
        balancer = create(name, net.fork, wrt=net.layer if wrt == "layer" else None, **options)
    elif name == "static":
        balancer = create(name, **{"weights": WEIGHTS[: net.fork.num_tasks]} | options)
    else:
        balancer = create(name, **{"tasks": net.fork.num_tasks} | options)
    supply(balancer, lambda: net(4))
    return balancer


WEIGHTS = [1.0, 0.25, 0.5, 2.0, 0.125]


def train(balancer: LossBalancer, net: Tasks, steps: int = 4, form: Callable[[list[Tensor]], Any] = list) -> Tensor:
    """Run steps that leave the network as it is; return the weights of each, ``(steps, T)``."""
    weights = []
    for t in range(steps):
        balancer(form(net(t))).backward()
        weights.append(balancer.weights.clone())
    return torch.stack(weights)


@each((kind for kind in KINDS if not get(kind[0]).random and kind[0] not in ORDERED), REPRESENTATIVES)
@quick
@given(c=two_or_more, data=st.data())
def test_permuting_the_tasks_permutes_the_weights(kind, c, data):
    order = data.draw(st.permutations(range(len(c))))
    plain: dict[str, Any] = {}
    permuted: dict[str, Any] = {}
    if kind[0] == "static":
        permuted = {"weights": [WEIGHTS[i] for i in order]}
    if kind[0] == "uncertainty":
        likelihoods = [data.draw(st.sampled_from(["gaussian", "softmax"])) for _ in c]
        plain, permuted = {"likelihoods": likelihoods}, {"likelihoods": [likelihoods[i] for i in order]}
    if kind[0] == "lr-annealing":
        permuted = {"reference": order.index(0)}
    if kind[0] == "vqgan":
        permuted = {"reference": order.index(0), "adversarial": order.index(len(c) - 1)}
    if kind[0] in ("pcd", "metabalance"):
        permuted = {"primary" if kind[0] == "pcd" else "target": order.index(0)}
    net, other = Tasks(c), Tasks([c[i] for i in order], order)
    weights = train(make(kind, net, **plain), net)
    permuted_weights = train(make(kind, other, **permuted), other)
    rtol = 1e-4 if kind[0] == "aligned-mtl" else 1e-6  # its weights depend on the root of the least eigenvalue
    torch.testing.assert_close(permuted_weights, weights[:, order], rtol=rtol, atol=1e-6)


@each(kind for kind in KINDS if kind[0] not in TRACKS)
@quick
@given(c=scale)
def test_one_task(kind, c):
    net = Tasks([c])
    balancer = make(kind, net)
    for t in range(3):
        (loss,) = net(t)
        (expected,) = torch.autograd.grad(loss, net.layer.weight, retain_graph=True)
        net.zero_grad()
        balancer([loss]).backward()
        torch.testing.assert_close(net.layer.weight.grad, balancer.weights * expected, rtol=1e-9, atol=0)
        assert (balancer.weights > 0).all()
        if kind[0] == "gradnorm":
            torch.testing.assert_close(balancer.weights.item(), 1.0)


@pytest.mark.filterwarnings("ignore:.* is made for positive losses:RuntimeWarning")
@kinds_of_methods
@quick
@given(c=one_or_more, data=st.data())
def test_zero_losses_and_gradients_give_finite_weights(kind, c, data):
    """A task may be finished (loss and gradient are 0) or stuck (its gradient is 0), at the first step or later."""
    net = Tasks(c)
    balancer = make(kind, net)
    for t in range(4):
        losses = net(t)
        for i in data.draw(st.sets(st.sampled_from(range(len(c))))):
            losses[i] = data.draw(st.sampled_from([0.0, 1.0])) + 0 * losses[i]
        net.zero_grad()
        balancer(losses).backward()
        assert all(state.isfinite().all() for state in balancer.buffers())
        assert net.layer.weight.grad.isfinite().all()
    assert balancer(net(4)).isfinite()


@kinds_of_methods
@quick
@given(c=one_or_more)
def test_forms_of_losses_agree(kind, c):
    net = Tasks(c)
    labels = [f"task {i}" for i in range(len(c))]
    weights = train(make(kind, net), net, steps=3)

    def agree(balancer: LossBalancer, form: Callable[[list[Tensor]], Any]) -> None:
        torch.testing.assert_close(train(balancer, net, 3, form), weights, rtol=1e-12, atol=0)

    agree(make(kind, net), torch.stack)
    agree(make(kind, net), tuple)
    agree(make(kind, net), lambda losses: dict(zip(labels, losses, strict=True)))
    agree(make(kind, net, tasks=labels), lambda losses: dict(zip(labels[::-1], losses[::-1], strict=True)))


@gradnorm
@quick
@given(c=two_or_more, data=st.data())
def test_gradnorm_keeps_the_sum_without_some_tasks(kind, c, data):
    net = Tasks(c)
    labels = [f"task {i}" for i in range(len(c))]
    out = data.draw(st.sets(st.sampled_from(range(len(c))), min_size=1, max_size=len(c) - 1))
    balancer = make(kind, net, tasks=labels)
    for t in range(data.draw(st.integers(0, 2))):
        balancer(net(t)).backward()
    balancer({labels[i]: loss for i, loss in enumerate(net(3)) if i not in out}).backward()
    torch.testing.assert_close(balancer.next_weights.sum().item(), float(len(c)))


@gradnorm
@quick
@given(c=st.lists(st.floats(0.1, 10), min_size=3, max_size=5))
def test_gradnorm_goes_on_without_the_task_left_out(kind, c):
    """The others are balanced as if they were the only tasks, with the part of the sum that they have."""
    few, net = Tasks(c[1:], range(1, len(c))), Tasks(c)
    alone, balancer = (make(kind, few), make(kind, net, tasks=list("abcde"[: len(c)])))
    for t in range(3):
        alone(few(t)).backward()
        balancer(dict(zip("bcde", net(t)[1:], strict=False))).backward()
    torch.testing.assert_close(balancer.next_weights[1:], alone.next_weights, rtol=1e-9, atol=0)
    torch.testing.assert_close(balancer.next_weights[0].item(), 1.0)


@pytest.mark.parametrize("name", ["equal", "static"])
@quick
@given(c=one_or_more, k=scale)
def test_scaling_a_loss_changes_no_fixed_weight(name, c, k):
    net, scaled = Tasks(c), Tasks([k * c[0], *c[1:]])
    assert train(make((name, ""), scaled), scaled).equal(train(make((name, ""), net), net))


@pytest.mark.parametrize(("likelihood", "share"), [("gaussian", 0.5), ("softmax", 1.0)])
@quick
@given(c=one_or_more, k=scale)
def test_scaling_a_loss_under_uncertainty(likelihood, share, c, k):
    """The gradient of the log-variance s_i is 1/2 - share exp(-s_i) L_i, whatever the other tasks are."""
    lr = 1e-3
    net, scaled = Tasks(c), Tasks([k * c[0], *c[1:]])
    options = {"likelihoods": likelihood, "lr": lr, "optimizer": "sgd"}
    one, other = make(("uncertainty", ""), net, **options), make(("uncertainty", ""), scaled, **options)
    for t in range(2):
        before = other.log_variances.double().clone()
        one(net(t)).backward()
        losses = scaled(t)
        other(losses).backward()
        gradients = 0.5 - share * torch.exp(-before) * torch.stack(losses).detach()
        torch.testing.assert_close(other.log_variances, before - lr * gradients, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(other.log_variances[1:], one.log_variances[1:], rtol=1e-12, atol=1e-15)


@gradnorm
@quick
@given(c=two_or_more, k=scale)
def test_scaling_a_loss_under_gradnorm(kind, c, k):
    """A task's gradient norm is scaled with its loss, and its loss ratio is not."""
    net, scaled = Tasks(c), Tasks([k * c[0], *c[1:]])
    one, other = make(kind, net), make(kind, scaled)
    factors = torch.tensor([k] + [1.0] * (len(c) - 1), dtype=torch.float64)
    for t in range(3):
        one(net(t)).backward()
        other(scaled(t)).backward()
        norms, scaled_norms = (b.statistics["gradient_norms"] / b.weights for b in (one, other))
        torch.testing.assert_close(scaled_norms, factors * norms, rtol=1e-9, atol=0)
        torch.testing.assert_close(other.statistics["loss_ratios"], one.statistics["loss_ratios"], rtol=1e-9, atol=0)


@gradnorm
@settings(quick, max_examples=25)
@given(
    c=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5),
    alpha=st.floats(0, 3),
    lr=st.floats(1e-4, 0.3),
    optimizer=st.sampled_from(["sgd", "adam"]),
)
def test_gradnorm_weights_stay_positive_and_sum_to_t(kind, c, alpha, lr, optimizer):
    net = Tasks(c)
    balancer = make(kind, net, alpha=alpha, lr=lr, optimizer=optimizer)
    weights = train(balancer, net, steps=5)
    torch.testing.assert_close(weights.sum(1), torch.full((5,), float(len(c)), dtype=torch.float64))
    assert (weights > 0).all()
    if optimizer == "adam":  # its steps are about lr each, so that renormalising lowers the bound by less than half
        assert (weights > 0.5e-4).all()


def test_methods_that_read_gradients_are_gradient_balancers():
    assert {"equal", "static", "uncertainty", "gradnorm"} <= set(OURS)
    gradients = {"norms", "gramian", "gradients", "residuals"}
    others = [name for name in OURS if get(name).reads != "second batch"]  # CoBa reads losses, the others gradients
    assert all(issubclass(get(name), GradientBalancer) == (get(name).reads in gradients) for name in others)


@pytest.mark.parametrize("name", OURS)
def test_every_method_declares_itself(name):
    cls = get(name)
    options = inspect.signature(cls).parameters
    assert cls.summary.endswith(".")
    assert cls.use_when.endswith(".")
    assert cls.random == ("seed" in options)
    for option, limits in cls.tunable.items():
        default = options[option].default
        assert limits.low <= default <= limits.high
        assert limits.low > 0 or not limits.log
    if issubclass(cls, GradientBalancer):
        assert cls.default_wrt not in cls.undefined_for
        net = Tasks([1.0, 2.0])
        for wrt in set(cls.undefined_for) - ({"layer"} if "parameters" not in cls.undefined_for else set()):
            with pytest.raises(ValueError, match=re.escape(cls.undefined_for[wrt])):
                make((name, wrt), net)


LAPACK = ("_linalg_eigh",)
"""Operators that the solvers use on the CPU alone, where there is no device to wait for."""


@kinds
def test_nothing_in_a_step_waits_for_the_device(kind):
    net = Tasks([1.0, 2.0, 0.5])
    balancer = make(kind, net)
    balancer(net(0)).backward()  # the first step moves the state to the losses' device and type
    if balancer.looks_again:
        balancer.after_step(net(0))
    for t in range(3):
        losses = net(t)
        with no_waiting(but=LAPACK):
            balancer(losses).backward()
        if balancer.looks_again:
            losses = net(t)
            with no_waiting(but=LAPACK):
                balancer.after_step(losses)


GRAMIAN = [name for name in OURS if get(name).reads == "gramian" and hasattr(get(name), "solve")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("num_tasks", [1, 2, 5])
@pytest.mark.parametrize("name", [name for name in GRAMIAN if not get(name).random])
def test_leading_dimensions_of_gramians_are_a_loop(name, num_tasks, dtype):
    rows = torch.randn(2, 3, num_tasks, 7, generator=torch.Generator().manual_seed(3), dtype=dtype)
    gramians = rows @ rows.mT
    solve = make((name, "features"), Tasks([1.0] * num_tasks)).solve
    weights = solve(gramians)
    assert weights.dtype == dtype
    assert weights.shape == (2, 3, num_tasks)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(weights[i, j], solve(gramians[i, j]), rtol=1e-5, atol=1e-6)


def weighs_losses(name: str) -> bool:
    return hasattr(get(name), "weigh") and "losses" in inspect.signature(get(name).weigh).parameters


@pytest.mark.parametrize("name", [name for name in OURS if weighs_losses(name)])
def test_leading_dimensions_of_losses_are_a_loop(name):
    losses = 0.1 + torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(5))
    balancer = make((name, places(name)[0]), Tasks([1.0] * 4))
    arguments = inspect.signature(balancer.weigh).parameters

    def weigh(losses: Tensor) -> Tensor:
        return balancer.weigh(losses, balancer.state()) if "state" in arguments else balancer.weigh(losses)

    assert weigh(losses).shape == (2, 3, 4)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(weigh(losses)[i, j], weigh(losses[i, j]))
