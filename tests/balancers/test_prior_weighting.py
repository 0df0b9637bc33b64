"""A weighting before a method that combines gradients, and the moving average of what such a method finds."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from balancers import (
    DBMTL,
    FAMO,
    IMTL,
    MGDA,
    CAGrad,
    ConFIG,
    EqualWeighting,
    Fork,
    GradDrop,
    GradientBalancer,
    GradNorm,
    InverseDirichlet,
    LossBalancer,
    MoCo,
    NashMTL,
    PCGrad,
    RandomLossWeighting,
    StaticWeighting,
    Tchebycheff,
    UncertaintyWeighting,
    UnitNorm,
    UPGrad,
    get,
    names,
)

pytestmark = pytest.mark.on_device
TASKS = ("a", "b", "c")
FIXED = (0.5, 1.0, 2.0)


class Net(nn.Module):
    """A trunk of two layers and three heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh()).double()
        self.heads = nn.ModuleList(nn.Linear(5, 1).double() for _ in TASKS)
        self.fork = Fork(len(TASKS))

    def losses(self, place: str, seed: int = 0, factors: Sequence[float] = (1.0, 1.0, 1.0)) -> dict[str, Tensor]:
        x = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        z = self.trunk(x)
        aliases = [z] * len(TASKS) if place == "parameters" else self.fork(z)
        return {
            task: factor * ((head(alias) - i - 1).square().mean())
            for i, (task, head, alias, factor) in enumerate(zip(TASKS, self.heads, aliases, factors, strict=True))
        }

    def make(self, method: type[GradientBalancer], place: str, **options: Any) -> GradientBalancer:
        if place == "parameters":
            return method(None, self.trunk, tasks=TASKS, **options)
        wrt = {"features": None, "layer": self.trunk[2], "trunk": self.trunk}[place]
        return method(self.fork, wrt, tasks=TASKS, **options)

    def step(self, balancer: LossBalancer, losses: dict[str, Tensor]) -> list[Tensor | None]:
        self.zero_grad()
        balancer(losses).backward()
        return [parameter.grad for parameter in self.parameters()]


def defined() -> list[tuple[type[GradientBalancer], str]]:
    """Return all methods that combine and have no weighting of their own, with the places they are defined for."""
    methods = [get(name) for name in names()]
    found = []
    for method in methods:
        if not (issubclass(method, GradientBalancer) and method.combines) or "weigh" in vars(method) or method is IMTL:
            continue
        for place in ("features", "layer", "parameters"):
            if place not in method.undefined_for:
                found.append((method, place))
        if "layer" in method.undefined_for and "parameters" not in method.undefined_for:
            found.append((method, "trunk"))
    return found


@pytest.mark.parametrize(("method", "place"), defined(), ids=lambda value: getattr(value, "name", value))
def test_static_weights_are_those_of_losses_multiplied_by_them(method: type[GradientBalancer], place: str):
    one, other = Net(), Net()
    weighted = one.make(method, place, weighting=StaticWeighting(FIXED))
    plain = other.make(method, place)
    for seed in range(3):
        found = one.step(weighted, one.losses(place, seed))
        expected = other.step(plain, other.losses(place, seed, FIXED))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(weighted.weights, plain.weights * torch.tensor(FIXED).to(plain.weights))


@pytest.mark.parametrize("place", ["features", "layer", "trunk", "parameters"])
@pytest.mark.parametrize("method", [MGDA, PCGrad, UPGrad], ids=lambda method: method.name)
def test_a_weighting_learns_as_it_does_alone(method: type[GradientBalancer], place: str):
    net = Net()
    balancer = net.make(method, place, weighting=UncertaintyWeighting(TASKS), **({"seed": 1} if method.random else {}))
    alone = UncertaintyWeighting(TASKS)
    for seed in range(4):
        losses = net.losses(place, seed)
        alone({task: loss.detach().requires_grad_() for task, loss in losses.items()}).backward()
        net.step(balancer, losses)
    assert balancer.weighting is not None
    torch.testing.assert_close(balancer.weighting.state_dict(), alone.state_dict())
    assert alone.weights.unique().numel() == 3


