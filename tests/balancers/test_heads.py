"""T linear heads as one product are T `nn.Linear` behind a fork, whatever is done with them."""

import copy
import gc
import itertools
import pickle
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

from balancers import EqualWeighting, Fork, ForkError, GradNorm, LinearHeads
from bench.cost.count import Counts, count

from .reference import Reference

TASKS, WIDTH, OUTPUTS = 3, 4, 2
NAMES = ["depth", "normals", "edges"]


class Separate(nn.Module):
    """A trunk, whose entry 2 is the last shared layer, and a module for each head: ``(..., 5)`` to ``(..., T, 2)``."""

    def __init__(self, *, bias: bool = True, last: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, WIDTH), last or nn.Tanh())
        self.fork = Fork(TASKS)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, OUTPUTS, bias) for _ in range(TASKS))
        self.double()

    def outputs(self, z: Tensor) -> Tensor:
        return torch.stack([head(each) for head, each in zip(self.heads, self.fork(z), strict=True)], -2)

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs(self.trunk(x))

    def parts(self) -> list[Tensor | None]:
        """Gradients: of the trunk's parameters, of the heads' weights and of their biases, stacked."""
        trunk = [parameter.grad for parameter in self.trunk.parameters()]
        return [*trunk, stacked([head.weight for head in self.heads]), stacked([head.bias for head in self.heads])]


class Batched(nn.Module):
    """The same, with `LinearHeads`."""

    def __init__(self, *, bias: bool = True, last: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, WIDTH), last or nn.Tanh())
        self.heads = LinearHeads(TASKS, WIDTH, OUTPUTS, bias)
        self.double()

    @property
    def fork(self) -> Fork:
        return self.heads.fork

    def outputs(self, z: Tensor) -> Tensor:
        return self.heads(z)

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs(self.trunk(x))

    def parts(self) -> list[Tensor | None]:
        bias = self.heads.bias
        trunk = [parameter.grad for parameter in self.trunk.parameters()]
        return [*trunk, self.heads.weight.grad, None if bias is None else bias.grad]


Net = Separate | Batched


def stacked(parameters: Sequence[nn.Parameter | None]) -> Tensor | None:
    gradients = [None if parameter is None else parameter.grad for parameter in parameters]
    return None if gradients[0] is None else torch.stack(gradients)


def build(make: Callable[..., Net], **options: object) -> Net:
    torch.manual_seed(1)
    return make(**options)


def twins(recording: bool = True, **options: object) -> tuple[Batched, Separate]:
    """The same network twice. ``recording``: a balancer reads the fork of the first."""
    batched, separate = build(Batched, **options), build(Separate, **options)
    if recording:
        GradNorm(batched.fork)
    return batched, separate


