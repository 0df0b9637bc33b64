"""`LinearHeads` equals T `nn.Linear` modules behind a fork: in values, in derivatives and in all ways of running it."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

from balancers import EqualWeighting, GradNorm, LinearHeads

from .heads import OUTPUTS, TASKS, WIDTH, Batched, inputs, losses_of, twins

pytestmark = pytest.mark.on_device


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
    assert after.equal(torch.randn(1)), "the heads consumed a different amount of random numbers"


def test_no_head():
    with pytest.raises(ValueError, match="num_tasks is 0; a fork needs at least one task"):
        LinearHeads(0, WIDTH, OUTPUTS)


def contiguous(outputs: Tensor) -> Tensor:
    return (outputs * torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype).view_as(outputs)).sum()


def not_contiguous(outputs: Tensor) -> Tensor:
    """Reduce the outputs such that their gradient is transposed in memory."""
    turned = outputs.movedim(-2, 0).contiguous()
    return (turned * torch.linspace(-1, 2, turned.numel(), dtype=turned.dtype).view_as(turned)).sum()


def expanded(outputs: Tensor) -> Tensor:
    """Reduce the outputs such that their gradient is one expanded number."""
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
    """Products are computed in bfloat16, as with separate heads; parameters get gradients of their own type."""
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
    """Second derivatives agree with finite differences."""
    heads = LinearHeads(TASKS, WIDTH, OUTPUTS).double()
    reader = GradNorm(heads.fork) if recording else None
    assert heads.fork.reading.recording == (reader is not None)
    z = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def run(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional_call(heads, {"weight": weight, "bias": bias}, (z,))

    arguments = (z, *heads.parameters())
    assert torch.autograd.gradcheck(run, arguments)
    assert torch.autograd.gradgradcheck(run, arguments)


@pytest.mark.parametrize("wrt", ["layer", "features"])
@pytest.mark.parametrize("through", ["outputs", "loss"])
def test_gradient_penalty(wrt: str, through: str):
    """With a penalty on the slope at the input, the penalty's gradient through the heads is measured too."""
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
    """Return a gradient for each sample."""
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
    """Compute a Jacobian by one vectorised backward pass for all rows."""
    return torch.autograd.functional.jacobian(net, x, vectorize=True)


@RECORDING
@pytest.mark.parametrize(
    "transform",
    [func_grad, func_per_sample, func_vmap, func_jvp, func_jacrev, forward_mode, batched_backward],
    ids=lambda f: f.__name__,
)
def test_transforms(transform: Callable, recording: bool):
    """Transforms give the same as without a balancer, that is, as for the plain product."""
    net, plain = twins(recording)[0], twins(recording=False)[0]
    balancer = GradNorm(net.fork) if recording else None
    before = {} if balancer is None else {key: value.clone() for key, value in balancer.named_buffers()}
    same(transform(net, inputs(6)), transform(plain, inputs(6)))
    assert all(balancer.get_buffer(key).equal(value) for key, value in before.items())


# How models are run


@pytest.mark.on_cpu
@pytest.mark.usefixtures("fresh_compiler")
@RECORDING
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_whole_model_compiled(backend: str, recording: bool):
    batched, separate = twins(recording)
    compiled = torch.compile(batched, fullgraph=not recording, backend=backend)
    EqualWeighting(TASKS)(losses_of(compiled(inputs(6)))).backward()
    losses_of(separate(inputs(6))).sum().backward()
    same(batched.parts(), separate.parts())


@pytest.mark.on_cpu
@pytest.mark.usefixtures("fresh_compiler")
def test_a_model_that_is_read_is_not_one_graph():
    net, _ = twins()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"with hooks, which torch\.compile can't trace"):
        torch.compile(net, fullgraph=True, backend="eager")(inputs(6))


@pytest.mark.on_cpu
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("part", ["trunk", "whole"])
@pytest.mark.parametrize("wrt", ["layer", "features"])
def test_a_compiled_network_is_measured(wrt: str, part: str):
    nets = twins()
    trunk = torch.compile(nets[0].trunk, fullgraph=True, backend="aot_eager")
    compiled = {"trunk": lambda x: nets[0].outputs(trunk(x)), "whole": torch.compile(nets[0], backend="aot_eager")}
    norms = []
    for net, run in zip(nets, (compiled[part], nets[1]), strict=True):
        balancer = GradNorm(net.fork, wrt=net.trunk[2] if wrt == "layer" else None)
        for t in range(3):
            balancer(losses_of(run(inputs(6, seed=t)))).backward()
        norms.append(balancer.statistics["gradient_norms"])
    same(*norms)


@pytest.mark.parametrize("how", ["no_grad", "inference_mode"])
def test_where_nothing_is_learned(how: str):
    net, separate = twins()
    with getattr(torch, how)():
        outputs = net(inputs(6))
        same(outputs, separate(inputs(6)))
    assert not outputs.requires_grad


def test_a_network_in_eval_mode_is_measured():
    norms = []
    for net in twins():
        balancer = GradNorm(net.fork)
        balancer(losses_of(net.eval()(inputs(6)))).backward()
        norms.append(balancer.statistics["gradient_norms"])
    same(*norms)
    assert (norms[0] > 0).all()


def test_state_dict():
    (net, _), other = twins(), Batched()
    assert set(net.heads.state_dict()) == {"weight", "bias"}
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


@pytest.mark.slow
def test_a_step_leaves_nothing_behind():
    """No tensor stays alive, with or without a backward pass through the loss."""
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