@pytest.mark.parametrize("place", ["features", "layer", "parameters"])
def test_gradnorm_learns_from_the_norms_that_are_combined(place: str):
    one, other = Net(), Net()
    own = other.make(GradNorm, place, alpha=0.5)
    balancer = one.make(MGDA, place, weighting=one.make(GradNorm, place, alpha=0.5))
    for seed in range(3):  # the networks are not trained, so both see the same gradients
        one.step(balancer, one.losses(place, seed))
        other.step(own, other.losses(place, seed))
    assert balancer.weighting is not None
    torch.testing.assert_close(balancer.weighting.state_dict(), own.state_dict())


def test_heads_get_the_weighted_losses():
    net = Net()
    expected = [
        torch.autograd.grad(loss, head.weight)[0]
        for loss, head in zip(net.losses("features").values(), net.heads, strict=True)
    ]
    net.step(net.make(MGDA, "features", weighting=StaticWeighting(FIXED)), net.losses("features"))
    for head, gradient, weight in zip(net.heads, expected, FIXED, strict=True):
        torch.testing.assert_close(head.weight.grad, weight * gradient)


@pytest.mark.parametrize(
    "method", [MGDA, CAGrad, NashMTL, InverseDirichlet, MoCo, ConFIG, PCGrad], ids=lambda method: method.name
)
def test_unit_norm_lets_unit_gradients_be_combined(method: type[GradientBalancer]):
    """The trunk gets what the method makes of losses that are divided by their gradients' norms."""
    one, other = Net(), Net()
    balancer = one.make(method, "parameters", weighting=UnitNorm(None, one.trunk, tasks=TASKS))
    plain = other.make(method, "parameters")
    for seed in range(3):
        losses = other.losses("parameters", seed)
        norms = []
        for loss in losses.values():
            rows = torch.autograd.grad(loss, list(other.trunk.parameters()), retain_graph=True)
            norms.append(torch.cat([row.flatten() for row in rows]).norm())
        other.step(plain, {task: loss / norm for (task, loss), norm in zip(losses.items(), norms, strict=True)})
        one.step(balancer, one.losses("parameters", seed))
        torch.testing.assert_close(
            [parameter.grad for parameter in one.trunk.parameters()],
            [parameter.grad for parameter in other.trunk.parameters()],
            rtol=1e-9,
            atol=1e-11,
        )
        torch.testing.assert_close(balancer.weights, plain.weights / torch.stack(norms), rtol=1e-9, atol=1e-12)


def test_unit_norm_leaves_the_heads_alone():
    net = Net()
    expected = [
        torch.autograd.grad(loss, head.weight)[0]
        for loss, head in zip(net.losses("features").values(), net.heads, strict=True)
    ]
    net.step(net.make(MGDA, "features", weighting=UnitNorm(net.fork)), net.losses("features"))
    torch.testing.assert_close([head.weight.grad for head in net.heads], expected)


def test_a_weighting_may_leave_tasks_without_weight():
    """Tchebycheff trains the worst task alone: the others' gradients are zero to the method."""
    net = Net()
    balancer = net.make(MGDA, "features", weighting=Tchebycheff(TASKS))
    grads = net.step(balancer, net.losses("features"))
    assert balancer.weighting is not None
    assert balancer.weighting.weights.count_nonzero() == 1
    assert all(grad is None or grad.isfinite().all() for grad in grads)
    assert balancer.weights.isfinite().all()


def test_a_task_left_out_of_a_pair():
    net = Net()
    balancer = net.make(PCGrad, "features", weighting=UncertaintyWeighting(TASKS))
    net.step(balancer, net.losses("features"))
    before = balancer.weighting.state_dict()["log_variances"].clone()  # type: ignore[union-attr]
    losses = net.losses("features", 1)
    del losses["b"]
    net.step(balancer, losses)
    changed = balancer.weighting.state_dict()["log_variances"] != before  # type: ignore[union-attr]
    assert changed.tolist() == [True, False, True]


def test_famo_before_a_method_looks_again():
    net = Net()
    balancer = net.make(MGDA, "features", weighting=FAMO(TASKS))
    assert balancer.looks_again
    net.step(balancer, net.losses("features"))
    before = balancer.weighting.state_dict()["log_shares"].clone()  # type: ignore[union-attr]
    balancer.after_step(net.losses("features", 1))
    assert not balancer.weighting.state_dict()["log_shares"].equal(before)  # type: ignore[union-attr]