def inputs(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def losses_of(outputs: Tensor) -> Tensor:
    """``(T,)``: squared errors on scales that differ by task."""
    targets = torch.arange(1.0, TASKS + 1, dtype=outputs.dtype)[:, None]
    errors = (outputs - targets).square().movedim(-2, 0).flatten(1)
    return errors.mean(1) * torch.tensor([1.0, 1.3, 0.8], dtype=outputs.dtype)


def same(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


RECORDING = pytest.mark.parametrize("recording", [True, False], ids=["read", "not read"])


# Values and gradients


@pytest.mark.parametrize("bias", [True, False])
def test_initial_values_are_those_of_linear_layers(bias: bool):
    torch.manual_seed(7)
    heads = LinearHeads(TASKS, WIDTH, OUTPUTS, bias)
    after = torch.randn(1)
    torch.manual_seed(7)
    separate = [nn.Linear(WIDTH, OUTPUTS, bias) for _ in range(TASKS)]
    assert all(own.equal(head.weight) for own, head in zip(heads.weight, separate, strict=True))
    if bias:
        assert all(own.equal(head.bias) for own, head in zip(heads.bias, separate, strict=True))
    assert [tuple(p.shape) for p in heads.parameters()] == [(3, 2, 4), (3, 2)][: 1 + bias]
    assert after.equal(torch.randn(1)), "what is drawn next is another number"


def test_no_head():
    with pytest.raises(ValueError, match="num_tasks is 0; a fork needs at least one task"):
        LinearHeads(0, WIDTH, OUTPUTS)


def contiguous(outputs: Tensor) -> Tensor:
    return (outputs * torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype).view_as(outputs)).sum()


def not_contiguous(outputs: Tensor) -> Tensor:
    """The gradient of the outputs comes transposed."""
    turned = outputs.movedim(-2, 0).contiguous()
    return (turned * torch.linspace(-1, 2, turned.numel(), dtype=turned.dtype).view_as(turned)).sum()


def expanded(outputs: Tensor) -> Tensor:
    """It comes as one number, expanded."""
    return outputs.sum()


def task_by_task(outputs: Tensor) -> Tensor:
    return sum((i + 1) * own.square().mean() for i, own in enumerate(outputs.unbind(-2)))


def one_task_only(outputs: Tensor) -> Tensor:
    return outputs.select(-2, 1).square().sum()


@RECORDING
@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 1, 3), (1,), ()], ids=str)
@pytest.mark.parametrize(
    "reduce", [contiguous, not_contiguous, expanded, task_by_task, one_task_only], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_outputs_and_gradients(recording: bool, shape: tuple[int, ...], reduce: Callable, bias: bool):
    found = []
    for net in twins(recording, bias=bias):
        x = inputs(*shape).requires_grad_()
        outputs = net(x)
        assert outputs.shape == (*shape, TASKS, OUTPUTS)
        reduce(outputs).backward()
        found.append([outputs.detach(), x.grad, *net.parts()])
    same(*found)


@RECORDING
@pytest.mark.parametrize("frozen", [("weight", "bias"), ("weight",), ("bias",)], ids=str)
def test_frozen_heads(recording: bool, frozen: tuple[str, ...]):
    batched, separate = twins(recording)
    for name, parameter in [*batched.heads.named_parameters(), *separate.heads.named_parameters()]:
        parameter.requires_grad_(name.split(".")[-1] not in frozen)
    for net in (batched, separate):
        contiguous(net(inputs(6))).backward()
    same(batched.parts(), separate.parts())
    assert all((getattr(batched.heads, name).grad is None) == (name in frozen) for name in ("weight", "bias"))


@RECORDING
def test_frozen_trunk(recording: bool):
    batched, separate = twins(recording)
    for net in (batched, separate):
        net.trunk.requires_grad_(False)
        contiguous(net(inputs(6))).backward()
    same(batched.parts(), separate.parts())
    assert batched.heads.weight.grad is not None


@RECORDING
def test_features_in_another_order_in_memory(recording: bool):
    batched, separate = twins(recording)
    found = []
    for net in (batched, separate):
        z = torch.randn(WIDTH, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
        outputs = net.outputs(z.permute(2, 1, 0))
        contiguous(outputs).backward()
        found.append([outputs.detach(), z.grad, *net.parts()])
    same(*found)


@RECORDING
def test_no_samples(recording: bool):
    found = []
    for net in twins(recording):
        x = torch.zeros(0, 5, dtype=torch.float64, requires_grad=True)
        expanded(net(x)).backward()
        found.append([x.grad, *net.parts()])
    same(*found)


@RECORDING
def test_a_graph_is_differentiated_again(recording: bool):
    found = []
    for net in twins(recording):
        loss = contiguous(net(inputs(6)))
        loss.backward(retain_graph=True)
        loss.backward()
        found.append(net.parts())
    same(*found)


@RECORDING
def test_bfloat16_autocast(recording: bool):
    """Products are taken in bfloat16, as those of separate heads; parameters get gradients of their own type."""
    batched, separate = (net.float() for net in twins(recording))
    outputs = []
    for net in (batched, separate):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs.append(net(inputs(16).float()))
        losses_of(outputs[-1].float()).sum().backward()
    assert outputs[0].dtype == torch.bfloat16
    torch.testing.assert_close(*outputs, rtol=2e-2, atol=2e-2)
    for own, expected in zip(batched.parts(), separate.parts(), strict=True):
        assert own.dtype == torch.float32
        torch.testing.assert_close(own / expected.norm(), expected / expected.norm(), rtol=0, atol=2e-2)


# More than one derivative


@RECORDING
@pytest.mark.parametrize("shape", [(3, 4), (2, 2, 4), (4,)], ids=str)
def test_second_derivatives(recording: bool, shape: tuple[int, ...]):
    """Against finite differences."""
    heads = LinearHeads(TASKS, WIDTH, OUTPUTS).double()
    if recording:
        GradNorm(heads.fork)
    z = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def run(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional_call(heads, {"weight": weight, "bias": bias}, (z,))

    arguments = (z, *heads.parameters())
    assert torch.autograd.gradcheck(run, arguments)
    assert torch.autograd.gradgradcheck(run, arguments)


@pytest.mark.parametrize("wrt", ["layer", "features"])
@pytest.mark.parametrize("through", ["outputs", "loss"])
def test_gradient_penalty(wrt: str, through: str):
    """A penalty on the slope at the input; its part that comes through the heads is measured with the tasks'."""
    nets = twins()
    balancers = [
        GradNorm(net.fork, wrt=net.trunk[2] if wrt == "layer" else None, optimizer="sgd", lr=0.1) for net in nets
    ]
    for t in range(3):
        for net, balancer in zip(nets, balancers, strict=True):
            x = inputs(6, seed=t).requires_grad_()
            outputs = net(x)
            loss = balancer(losses_of(outputs))
            of = outputs.tanh().sum() if through == "outputs" else loss
            (slope,) = torch.autograd.grad(of, x, create_graph=True)
            net.zero_grad()
            (loss + 0.1 * slope.square().sum()).backward()
        torch.testing.assert_close(nets[0].parts(), nets[1].parts(), rtol=1e-11, atol=1e-13)
        norms = [balancer.statistics["gradient_norms"] for balancer in balancers]
        torch.testing.assert_close(*norms, rtol=1e-11, atol=0)
    assert (balancers[0].next_weights - 1).abs().max() > 1e-3


def of_parameters(net: Batched) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    return lambda parameters, x: losses_of(functional_call(net, parameters, (x,))).sum()


def func_grad(net: Batched, x: Tensor):
    return grad(of_parameters(net))(dict(net.named_parameters()), x)


def func_per_sample(net: Batched, x: Tensor):
    """Gradients for each sample on its own."""
    each = vmap(grad(of_parameters(net)), in_dims=(None, 0))
    return each({key: p.detach() for key, p in net.named_parameters()}, x[:, None])


def func_vmap(net: Batched, x: Tensor):
    return vmap(net)(x)


def func_jvp(net: Batched, x: Tensor):
    return jvp(net, (x,), (torch.ones_like(x),))


def func_jacrev(net: Batched, x: Tensor):
    return jacrev(net)(x)


def forward_mode(net: Batched, x: Tensor):
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        return torch.autograd.forward_ad.unpack_dual(net(dual)).tangent


def batched_backward(net: Batched, x: Tensor):
    """A Jacobian whose rows are one vectorised backward pass."""
    return torch.autograd.functional.jacobian(net, x, vectorize=True)


@RECORDING
@pytest.mark.parametrize(
    "transform",
    [func_grad, func_per_sample, func_vmap, func_jvp, func_jacrev, forward_mode, batched_backward],
    ids=lambda f: f.__name__,
)
def test_transforms(transform: Callable, recording: bool):
    """The same as without a balancer; that is, as the plain product."""
    net, plain = twins(recording)[0], twins(recording=False)[0]
    balancer = GradNorm(net.fork) if recording else None
    before = {} if balancer is None else {key: value.clone() for key, value in balancer.named_buffers()}
    same(transform(net, inputs(6)), transform(plain, inputs(6)))
    assert all(balancer.get_buffer(key).equal(value) for key, value in before.items())


# How models are run


@pytest.mark.usefixtures("fresh_compiler")
@RECORDING
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_whole_model_compiled(backend: str, recording: bool):
    batched, separate = twins(recording)
    compiled = torch.compile(batched, fullgraph=True, backend=backend)
    EqualWeighting(TASKS)(losses_of(compiled(inputs(6)))).backward()
    losses_of(separate(inputs(6))).sum().backward()
    same(batched.parts(), separate.parts())


@pytest.mark.usefixtures("fresh_compiler")
def test_whole_model_compiled_is_refused():
    net, _ = twins()
    balancer = GradNorm(net.fork, wrt=net.trunk[2])
    with pytest.raises(ForkError, match="compile the trunk and the heads apart"):
        balancer(losses_of(torch.compile(net, fullgraph=True, backend="eager")(inputs(6))))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("wrt", ["layer", "features"])
def test_trunk_compiled(wrt: str):
    """The heads, which show the fork the gradients, are not; what comes before them may be."""
    nets = twins()
    trunk = torch.compile(nets[0].trunk, fullgraph=True, backend="aot_eager")
    norms = []
    for net, features in zip(nets, (trunk, nets[1].trunk), strict=True):
        balancer = GradNorm(net.fork, wrt=net.trunk[2] if wrt == "layer" else None)
        for t in range(3):
            balancer(losses_of(net.outputs(features(inputs(6, seed=t))))).backward()
        norms.append(balancer.statistics["gradient_norms"])
    same(*norms)


@pytest.mark.parametrize("how", ["eval", "no_grad", "inference_mode"])
def test_where_nothing_is_learned(how: str):
    net, separate = twins()
    if how == "eval":
        net.eval()
        losses = losses_of(net(inputs(6)))
        same(losses, losses_of(separate(inputs(6))))
        with pytest.raises(ForkError, match="training mode"):
            GradNorm(net.fork)(losses)
    else:
        with getattr(torch, how)():
            outputs = net(inputs(6))
            same(outputs, separate(inputs(6)))
        assert not outputs.requires_grad


def test_state_dict():
    net, other = build(Batched), Batched()
    assert set(net.heads.state_dict()) == {"weight", "bias"}
    GradNorm(net.fork)
    other.load_state_dict(net.state_dict())
    same(other(inputs(6)), net(inputs(6)))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
def test_a_copy_is_a_network_of_its_own(copied: Callable[[Batched], Batched]):
    net, separate = twins()
    balancer = GradNorm(net.fork, wrt=net.trunk[2])
    balancer(losses_of(net(inputs(6)))).backward()
    before = {key: value.clone() for key, value in balancer.named_buffers()}
    net.zero_grad()
    other = copied(net)
    with torch.no_grad():
        net.heads.weight.zero_()
    same(other(inputs(6)), separate(inputs(6)))
    own, expected = GradNorm(other.fork, wrt=other.trunk[2]), GradNorm(separate.fork, wrt=separate.trunk[2])
    own(losses_of(other(inputs(6)))).backward()
    expected(losses_of(separate(inputs(6)))).backward()
    same(other.parts(), separate.parts())
    same(own.next_weights, expected.next_weights)
    assert all(balancer.get_buffer(key).equal(value) for key, value in before.items())
    assert net.heads.weight.grad is None


def test_a_step_leaves_nothing_behind():
    """Neither one whose loss was dropped, nor one that was learned from."""
    net, _ = twins()
    balancer = GradNorm(net.fork, wrt=net.trunk[2])
    balancer(losses_of(net(inputs(6)))).backward()
    for backward in (False, True):
        z = net.trunk(inputs(6))
        outputs = net.outputs(z)
        seen = [weakref.ref(z), weakref.ref(outputs)]
        loss = balancer(losses_of(outputs))
        if backward:
            loss.backward()
        del z, outputs, loss
        gc.collect()
        assert [ref() for ref in seen] == [None, None]


# GradNorm


def wrt_of(net: Net, wrt: str) -> dict[str, object]:
    """`GradNorm`'s arguments that say where gradients are measured."""
    layer = net.trunk[2]
    return {
        "features": {"fork": net.fork},
        "layer": {"fork": net.fork, "wrt": layer},
        "weight": {"fork": net.fork, "wrt": layer.weight},
        "trunk": {"fork": net.fork, "wrt": net.trunk},
        "parameters": {"fork": None, "wrt": layer.parameters(), "tasks": TASKS},
    }[wrt]


FORMS: dict[str, Callable[[Tensor], object]] = {
    "tensor": losses_of,
    "list": lambda outputs: list(losses_of(outputs).unbind()),
    "stack": lambda outputs: torch.stack([losses_of(outputs)[i] for i in range(TASKS)]),
    "dict": lambda outputs: dict(zip(NAMES, losses_of(outputs), strict=True)),
}


def trained(net: Net, balancer: GradNorm, form: str, passes: int = 1) -> tuple[Tensor, list[list[Tensor]]]:
    """20 steps: the weights after each, and the network's gradients in each."""
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
        *itertools.product(
            ["features", "layer", "weight", "trunk", "parameters"], [1, 2], ["tensor", "list"], [nn.ReLU]
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
    """Algorithm 1 by double backward, on separate heads without a fork."""
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
    """Its weight holds for that step, and its head gets no gradient."""
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
    """Once to each of two views of a sample, say."""
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
    """A label that is none, of one task, leaves the state as it is; so it does in the very first step."""
    net = build(Batched)
    balancer = GradNorm(**wrt_of(net, wrt))
    state = ("next_weights", "initial_losses", "weights_sum", "optimizer.exp_avg")
    for t in range(4):
        targets = torch.zeros(6, TASKS, OUTPUTS, dtype=torch.float64)
        targets[2, 1, 0] = float(bad) if t == at else 0.0
        before = {key: balancer.get_buffer(key).double().clone() for key in state}
        balancer((net(inputs(6, seed=t)) - targets).square().mean((0, 2))).backward()
        if t == at:
            assert all(balancer.get_buffer(key).equal(value) for key, value in before.items())
    assert balancer.optimizer.step == 3
    assert balancer.next_weights.isfinite().all()


@pytest.mark.parametrize("form", ["tensor", "list"])
@pytest.mark.parametrize("wrt", ["features", "layer", "parameters"])
def test_a_pass_that_goes_past_the_balancer_does_not_count(wrt: str, form: str):
    """Neither one through the losses themselves, nor one through what another balancer made of them."""
    net = build(Batched)
    balancer, other, alone = (GradNorm(**wrt_of(net, wrt), optimizer="sgd", lr=0.1) for _ in range(3))
    for t in range(2):
        alone(FORMS[form](net(inputs(6, seed=t)))).backward()
    for t in range(2):
        losses = FORMS[form](net(inputs(6, seed=t)))
        loss, others = balancer(losses), other(losses)
        before = {key: value.clone() for key, value in balancer.named_buffers()}
        sum(losses).backward(retain_graph=True)
        others.backward(retain_graph=True)
        assert all(balancer.get_buffer(key).equal(value) for key, value in before.items())
        loss.backward()
        assert balancer.optimizer.step == other.optimizer.step == t + 1
    for one in (balancer, other):
        torch.testing.assert_close(one.next_weights, alone.next_weights, rtol=1e-12, atol=0)


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


# The audit

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
    """A mean over the wrong dimensions: of samples, of which there are as many as tasks."""
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
    """A task whose gradient is zero just now gives no reason to complain."""
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


# What a step does


def step_counts(num_tasks: int, wrt: str | None) -> Counts:
    """Of a whole step, but the optimiser's; ``wrt`` None is equal weighting."""
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
    assert extra[0] <= 30
