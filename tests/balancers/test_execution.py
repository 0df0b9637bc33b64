"""GradNorm with steps that are run in other ways: compiled, checkpointed, under autocast, with a recurrent trunk."""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from balancers import Fork, GradNorm

from .nets import Net, build, inputs, losses_of

STEPS = 6


def run(net: Net, forward: Callable[[Tensor], list[Tensor]], wrt: str = "layer") -> tuple[list[Tensor], list[Tensor]]:
    """Train the network; return the weights after each step, and each parameter's gradient in the last step."""
    balancer = GradNorm(net.fork, wrt=net.layer if wrt == "layer" else None)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    weights = []
    torch.manual_seed(0)
    for x in inputs("linear", STEPS):
        optimizer.zero_grad()
        balancer(losses_of(forward(x), x)).backward()
        optimizer.step()
        weights.append(balancer.next_weights.clone())
    assert (weights[-1] - 1).abs().max() > 0.05
    return weights, [parameter.grad for parameter in net.parameters()]


def same(one, other) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


inductor = pytest.param(
    "inductor",
    marks=[
        pytest.mark.skipif(not any(map(shutil.which, ["c++", "g++", "clang++"])), reason="no C++ compiler"),
        pytest.mark.slow,
        pytest.mark.xdist_group("processes"),
    ],
)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("wrt", ["layer", "features"])
@pytest.mark.parametrize("backend", ["aot_eager", inductor])
def test_compiled_in_parts(backend: str, wrt: str):
    """The part before the last shared layer, that layer with what follows it, and each head are compiled."""
    expected = run((net := build("linear", 2)), net, wrt)
    net = build("linear", 2)
    parts = [net.trunk[:2], net.trunk[2:], *net.heads]
    front, last, *heads = [torch.compile(part, fullgraph=True, backend=backend) for part in parts]

    def forward(x: Tensor) -> list[Tensor]:
        return [head(z) for head, z in zip(heads, net.fork(last(front(x))), strict=True)]

    same(run(net, forward, wrt), expected)


@pytest.mark.usefixtures("fresh_compiler")
def test_whole_trunk_compiled():
    """With the last shared layer inside a compiled trunk, a step costs more, and its result is the same."""
    expected = run((net := build("linear", 2)), net)
    net = build("linear", 2)
    trunk = torch.compile(net.trunk, fullgraph=True, backend="aot_eager")
    same(run(net, lambda x: net.outputs([net.fork(trunk(x))])), expected)


