"""GradNorm measures the same through `LinearHeads` as through T `nn.Linear`, at a cost that does not depend on T."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from balancers import EqualWeighting, ForkError, GradNorm, LinearHeads
from bench.cost.operation_count import Counts, count

from .heads import NAMES, OUTPUTS, TASKS, Batched, Net, build, inputs, losses_of, twins, wrt_of
from .reference import Reference

pytestmark = pytest.mark.on_device

FORMS: dict[str, Callable[[Tensor], object]] = {
    "tensor": losses_of,
    "list": lambda outputs: list(losses_of(outputs).unbind()),
    "stack": lambda outputs: torch.stack([losses_of(outputs)[i] for i in range(TASKS)]),
    "dict": lambda outputs: dict(zip(NAMES, losses_of(outputs), strict=True)),
}


def trained(net: Net, balancer: GradNorm, form: str, passes: int = 1) -> tuple[Tensor, list[list[Tensor]]]:
    """Train for 20 steps; return the weights after each step, and the network's gradients in each."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    weights, gradients = [], []
    for t in range(20):
        optimizer.zero_grad()
        for part in range(passes):
            (balancer(FORMS[form](net(inputs(2, 3, seed=passes * t + part)))) / passes).backward()
        weights.append(balancer.next_weights.clone())
        gradients.append([gradient.clone() for gradient in net.parts()])
        optimizer.step()
    return torch.stack(weights), gradients