def test_steps_that_are_not_measured_teach_a_weighting_that_reads_losses():
    net = Net()
    balancer = net.make(MGDA, "features", weighting=UncertaintyWeighting(TASKS), update_every=3)
    alone = UncertaintyWeighting(TASKS)
    for seed in range(4):
        losses = net.losses("features", seed)
        alone({task: loss.detach().requires_grad_() for task, loss in losses.items()}).backward()
        net.step(balancer, losses)
    torch.testing.assert_close(balancer.weighting.state_dict(), alone.state_dict())  # type: ignore[union-attr]


def test_seeds_and_names_of_a_pair():
    net = Net()
    balancer = MGDA(net.fork, tasks=3, weighting=RandomLossWeighting(TASKS, seed=4))
    assert balancer.tasks == TASKS
    net.step(balancer, net.losses("features"))
    assert set(balancer.scalars()) >= {"weight/a", "cosine/a/b"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: IMTL(net.fork, weighting=EqualWeighting(3)), "IMTL has a weighting of its own"),
        (lambda net: DBMTL(None, net.trunk, tasks=3, weighting=EqualWeighting(3)), "DBMTL has a weighting of its own"),
        (lambda net: MGDA(net.fork, weighting=GradDrop(net.fork)), "GradDrop reads all entries"),
        (lambda net: MGDA(net.fork, weighting=IMTL(net.fork)), "IMTL weighs the losses before it combines"),
        (
            lambda net: MGDA(net.fork, weighting=PCGrad(net.fork, weighting=EqualWeighting(3))),
            "PCGrad weighs the losses before it combines",
        ),
        (lambda net: MGDA(net.fork, weighting=EqualWeighting(3, accumulate=2)), "weighting has accumulate=2"),
        (lambda net: MGDA(net.fork, weighting=GradNorm(net.fork, update_every=2)), "weighting has update_every=2"),
        (
            lambda net: MGDA(net.fork, weighting=EqualWeighting(2)),
            "weighting is for other tasks: EqualWeighting was made for 2 tasks, but MGDA for 3 tasks",
        ),
        (
            lambda net: MGDA(net.fork, tasks=TASKS, weighting=EqualWeighting(["a", "c", "b"])),
            "weighting is for other tasks",
        ),
        (lambda net: ConFIG(net.fork, averaging=1.5), "averaging is 1.5"),
        (lambda net: GradDrop(net.fork, averaging=0.5), "averaging is 0.5; expected 0: GradDrop"),
    ],
)
def test_refuses_what_does_not_fit(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make(Net())


def test_a_method_that_does_not_combine_has_neither_option():
    for option in ({"weighting": EqualWeighting(3)}, {"averaging": 0.5}):
        with pytest.raises(TypeError, match=f"GradNorm has no option '{next(iter(option))}'"):
            GradNorm(Net().fork, **option)


def test_refuses_what_is_no_balancer():
    with pytest.raises(TypeError, match="weighting is of type list; expected a balancer"):
        MGDA(Net().fork, weighting=[1, 2, 3])


# The moving average.


@pytest.mark.parametrize("method", [MGDA, NashMTL, MoCo, InverseDirichlet], ids=lambda method: method.name)
def test_averaging_follows_its_recursion(method: type[GradientBalancer]):
    one, other = Net(), Net()
    averaged, plain = one.make(method, "parameters", averaging=0.75), other.make(method, "parameters")
    expected: Tensor | None = None
    for seed in range(5):
        one.step(averaged, one.losses("parameters", seed))
        other.step(plain, other.losses("parameters", seed))
        expected = plain.weights if expected is None else 0.75 * expected + 0.25 * plain.weights
        torch.testing.assert_close(averaged.weights, expected, rtol=1e-10, atol=1e-12)


def test_averaging_of_one_keeps_the_first_weights():
    net = Net()
    balancer = net.make(MGDA, "features", averaging=1.0)
    net.step(balancer, net.losses("features"))
    first = balancer.weights
    net.step(balancer, net.losses("features", 1))
    torch.testing.assert_close(balancer.weights, first)


@pytest.mark.slow
def test_averaging_agrees_with_torchjd():
    aggregation = pytest.importorskip("torchjd.aggregation")
    net = Net()
    averaged = net.make(MGDA, "parameters", averaging=0.9)
    plain = Net()
    alone = plain.make(MGDA, "parameters")

    class Given(aggregation.Weighting):  # type: ignore[name-defined, misc]
        def forward(self, weights: Tensor) -> Tensor:
            return weights

    theirs = aggregation.CRMOGMWeighting(Given(), alpha=0.9)
    for seed in range(200):
        net.step(averaged, net.losses("parameters", seed))
        plain.step(alone, plain.losses("parameters", seed))
        torch.testing.assert_close(averaged.weights, theirs(alone.weights), rtol=1e-8, atol=1e-10)


def test_a_task_that_comes_later_begins_its_own_average():
    net = Net()
    balancer = net.make(MGDA, "features", averaging=0.9)
    losses = net.losses("features")
    del losses["b"]
    net.step(balancer, losses)
    net.step(balancer, net.losses("features", 1))
    plain = Net()
    alone = plain.make(MGDA, "features")
    plain.step(alone, plain.losses("features", 1))
    torch.testing.assert_close(balancer.weights[1], alone.weights[1])


@pytest.mark.parametrize(
    ("name", "prior"),
    [("pcd", StaticWeighting), ("pcd", PCGrad), ("metabalance", StaticWeighting)],
    ids=["pcd behind static", "pcd behind pcgrad", "metabalance behind static"],
)
def test_weights_stay_in_steps_without_the_task_that_others_follow(name: str, prior: type[LossBalancer]) -> None:
    """The weights shown have the weighting in them already."""
    net = Net()
    shared = list(net.trunk.parameters())
    if prior is PCGrad:
        weighting: LossBalancer = PCGrad(None, wrt=shared, tasks=TASKS)
    else:
        weighting = StaticWeighting([1.5, 1.0, 0.5], tasks=TASKS)
    options = {"tau": 0.9} if name == "pcd" else {}
    balancer = get(name)(None, wrt=shared, tasks=TASKS, weighting=weighting, **options)
    balancer(net.losses("parameters")).backward()
    shown = balancer.weights
    assert shown[1:].count_nonzero()
    for step in range(1, 4):
        losses = net.losses("parameters", step)
        expected = sum(w * losses[task] for w, task in zip(shown[1:], TASKS[1:], strict=True))
        gradients = torch.autograd.grad(expected, shared, retain_graph=True)
        net.zero_grad()
        balancer({task: losses[task] for task in TASKS[1:]}).backward()
        torch.testing.assert_close(balancer.weights, shown)
        for parameter, gradient in zip(shared, gradients, strict=True):
            if prior is StaticWeighting and name == "pcd":
                torch.testing.assert_close(parameter.grad, gradient)


def test_a_preference_holds_in_steps_that_are_not_measured_and_before_training() -> None:
    net = Net()
    shared = list(net.trunk.parameters())
    weighting = StaticWeighting([1.0, 10.0, 1.0], tasks=TASKS)
    balancer = PCGrad(None, wrt=shared, tasks=TASKS, update_every=2, weighting=weighting)
    balancer.eval()
    assert balancer({task: torch.tensor(1.0, dtype=torch.float64) for task in TASKS}).item() == 12
    balancer.train()
    for step in range(4):
        task = TASKS[step % 2]
        net.zero_grad()
        loss = net.losses("parameters", step)[task]
        expected = torch.autograd.grad([1, 10][step % 2] * loss, shared, retain_graph=True)
        balancer({task: loss}).backward()
        torch.testing.assert_close([parameter.grad for parameter in shared], list(expected))


def test_the_first_weights_are_the_weightings_whatever_it_has_learnt_and_wherever_it_lies() -> None:
    layer, weighting = nn.Linear(3, 4), StaticWeighting([1.0, 3.0], tasks=2)
    assert MGDA(None, wrt=layer, tasks=2, weighting=weighting).weights.tolist() == [1, 3]
    learnt = UncertaintyWeighting(2)
    x = torch.ones(3, requires_grad=True)
    for _ in range(20):
        learnt([10 * x.sum(), x.sum()]).backward()
    balancer = MGDA(None, wrt=layer, tasks=2, weighting=learnt)
    balancer.reset_parameters()
    assert balancer.weights.equal(learnt.weights)
    with torch.device("meta"):
        assert MGDA(None, wrt=nn.Linear(3, 4), tasks=2, weighting=UncertaintyWeighting(2)).last_weights.is_meta