@pytest.mark.parametrize("wrt", ["layer", "features"])
@pytest.mark.parametrize("what", ["trunk", "last", "heads", "all"])
@pytest.mark.parametrize("name", ["linear", "dropout"])
def test_checkpointed(name: str, what: str, wrt: str):
    expected = run((net := build(name, 2)), net, wrt)
    net = build(name, 2)

    def saved(part: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return checkpoint(part, x, use_reentrant=False)

    def forward(x: Tensor) -> list[Tensor]:
        if what == "all":
            return saved(net, x)
        if what == "trunk":
            return net.outputs([net.fork(saved(net.trunk, x))])
        if what == "last":
            return net.outputs([net.fork(saved(net.trunk[2:], net.trunk[:2](x)))])
        return [saved(head, z) for head, z in zip(net.heads, net.fork(net.trunk(x)), strict=True)]

    same(run(net, forward, wrt), expected)


def test_a_recurrent_trunk():
    """The gradient of a layer that is applied three times is that of all its uses."""
    net = build("linear", 3)
    cell = nn.Linear(5, 5).double()
    readout = nn.Linear(5, 4).double()
    balancer = GradNorm(net.fork, wrt=cell)

    def trunk(x: Tensor) -> Tensor:
        for _ in range(3):
            x = cell(x).tanh()
        return readout(x)

    for x in inputs("linear", 3):
        losses = losses_of(net.outputs([(trunk(x),) * 3]), x)
        parameters = list(cell.parameters())
        gradients = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
        norms = torch.stack([torch.cat([g.flatten() for g in each]).norm() for each in gradients])
        balancer(losses_of(net.outputs([net.fork(trunk(x))]), x)).backward()
        same(balancer.statistics["gradient_norms"] / balancer.weights, norms)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6))
        self.fork = Fork(2)
        self.heads = nn.ModuleList(nn.Linear(6, 3) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [head(z) for head, z in zip(self.heads, self.fork(self.trunk(x)), strict=True)]


@pytest.mark.parametrize("inside", [True, False], ids=["balancer inside", "balancer outside"])
@pytest.mark.parametrize("wrt", ["layer", "features", "parameters"])
def test_autocast(wrt: str, inside: bool):
    """Norms are those of bfloat16 gradients, as the network's own; they are summed and kept in float32."""
    net = Small()
    layer = net.trunk[2]
    if wrt == "parameters":
        balancer = GradNorm(None, wrt=layer, tasks=2, optimizer="sgd", lr=0.1)
    else:
        balancer = GradNorm(net.fork, wrt=layer if wrt == "layer" else None, optimizer="sgd", lr=0.1)

    def losses(x: Tensor, fork: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, list[Tensor]]:
        z = net.trunk(x)
        outputs = [head(each) for head, each in zip(net.heads, fork(z), strict=True)]
        return z, [(1 + 4 * i) * (output - 1).square().mean() for i, output in enumerate(outputs)]

    for t in range(3):
        x = torch.randn(16, 5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z, plain = losses(x, lambda z: (z, z))
            _, own = losses(x, net.fork)
            loss = balancer(own) if inside else None
        of = [z] if wrt == "features" else list(layer.parameters())
        norms = []
        for part, w in zip(plain, balancer.next_weights, strict=True):
            gradients = torch.autograd.grad(w * part, of, retain_graph=True)
            norms.append(torch.cat([g.flatten().float() for g in gradients]).norm() / w)
        net.zero_grad()
        loss = balancer(own) if loss is None else loss
        assert loss.dtype == torch.float32
        loss.backward()
        measured = balancer.statistics["gradient_norms"] / balancer.weights
        torch.testing.assert_close(measured, torch.stack(norms), rtol=1e-2, atol=0, msg=f"step {t}")
        assert balancer.next_weights.dtype == torch.float32
        assert (balancer.next_weights - balancer.weights).abs().max() > 1e-3


@pytest.mark.parametrize("wrt", ["layer", "features", "parameters"])
def test_a_bfloat16_network(wrt: str):
    """Losses of 16 bits are weighed in 32 bits, and the state is kept in 32."""
    net = Small().bfloat16()
    layer = net.trunk[2]
    if wrt == "parameters":
        balancer = GradNorm(None, wrt=layer, tasks=2)
    else:
        balancer = GradNorm(net.fork, wrt=layer if wrt == "layer" else None)
    balancer.bfloat16()
    for _ in range(3):
        outputs = net(torch.randn(16, 5, dtype=torch.bfloat16))
        losses = [(1 + 4 * i) * (output - 1).square().mean() for i, output in enumerate(outputs)]
        assert losses[0].dtype == torch.bfloat16
        loss = balancer(losses)
        loss.backward()
        assert loss.dtype == torch.float32
    assert all(state.dtype == torch.float32 for state in balancer.buffers())
    assert balancer.next_weights.sum().item() == pytest.approx(2)
    assert balancer.next_weights[0] > 1.05


def test_a_mixed_network():
    """With losses of two types, the state takes the wider one."""
    net = build("linear", 2)
    balancer = GradNorm(net.fork, wrt=net.layer)
    for x in inputs("linear", 2):
        first, second = losses_of(net(x), x)
        balancer([first.float(), second]).backward()
    assert balancer.next_weights.dtype == torch.float64
    assert balancer.next_weights.sum().item() == pytest.approx(2)