@pytest.mark.parametrize(
    ("wrt", "accumulate", "form", "last"),
    [
        *itertools.product(["features", "layer", "weight", "trunk", "parameters"], [1, 2], ["tensor"], [nn.ReLU]),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in itertools.product(
                ["features", "layer", "weight", "trunk", "parameters"], [1, 2], ["list"], [nn.ReLU]
            )
        ),
        *itertools.product(["layer", "weight"], [1], ["tensor"], [nn.Tanh, nn.Identity]),
        *itertools.product(["features", "layer"], [1], ["stack", "dict"], [nn.Tanh]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_gradnorm_is_that_of_separate_heads(wrt: str, accumulate: int, form: str, last: type[nn.Module]):
    found = []
    for net, its_form in zip(twins(recording=False, last=last()), (form, "list"), strict=True):
        balancer = GradNorm(**wrt_of(net, wrt), accumulate=accumulate)
        found.append(trained(net, balancer, its_form, accumulate))
    (weights, gradients), (expected, expected_gradients) = found
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-9, atol=1e-11)
    assert (weights[-1] - 1).abs().max() > 0.05


@pytest.mark.parametrize(
    ("wrt", "optimizer", "last"),
    [
        ("features", "adam", nn.ReLU),
        ("features", "sgd", nn.Tanh),
        ("layer", "adam", nn.ReLU),
        ("layer", "sgd", nn.ReLU),
        ("layer", "adam", nn.Tanh),
        ("layer", "sgd", nn.Identity),
        ("weight", "adam", nn.Identity),
        ("weight", "sgd", nn.ReLU),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_gradnorm_is_the_papers(wrt: str, optimizer: str, last: type[nn.Module]):
    """The result equals the paper's algorithm 1, by double backward on separate heads without a fork."""
    net, plain = twins(recording=False, last=last())
    balancer = GradNorm(**wrt_of(net, wrt), optimizer=optimizer, lr=0.05)
    weights, gradients = trained(net, balancer, "tensor")
    reference = Reference(TASKS, 1.5, 0.05, optimizer)
    sgd = torch.optim.SGD(plain.parameters(), lr=0.05)
    for t in range(20):
        z = plain.trunk(inputs(2, 3, seed=t))
        shared = {"features": [z], "layer": list(plain.trunk[2].parameters()), "weight": [plain.trunk[2].weight]}[wrt]
        sgd.zero_grad()
        reference.backward(list(losses_of(plain.outputs(z))), shared)
        torch.testing.assert_close(weights[t], reference.weights.detach(), rtol=0, atol=1e-9)
        torch.testing.assert_close(gradients[t], plain.parts(), rtol=1e-9, atol=1e-11)
        sgd.step()


@pytest.mark.parametrize("wrt", ["features", "layer", "parameters"])
def test_a_task_is_left_out(wrt: str):
    """The weight of a task that is left out stays the same in that step, and its head gets no gradient."""
    nets = twins(recording=False)
    balancers = [GradNorm(**wrt_of(net, wrt) | {"tasks": NAMES}) for net in nets]
    for t, left_out in enumerate([None, "normals", None, "depth", "edges"]):
        before = balancers[0].next_weights.clone()
        for net, balancer in zip(nets, balancers, strict=True):
            losses = FORMS["dict"](net(inputs(6, seed=t)))
            losses.pop(left_out, None)
            net.zero_grad()
            balancer(losses).backward()
        torch.testing.assert_close(balancers[0].next_weights, balancers[1].next_weights, rtol=1e-12, atol=0)
        if left_out is not None:
            i = NAMES.index(left_out)
            assert balancers[0].next_weights[i] == before[i]
            assert not nets[0].heads.weight.grad[i].any()


@pytest.mark.parametrize("wrt", ["features", "layer"])
def test_heads_applied_twice_in_a_step(wrt: str):
    """Heads can run twice in a step, for example on two views of a sample."""
    found = []
    for net in twins(recording=False):
        balancer = GradNorm(**wrt_of(net, wrt))
        for t in range(5):
            net.zero_grad()
            outputs = torch.cat([net(inputs(6, seed=t)), net(inputs(6, seed=50 + t))])
            balancer(list(losses_of(outputs))).backward()
        found.append([balancer.next_weights, balancer.statistics["gradient_norms"], *net.parts()])
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("wrt", ["features", "layer", "parameters"])
@pytest.mark.parametrize("bad", ["nan", "inf"])
@pytest.mark.parametrize("at", [0, 2])
def test_a_step_that_is_not_finite(at: int, bad: str, wrt: str):
    """A target that is not finite, in one task, leaves the state as it was, also in the very first step."""
    net = build(Batched)
    balancer = GradNorm(**wrt_of(net, wrt))
    state = ("next_weights", "initial_losses", "weights_sum", "task_steps", "moments_1", "moments_2", "optimizer_steps")
    for t in range(4):
        targets = torch.zeros(6, TASKS, OUTPUTS, dtype=torch.float64)
        targets[2, 1, 0] = float(bad) if t == at else 0.0
        before = {key: balancer.get_buffer(key).double().clone() for key in state}
        balancer((net(inputs(6, seed=t)) - targets).square().mean((0, 2))).backward()
        if t == at:
            assert all(balancer.get_buffer(key).equal(value) for key, value in before.items())
    assert balancer.optimizer_steps == 3
    assert balancer.next_weights.isfinite().all()


@pytest.mark.parametrize("form", ["tensor", "list"])
@pytest.mark.parametrize("wrt", ["features", "layer", "parameters"])
def test_a_pass_that_goes_past_the_balancer_does_not_count(wrt: str, form: str):
    """A pass through the losses themselves, or through another balancer's total, changes no state.

    The other balancer does not read the fork, but its measurements pass through it.
    """
    net = build(Batched)
    balancer, other, *alone = (GradNorm(**wrt_of(net, its), optimizer="sgd", lr=0.1) for its in 2 * (wrt, "parameters"))
    for one in alone:
        for t in range(2):
            one(FORMS[form](net(inputs(6, seed=t)))).backward()
    for t in range(2):
        losses = FORMS[form](net(inputs(6, seed=t)))
        loss, others = balancer(losses), other(losses)
        before = {key: value.clone() for key, value in balancer.named_buffers()}
        sum(losses).backward(retain_graph=True)
        others.backward(retain_graph=True)
        assert all(balancer.get_buffer(key).equal(value) for key, value in before.items())
        loss.backward()
        assert balancer.optimizer_steps == other.optimizer_steps == t + 1
    for one, its in zip((balancer, other), alone, strict=True):
        torch.testing.assert_close(one.next_weights, its.next_weights, rtol=1e-12, atol=0)


@pytest.mark.parametrize("wrt", ["features", "layer"])
def test_two_balancers_that_read_one_forward_pass_are_refused(wrt: str):
    """The first one learns; the second says why it can't."""
    net = build(Batched)
    first, second = (GradNorm(**wrt_of(net, wrt)) for _ in range(2))
    losses = losses_of(net(inputs(6)))
    loss, others = first(losses), second(losses)
    with pytest.raises(ForkError, match="Two balancers can't measure the same forward pass"):
        others.backward(retain_graph=True)
    loss.backward()
    assert [first.optimizer_steps.item(), second.optimizer_steps.item()] == [1, 0]


@pytest.mark.parametrize("inside", [True, False], ids=["balancer inside", "balancer outside"])
@pytest.mark.parametrize("wrt", ["features", "layer", "weight"])
def test_gradnorm_under_autocast(wrt: str, inside: bool):
    norms = []
    for net in twins(recording=False):
        balancer = GradNorm(**wrt_of(net.float(), wrt))
        for t in range(3):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                losses = losses_of(net(inputs(16, seed=t).float()).float())
                loss = balancer(list(losses)) if inside else None
            (balancer(list(losses)) if loss is None else loss).backward()
        norms.append(balancer.statistics["gradient_norms"])
    assert norms[0].dtype == torch.float32
    torch.testing.assert_close(*norms, rtol=2e-2, atol=0)


# The cost of a step


def step_counts(num_tasks: int, wrt: str | None) -> Counts:
    """Count a step's operators without the optimiser's; ``wrt`` None is equal weighting."""
    trunk = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    heads = LinearHeads(num_tasks, 8, OUTPUTS)
    balancer = {
        None: lambda: EqualWeighting(num_tasks),
        "features": lambda: GradNorm(heads.fork),
        "layer": lambda: GradNorm(heads.fork, wrt=trunk[2]),
    }[wrt]()
    x = torch.randn(16, 5)

    def step() -> None:
        balancer(heads(trunk(x)).square().mean((0, 2))).backward()
        trunk.zero_grad()
        heads.zero_grad()

    for _ in range(3):  # the first step is audited, the second searches the graph for the layer
        step()
    return count(step, torch.device("cpu"))


@pytest.mark.parametrize("wrt", ["features", "layer"])
def test_operator_calls_are_as_many_for_any_number_of_tasks(wrt: str):
    extra = [step_counts(t, wrt).operator_calls - step_counts(t, None).operator_calls for t in (2, 10, 40)]
    assert len(set(extra)) == 1
    assert extra[0] <= 49
