"""Norms of a layer's gradients that are taken without forming these gradients."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from balancers import MGDA, EqualWeighting, Fork, GradNorm, LinearHeads, create
from balancers.engine.graph_behind import GraphBehind
from balancers.engine.measuring import ghost_norms as ghosts
from balancers.engine.measuring import layer_gradients, measure, norms, row_products, waiting
from balancers.engine.measuring.between import Between
from balancers.engine.measuring.row_products import Factor, Kernel, RowProducts, is_less
from bench.cost.operation_count import count

pytestmark = pytest.mark.on_device

TASKS = 3


class Twice(nn.Module):
    """A layer that is applied twice, with a function between."""

    def __init__(self, layer: nn.Module, between: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.layer, self.between = layer, between

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.between(self.layer(x)))


class Checkpointed(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.part, x, use_reentrant=False)


def linear(**options: Any) -> nn.Linear:
    return nn.Linear(32, 32, **options)


def net_of(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(linear(), nn.Tanh(), *layers)


VECTORS, IMAGES = (3, 32), (2, 8, 6, 6)
# What is between the inputs and the fork; the inputs' shape; what is measured; whether gradients are formed.
CASES: dict[str, tuple[Callable[[], nn.Module], Sequence[int], Callable[[Any], Any], bool]] = {
    "linear": (lambda: net_of(linear()), VECTORS, lambda net: net[2], False),
    "relu": (lambda: net_of(linear(), nn.ReLU()), VECTORS, lambda net: net[2], False),
    "no bias": (lambda: net_of(linear(bias=False), nn.Tanh()), VECTORS, lambda net: net[2], False),
    "weight": (lambda: net_of(linear(), nn.Tanh()), VECTORS, lambda net: [net[2].weight], False),
    "bias": (lambda: net_of(linear(), nn.Tanh()), VECTORS, lambda net: [net[2].bias], True),
    "norm between": (lambda: net_of(linear(), nn.LayerNorm(32)), VECTORS, lambda net: net[2], False),
    "norm measured too": (lambda: net_of(linear(), nn.LayerNorm(32)), VECTORS, lambda net: net, False),
    "weight of one, bias of another": (
        lambda: net_of(linear(), nn.GELU()),
        VECTORS,
        lambda net: [net[0].weight, net[2].bias],
        False,
    ),
    "sequence": (lambda: net_of(linear(), nn.Tanh()), (1, 3, 32), lambda net: net[2], False),
    "sequence, no bias": (lambda: net_of(linear(bias=False), nn.Tanh()), (1, 3, 32), lambda net: net[2], False),
    "applied twice": (lambda: Twice(linear()), VECTORS, lambda net: net.layer, False),
    "many rows": (lambda: net_of(linear(), nn.Tanh()), (200, 32), lambda net: net[2], True),
    "checkpointed": (lambda: Checkpointed(net_of(linear())), VECTORS, lambda net: net.part, True),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(8, 32, 6), nn.ReLU()), IMAGES, lambda net: net[0], False),
    "strided": (
        lambda: nn.Sequential(nn.Conv2d(8, 32, 3, stride=3, padding=1), nn.Tanh()),
        IMAGES,
        lambda net: net[0],
        False,
    ),
    "dilated": (
        lambda: nn.Sequential(nn.Conv2d(8, 64, (3, 2), stride=2, dilation=(2, 4)), nn.Tanh()),
        IMAGES,
        lambda net: net[0],
        False,
    ),
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(8, 64, 3, stride=3, padding=1, groups=2, bias=False), nn.Tanh()),
        IMAGES,
        lambda net: net[0],
        False,
    ),
    "applied twice to images": (
        lambda: Twice(nn.Conv2d(8, 8, 3, stride=3, padding=1), lambda z: nn.functional.interpolate(z, 5)),
        (1, 8, 3, 3),
        lambda net: net.layer,
        False,
    ),
    "one dimension": (
        lambda: nn.Sequential(nn.Conv1d(8, 32, 4, padding=2, stride=3), nn.ReLU()),
        (2, 8, 6),
        lambda net: net[0],
        False,
    ),
    "three dimensions": (
        lambda: nn.Sequential(nn.Conv3d(4, 64, 2, padding=(1, 0, 1), stride=2), nn.ReLU()),
        (1, 4, 3, 3, 4),
        lambda net: net[0],
        False,
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(8, 4, 2), nn.ReLU()),
        (1, 8, 2, 2),
        lambda net: net[0],
        True,
    ),
}


class Net(nn.Module):
    """A trunk and three heads."""

    def __init__(self, make: Callable[[], nn.Module], shape: Sequence[int], batched: bool, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.trunk = make()
        width = self.trunk(torch.zeros(shape)).flatten(1).shape[1]
        self.heads = (
            LinearHeads(TASKS, width, 2) if batched else nn.ModuleList(nn.Linear(width, 2) for _ in range(TASKS))
        )
        self.fork = self.heads.fork if batched else Fork(TASKS)
        self.batched = batched
        self.to(dtype)

    def losses(self, x: Tensor) -> list[Tensor]:
        features = self.trunk(x)
        if self.batched:
            outputs = self.heads(features.flatten(1)).unbind(-2)
        else:
            outputs = [head(z.flatten(1)) for head, z in zip(self.heads, self.fork(features), strict=True)]
        return [(i + 1) * (output - i).square().mean() for i, output in enumerate(outputs)]


def norms_of(net: Net, wrt: Any, x: Tensor) -> Tensor:
    """Return the norms ``(T,)`` by forming each gradient."""
    parameters = list(wrt.parameters()) if isinstance(wrt, nn.Module) else list(wrt)
    norms = []
    for loss in net.losses(x):
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        norms.append(torch.cat([part.flatten() for part in found if part is not None]).norm())
    return torch.stack(norms)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[RowProducts]:
    """Return a list of what takes the place of inputs: nothing where gradients are formed."""
    made: list[RowProducts] = []

    def recorded(init: Callable[..., None]) -> Callable[..., None]:
        def init_recorded(self: Any, *arguments: Any) -> None:
            init(self, *arguments)
            made.append(self)

        return init_recorded

    for way in (Factor, Kernel):
        monkeypatch.setattr(way, "__init__", recorded(way.__init__))
    return made


@pytest.fixture(params=[Factor, Kernel], ids=["factor", "kernel"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[RowProducts]:
    """Make rows be taken by each way, as on CPUs and as on GPUs."""
    for module in (row_products, ghosts, layer_gradients):
        monkeypatch.setattr(module, "way_for", lambda x, num_rows: request.param)
    return request.param


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(6, 10, 3, padding=1), (2, 6, 4, 5)),
        (nn.Conv2d(6, 10, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2), groups=2), (3, 6, 5, 4)),
        (nn.Conv2d(4, 4, 3, groups=4), (1, 4, 5, 5)),
        (nn.Conv1d(6, 10, 4, stride=3, padding=2), (2, 6, 7)),
        (nn.Conv3d(3, 5, (2, 1, 3), padding=(1, 0, 1), dilation=(1, 1, 2)), (2, 3, 3, 2, 5)),
    ],
)
def test_kernel_of_positions_is_that_of_patches(layer: nn.Module, shape: tuple[int, ...]):
    layer.double()
    out = layer(torch.randn(shape, dtype=torch.float64))
    [found], rest = ghosts.layers_between(Between(GraphBehind([out]), list(layer.parameters())), lambda _: True)
    [use] = found.uses
    assert rest == []
    expected = use.inputs() @ use.inputs().mT
    torch.testing.assert_close(use.kernel_of_positions(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 3])
def test_a_convolution_takes_the_cheaper_way(stride: int, way: type[RowProducts]):
    """Rows are fewer than positions where patches do not overlap."""
    layer = nn.Conv2d(64, 64, 3, stride=stride, padding=1 if stride == 1 else 0, bias=False)
    x = torch.randn(1, 64, 6, 6)
    [found], _ = ghosts.layers_between(Between(GraphBehind([layer(x)]), list(layer.parameters())), lambda _: True)
    rows, positions = (36 if stride == 1 else 4), 36
    counted = count(found.products, x.device).flops / 2
    assert found.multiplications == pytest.approx(min(way.multiplications(rows, 64 * 9), positions**2 * 64), abs=1)
    assert counted == pytest.approx(found.multiplications, abs=1)
    assert isinstance(found.products(), Kernel if stride == 1 else way)


@pytest.mark.parametrize("batched", [False, True], ids=["separate", "batched"])
@pytest.mark.parametrize("case", CASES)
def test_norms_are_those_of_the_gradients(case: str, batched: bool, way: type[RowProducts], made: list[RowProducts]):
    make, shape, wrt, forms = CASES[case]
    net = Net(make, shape, batched, torch.float64)
    balancer = GradNorm(net.fork, wrt(net.trunk), tasks=TASKS)
    x = torch.randn(shape, dtype=torch.float64)
    balancer(net.losses(x)).backward()
    expected = norms_of(net, wrt(net.trunk), x)
    torch.testing.assert_close(balancer.statistics["gradient_norms"], expected, rtol=1e-10, atol=0)
    assert bool(made) != forms
    assert all(isinstance(each, way) for each in made) or "conv" in str(net.trunk).lower()


def test_exact_forms_the_gradients(made: list[RowProducts]):
    for case in ("linear", "norm between", "convolution"):
        make, shape, wrt, _ = CASES[case]
        net, x = Net(make, shape, False, torch.float64), torch.randn(shape, dtype=torch.float64)
        balancer = GradNorm(net.fork, wrt(net.trunk), tasks=TASKS, exact=True)
        balancer(net.losses(x)).backward()
        expected = norms_of(net, wrt(net.trunk), x)
        torch.testing.assert_close(balancer.statistics["gradient_norms"], expected, rtol=1e-12, atol=0)
    assert not made


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of the numbers of tasks whose norms are taken in one call."""
    numbers: list[int] = []

    def recorded(squared_norms: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
        def squared_norms_recorded(self: Any, gradients: Tensor) -> Tensor:
            numbers.append(len(gradients))
            return squared_norms(self, gradients)

        return squared_norms_recorded

    for way in (Factor, Kernel):
        monkeypatch.setattr(way, "squared_norms", recorded(way.squared_norms))
    return numbers


@pytest.mark.parametrize("missing", [None, "left out", "detached"])
@pytest.mark.parametrize("case", ["linear", "relu", "norm between", "norm measured too", "convolution"])
def test_norms_of_separate_heads_are_taken_at_once(case: str, missing: str | None, at_once: list[int]):
    make, shape, wrt, _ = CASES[case]
    net, x = Net(make, shape, False, torch.float64), torch.randn(shape, dtype=torch.float64)
    balancer = GradNorm(net.fork, wrt(net.trunk), tasks=["a", "b", "c"])
    balancer(dict(zip("abc", net.losses(x), strict=True))).backward()
    expected = norms_of(net, wrt(net.trunk), x)
    losses = dict(zip("abc", net.losses(x), strict=True))
    at_once.clear()
    if missing == "left out":
        del losses["b"]
    elif missing == "detached":
        losses["b"] = net.heads[1](torch.randn(2, net.heads[1].in_features, dtype=torch.float64)).square().mean()
        expected[1] = 0
    with pytest.warns(RuntimeWarning, match="'b'") if missing == "detached" else nullcontext():
        balancer(losses).backward()
    expected *= balancer.weights
    given = [0, 2] if missing == "left out" else [0, 1, 2]
    torch.testing.assert_close(balancer.statistics["gradient_norms"], expected[given], rtol=1e-10, atol=0)
    num_layers = 2 if case == "norm measured too" else 1
    assert at_once == [3 if missing is None else 2] * num_layers


@pytest.mark.parametrize(("case", "images", "groups"), [("relu", 10, [1, 1, 1]), ("convolution", 40, [2, 1])])
def test_as_many_norms_are_taken_at_once_as_take_no_more_memory_than_a_gradient(
    case: str, images: int, groups: list[int], at_once: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(measure, "MOST_HELD", 0)
    make, shape, wrt, _ = CASES[case]
    wide = (images, *shape[1:])
    net, x = Net(make, wide, False, torch.float64), torch.randn(wide, dtype=torch.float64)
    balancer = GradNorm(net.fork, wrt(net.trunk), tasks=TASKS)
    balancer(net.losses(x)).backward()
    torch.testing.assert_close(
        balancer.statistics["gradient_norms"], norms_of(net, wrt(net.trunk), x), rtol=1e-10, atol=0
    )
    assert at_once == groups


def test_norms_are_taken_one_by_one_where_features_are_larger_than_the_layer(
    at_once: list[int], monkeypatch: pytest.MonkeyPatch
):
    """All tasks' gradients of the features would be kept until the last has come."""
    monkeypatch.setattr(measure, "MOST_HELD", 0)
    net = Net(lambda: net_of(linear(), nn.Linear(32, 2000)), (2, 32), False, torch.float64)
    x = torch.randn(2, 32, dtype=torch.float64)
    balancer = GradNorm(net.fork, net.trunk[2], tasks=TASKS)
    balancer(net.losses(x)).backward()
    expected = norms_of(net, net.trunk[2], x)
    torch.testing.assert_close(balancer.statistics["gradient_norms"], expected, rtol=1e-10, atol=0)
    assert at_once == [1, 1, 1]


MANY = 12
# Layers before the fork, and rows of their inputs.
GROUPED: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "rows": (lambda: net_of(linear(), nn.ReLU()), 8),
    "products": (lambda: net_of(linear(), nn.ReLU()), 40),
    "behind a norm": (lambda: net_of(linear(), nn.LayerNorm(32)), 8),
}


class ManyHeads(nn.Module):
    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.fork = make(), Fork(MANY)
        self.heads = nn.ModuleList(nn.Linear(32, 1) for _ in range(MANY))

    def losses(self, x: Tensor, without: Sequence[int] = ()) -> dict[str, Tensor]:
        outputs = zip(self.heads, self.fork(self.trunk(x)), strict=True)
        each = {f"task {i}": (i + 1) * head(z).square().mean() for i, (head, z) in enumerate(outputs)}
        return {name: loss for i, (name, loss) in enumerate(each.items()) if i not in without}


@pytest.mark.parametrize("without", [(), (3,), (0, 1, 2, 3, 4, 5, 11)])
@pytest.mark.parametrize("case", GROUPED)
def test_norms_of_many_tasks_are_taken_in_groups(case: str, without: Sequence[int]):
    make, rows = GROUPED[case]
    net, x = ManyHeads(make).double(), torch.randn(rows, 32, dtype=torch.float64)
    expected = []
    for loss in net.losses(x, without).values():
        found = torch.autograd.grad(loss, list(net.trunk[2].parameters()), retain_graph=True)
        expected.append(torch.cat([part.flatten() for part in found]).norm())
    balancer = GradNorm(net.fork, net.trunk[2], tasks=[f"task {i}" for i in range(MANY)])
    balancer(net.losses(x, without)).backward()
    norms = balancer.statistics["gradient_norms"]
    torch.testing.assert_close(norms, torch.stack(expected), rtol=1e-10, atol=0)


def wide_net(*after: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 256), *after)


# What is before the fork; the layer; the inputs' shape.
GROUPS: dict[str, tuple[Callable[[], nn.Sequential], Callable[[nn.Sequential], nn.Module], Sequence[int]]] = {
    "few rows": (lambda: wide_net(nn.ReLU()), lambda net: net[2], (8, 256)),
    "rows": (lambda: wide_net(nn.ReLU()), lambda net: net[2], (100, 256)),
    "few rows behind a function": (lambda: wide_net(nn.GELU()), lambda net: net[2], (8, 256)),
    "rows behind a function": (lambda: wide_net(nn.GELU()), lambda net: net[2], (100, 256)),
    "products": (
        lambda: nn.Sequential(nn.Linear(256, 100), nn.Tanh(), nn.Linear(100, 100), nn.ReLU()),
        lambda net: net[2],
        (200, 256),
    ),
    "large products": (lambda: wide_net(nn.ReLU()), lambda net: net[2], (300, 256)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.Tanh()),
        lambda net: net[0],
        (1, 64, 6, 6),
    ),
    "patches": (lambda: nn.Sequential(nn.Conv2d(64, 64, 3, stride=3), nn.Tanh()), lambda net: net[0], (4, 64, 9, 9)),
}


@pytest.mark.parametrize(("rows", "groups"), [(200, [7, 5]), (400, [])])
def test_small_products_are_formed_in_groups(rows: int, groups: list[int]):
    """Of features of more than 32,768 entries, by themselves."""
    torch.manual_seed(0)
    trunk, fork = nn.Sequential(nn.Linear(100, 100), nn.ReLU()), Fork(MANY)
    heads = nn.ModuleList(nn.Linear(100, 1) for _ in range(MANY))
    balancer, x = GradNorm(fork, trunk[0], tasks=MANY), torch.randn(rows, 100)
    numbers, plain = list[int](), layer_gradients.joint_norms

    def recorded(columns: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        numbers.append(len(columns[0]))
        return plain(columns, dtype)

    losses = [head(z).square().mean() for head, z in zip(heads, fork(trunk(x)), strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_gradients, "joint_norms", recorded)
        balancer(losses).backward()
    assert numbers == groups


@pytest.mark.on_cpu  # counts the CPU's memory
@pytest.mark.parametrize("case", GROUPS)
def test_groups_take_no_more_memory_than_gradients_of_the_features_and_the_layer(case: str):
    """T + 1 of the former, and two of the latter; the inputs of the layer, and their kernel, come on top."""
    make, layer_of, shape = GROUPS[case]
    x, peaks = torch.randn(shape), []
    for measured in (True, False):
        torch.manual_seed(0)
        trunk, fork = make(), Fork(MANY)
        z, layer = trunk(x), layer_of(trunk)
        heads = nn.ModuleList(nn.Linear(z[0].numel(), 1) for _ in range(MANY))
        balancer = GradNorm(fork, layer, tasks=MANY) if measured else EqualWeighting(MANY)

        def step(trunk=trunk, fork=fork, heads=heads, by=balancer) -> None:
            outputs = [head(each.flatten(1)) for head, each in zip(heads, fork(trunk(x)), strict=True)]
            by([output.square().mean() for output in outputs]).backward()

        for _ in range(2):
            step()
        peaks.append(count(step, x.device).peak_bytes)
    of_layer = sum(parameter.numel() for parameter in layer.parameters())
    rows = z.numel() // len(layer.weight)
    inputs = 2 * rows * (layer.weight[0].numel() + 1) + 3 * rows**2
    assert peaks[0] - peaks[1] <= 4 * ((MANY + 1) * z.numel() + 2 * of_layer + inputs) + 4096


@pytest.mark.parametrize("rows", [4, 40])
def test_a_sparse_gradient_of_the_features(rows: int):
    """One that an embedding with ``sparse=True`` makes of the rows that it looked up."""
    torch.manual_seed(0)
    layer, fork = linear().double(), Fork(5)
    heads = nn.ModuleList(nn.Linear(32, 1) for _ in range(5)).double()
    balancer = GradNorm(fork, layer, tasks=5)
    aliases = fork(layer(torch.randn(rows, 32, dtype=torch.float64)))
    losses = [head(alias).square().mean() for head, alias in zip(heads, aliases, strict=True)]
    losses[1] = F.embedding(torch.tensor([1, 3]), aliases[1]).square().sum()
    rows_of = [torch.autograd.grad(loss, [*layer.parameters()], retain_graph=True) for loss in losses]
    losses[1] = F.embedding(torch.tensor([1, 3]), aliases[1], sparse=True).square().sum()
    balancer(losses).backward()
    expected = torch.stack([torch.cat([part.flatten() for part in row]).norm() for row in rows_of])
    torch.testing.assert_close(balancer.statistics["gradient_norms"], expected, rtol=1e-10, atol=0)


def test_features_that_live_on_get_no_more_hooks_in_each_step(monkeypatch: pytest.MonkeyPatch):
    layer, fork = linear(), Fork(5)
    heads = nn.ModuleList(nn.Linear(32, 1) for _ in range(5))
    balancer, z = GradNorm(fork, layer, tasks=5), layer(torch.randn(4, 32))
    calls, plain = list[int](), waiting.current_pass

    def recorded() -> int:
        calls[-1] += 1
        return plain()

    monkeypatch.setattr(waiting, "current_pass", recorded)
    for _ in range(4):
        calls.append(0)
        losses = [head(alias).square().mean() for head, alias in zip(heads, fork(z), strict=True)]
        balancer(losses).backward(retain_graph=True)
    assert len(set(calls)) == 1


@pytest.mark.parametrize(
    "tensor",
    [
        torch.rand(300, 500),
        torch.rand(500, 300).mT,
        torch.rand(64, 64, 5, 5),
        torch.rand(64, 64, 5, 5).to(memory_format=torch.channels_last),
        torch.rand(100_000),
        torch.rand(3, 4),
        torch.rand(()),
    ],
    ids=["two dimensions", "transposed", "four", "channels last", "one", "small", "scalar"],
)
def test_norms_in_parts(tensor: Tensor):
    exact = tensor.double().norm()
    norm = norms.in_parts(tensor, torch.float32).norm()
    torch.testing.assert_close(norm.double(), exact, rtol=1e-4 if tensor.ndim == 1 else 1e-6, atol=0)
    if tensor.ndim:
        rows = torch.stack([tensor, 2 * tensor, 3 * tensor])
        torch.testing.assert_close(norms.row_norms(rows, torch.float64), exact * torch.tensor([1.0, 2.0, 3.0]).double())


def test_the_joint_norm_of_many_tensors_holds_one_at_a_time():
    alive = list[int]()

    def large_ones() -> Iterator[Tensor]:
        known = list[weakref.ref[Tensor]]()
        for _ in range(4):
            tensor = torch.ones(300, 300)
            known.append(weakref.ref(tensor))
            yield tensor
            del tensor
            alive.append(sum(each() is not None for each in known))

    torch.testing.assert_close(norms.norm_of_all(large_ones(), torch.float32), torch.tensor(600.0))
    assert max(alive) <= 1


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("rows", [30, 700])
def test_norms_of_large_layers_are_exact_to_rounding(rows: int, exact: bool):
    """A sum of a million squares, one after another in single precision, would be off by 1e-4."""
    torch.manual_seed(0)
    layer, fork = nn.Linear(1000, 1100), Fork(2)
    balancer = GradNorm(fork, layer, tasks=2, exact=exact)
    x, weights = torch.rand(rows, 1000), torch.rand(2, rows, 1100)
    balancer([(w * z).sum() for w, z in zip(weights, fork(layer(x)), strict=True)]).backward()
    inputs = torch.cat([x, torch.ones(rows, 1)], 1).double()
    expected = torch.stack([(w.double().mT @ inputs).norm() for w in weights])
    torch.testing.assert_close(balancer.statistics["gradient_norms"].double(), expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("method", ["gradnorm", "mgda"])
def test_a_fork_behind_another_measures_a_layer_before_both(method: str):
    """A measurement of the inner fork runs the outer features' node before all of the outer gradients have come."""
    torch.manual_seed(0)
    trunk, middle = net_of(linear(), nn.Tanh()).double(), nn.Sequential(linear(), nn.Tanh()).double()
    outer, inner = Fork(3), Fork(2)
    heads = nn.ModuleList(nn.Linear(32, 2) for _ in range(4)).double()
    balancer = GradNorm(outer, trunk, tasks=3)
    of_inner = create(method, inner, trunk[2], tasks=2)
    aliases = outer(trunk(torch.randn(VECTORS, dtype=torch.float64)))
    losses = [(i + 1) * heads[i](z).square().mean() for i, z in enumerate(inner(middle(aliases[0])))]
    rows = [
        torch.cat([part.flatten() for part in torch.autograd.grad(loss, [*trunk[2].parameters()], retain_graph=True)])
        for loss in losses
    ]
    others = [head(z).square().mean() for head, z in zip(heads[2:], aliases[1:], strict=True)]
    balancer([of_inner(losses), *others]).backward()
    if method == "mgda":
        found, expected = of_inner.statistics["gramian"], torch.stack(rows) @ torch.stack(rows).T
    else:
        found, expected = of_inner.statistics["gradient_norms"], torch.stack(rows).norm(dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("case", ["relu", "norm between"])
def test_gradients_of_the_features_alone_are_measured_though_a_task_has_none(case: str):
    """The features' node, at which what came is taken, does not run."""
    make, shape, wrt, _ = CASES[case]
    net, x = Net(make, shape, False, torch.float64), torch.randn(shape, dtype=torch.float64)
    balancer = GradNorm(net.fork, wrt(net.trunk), tasks=TASKS)
    balancer(net.losses(x)).backward()
    expected = norms_of(net, wrt(net.trunk), x)
    features = net.trunk(x)
    aliases = net.fork(features)
    losses = [(i + 1) * (net.heads[i](z) - i).square().mean() for i, z in enumerate(aliases)]
    losses[1] = net.heads[1](torch.randn(shape, dtype=torch.float64)).square().mean()
    with pytest.warns(RuntimeWarning, match="task 1"):
        torch.autograd.grad(balancer(losses), [features, *net.heads.parameters()], allow_unused=True)
    expected[1] = 0
    found = balancer.statistics["gradient_norms"]
    torch.testing.assert_close(found, balancer.weights * expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("case", ["relu", "convolution"])
def test_what_goes_on_into_the_trunk_is_the_sum_of_gradients_that_waited(case: str, at_once: list[int]):
    make, shape, wrt, _ = CASES[case]
    net, x = Net(make, shape, False, torch.float64), torch.randn(shape, dtype=torch.float64)
    parameters = list(net.parameters())
    expected = torch.autograd.grad(sum(net.losses(x)), parameters)
    balancer = GradNorm(net.fork, wrt(net.trunk), tasks=TASKS)
    balancer(net.losses(x)).backward()
    torch.testing.assert_close([parameter.grad for parameter in parameters], list(expected), rtol=1e-12, atol=1e-14)
    assert at_once == [3]


def test_a_task_that_does_not_reach_a_layer_has_no_gradient_of_it():
    """Two layers, of which the second task's features are the first's alone."""
    torch.manual_seed(0)
    first, second, fork = linear(), linear(), Fork(2)
    heads = nn.ModuleList(nn.Linear(32, 1) for _ in range(2))
    balancer = GradNorm(fork, [first.weight, second.weight], tasks=2)
    low = torch.tanh(first(torch.randn(2, 32)))
    aliases = fork([low, second(low)])
    losses = [head(alias[1 - i]).square().mean() for i, (head, alias) in enumerate(zip(heads, aliases, strict=True))]
    expected = []
    for loss in losses:
        found = torch.autograd.grad(loss, [first.weight, second.weight], retain_graph=True, allow_unused=True)
        expected.append(torch.cat([part.flatten() for part in found if part is not None]).norm())
    balancer(losses).backward()
    torch.testing.assert_close(balancer.statistics["gradient_norms"], torch.stack(expected))


class Groups(nn.Module):
    """One weight that serves two convolutions, with one group and with two."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(128, 64, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(F.conv1d(x, self.weight).tanh(), self.weight, groups=2).flatten(1)


@pytest.mark.parametrize("method", [GradNorm, MGDA])
def test_a_weight_of_convolutions_with_other_numbers_of_groups(method: Any):
    torch.manual_seed(0)
    x, found = torch.randn(2, 64, 1), []
    for exact in (False, True):
        torch.manual_seed(1)
        trunk, fork = Groups(), Fork(2)
        balancer = method(fork, wrt=trunk, exact=exact)
        first, second = fork(trunk(x))
        balancer([first.square().mean(), (second - 1).square().mean()]).backward()
        found.append([trunk.weight.grad, balancer.weights])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("capability", "dtype", "times"),
    [((9, 0), torch.float32, 1), ((8, 9), torch.float32, 32), ((8, 9), torch.float64, 1), (None, torch.float32, 1)],
)
def test_double_precision_counts_for_more_where_it_is_slow(
    capability: tuple[int, int] | None, dtype: torch.dtype, times: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    row_products._cost_of_double.cache_clear()
    x: Any = SimpleNamespace(is_cuda=capability is not None, device=torch.device("cuda:0"), dtype=dtype)
    assert row_products.cost_of_double(x) == times
    row_products._cost_of_double.cache_clear()


def test_the_cheaper_way_depends_on_what_double_precision_costs():
    assert is_less(Kernel, 64, 512, 512, TASKS)
    assert not is_less(Kernel, 64, 512, 512, TASKS, double=32)
    assert is_less(Kernel, 4, 512, 512, TASKS, double=32)


def test_products_are_taken_where_there_are_as_many_rows_as_inputs(way: type[RowProducts]):
    assert is_less(way, 99, 512, 100, 40)
    assert not is_less(way, 100, 100, 100, 40)


def test_autocast():
    """Inputs that are kept in half precision are widened."""
    net = Net(lambda: net_of(linear(), nn.Tanh()), VECTORS, False, torch.float32)
    balancer, x = GradNorm(net.fork, net.trunk[2], tasks=TASKS), torch.randn(VECTORS)
    with torch.autocast("cpu", torch.bfloat16):
        total, losses = balancer(net.losses(x)), net.losses(x)
    total.backward()
    found = [torch.autograd.grad(loss, list(net.trunk[2].parameters()), retain_graph=True) for loss in losses]
    expected = torch.stack([torch.cat([part.flatten() for part in parts]).norm() for parts in found])
    torch.testing.assert_close(balancer.statistics["gradient_norms"], expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("rows", [2, 8, 10, 64, 200])
@pytest.mark.parametrize("ratio", [1.0, 1e-1, 1e-2, 3e-3, 1e-4, 1e-6, 0.0])
def test_rows_that_nearly_cancel(ratio: float, rows: int, way: type[RowProducts]):
    """In float32, the norm is a small part of what its terms sum to."""
    x, d = torch.randn(rows // 2, 300), torch.randn(rows // 2, 48)
    inputs = torch.cat([x, x])
    gradients = torch.stack([torch.cat([d, (2 * ratio - 1) * d])])
    square = way.of(inputs.unsqueeze(0), False).squared_norms(gradients.unsqueeze(1))
    exact = (gradients[0].double().T @ inputs.double()).norm()
    terms = (inputs.double().norm(dim=1) * gradients[0].double().norm(dim=1)).sum()
    assert square >= 0
    if exact >= 3e-3 * terms:
        assert abs(square.sqrt() - exact) <= 1e-4 * exact
    else:
        assert abs(square - exact**2) <= 1e-9 * terms**2


def cancelling(seed: int) -> tuple[Tensor, Tensor]:
    """Return inputs with a large mean, and gradients that nearly cancel.

    Some have rows that are alike, of other sizes or zero, and some are much wider than others.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = int(torch.randint(9, 200, (), generator=generator))
    inputs, outputs = (int(torch.randint(rows, 600, (), generator=generator)) for _ in range(2))
    if seed % 4 == 0:
        rows, inputs = rows // 9 + 9, 40 * inputs
    spread, rest = torch.rand(2, generator=generator) * torch.tensor([-3.0, -5.0])
    x = 1 + torch.randn(rows, inputs, generator=generator) * 10**spread * (seed % 7 > 0)
    d = torch.randn(rows, outputs, generator=generator)
    d -= d.mean(0) * (1 - 10**rest)
    if seed % 3 == 0:
        x *= torch.logspace(-4, 4, rows)[torch.randperm(rows, generator=generator)].unsqueeze(1)
        d /= x.norm(dim=1, keepdim=True)
    if seed % 5 == 0:
        x[torch.rand(rows, generator=generator) < 0.5] = 0
    return x, d


def test_a_factor_is_as_accurate_as_a_gradient_that_is_formed():
    for seed in range(100):
        x, d = cancelling(seed)
        exact = (d.double().T @ x.double()).norm()
        terms = (x.double().norm(dim=1) * d.double().norm(dim=1)).sum()
        found = Factor.of(x.unsqueeze(0), False).squared_norms(d.view(1, 1, *d.shape)).sqrt()
        assert abs(found - exact) <= 2e-7 * terms, seed
        if exact >= 3e-3 * terms:
            assert abs(found - exact) <= 1e-4 * exact, seed
        else:
            assert abs(found**2 - exact**2) <= 1e-9 * terms**2, seed


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (5, 3), (95, 1), (96, 2), (143, 1), (149, 1)])
def test_inner_products_of_rows(rows: int, groups: int, has_bias: bool, way: type[RowProducts]):
    """Of a factor of 96 rows and more, zeros are left out."""
    x = torch.randn(groups, rows, 150, dtype=torch.float64)
    d = torch.randn(TASKS, groups, rows, 6, dtype=torch.float64)
    formed = d.mT @ x
    if has_bias:
        formed = torch.cat([formed, d.sum(-2).unsqueeze(-1)], -1)
    expected = formed.flatten(1) @ formed.flatten(1).T
    products = way.of(x, has_bias)
    torch.testing.assert_close(products.inner_products(d), expected, rtol=1e-10, atol=1e-10 * float(expected.amax()))
    torch.testing.assert_close(products.squared_norms(d), expected.diagonal(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("batched", [False, True], ids=["separate", "batched"])
@pytest.mark.parametrize("rows", [1, 4, 16, 64, 256])
@pytest.mark.parametrize("width", [16, 64, 256])
def test_arithmetic_is_that_of_the_cheaper_way(width: int, rows: int, batched: bool, way: type[RowProducts]):
    """Floating-point operations beyond those of equal weighting, counted."""

    def operations(make: Callable[[Net], nn.Module]) -> int:
        net = Net(
            lambda: nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width)),
            (rows, 8),
            batched,
            torch.float32,
        )
        balancer, x = make(net), torch.randn(rows, 8)
        balancer(net.losses(x)).backward()
        return count(lambda: balancer(net.losses(x)).backward(), x.device).flops

    added = operations(lambda net: GradNorm(net.fork, net.trunk[2], tasks=TASKS)) - operations(
        lambda net: EqualWeighting(TASKS)
    )
    products = 2 * TASKS * rows * width * width
    by_rows = 2 * rows * rows * (width + TASKS * width)
    assert added <= 1.01 * (by_rows if is_less(way, rows, width, width, TASKS) else products)
    if rows**2 <= width**2:
        assert added <= 1.01 * min(products, by_rows)


@pytest.mark.parametrize("batched", [False, True], ids=["separate", "batched"])
@pytest.mark.parametrize("case", CASES)
def test_inner_products_are_those_of_the_gradients(
    case: str, batched: bool, way: type[RowProducts], made: list[RowProducts]
):
    make, shape, wrt, forms = CASES[case]
    net, x = Net(make, shape, batched, torch.float64), torch.randn(shape, dtype=torch.float64)
    found = []
    for exact in (False, True):
        balancer = MGDA(net.fork, wrt(net.trunk), tasks=TASKS, exact=exact)
        net.zero_grad()
        balancer(net.losses(x)).backward()
        gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
        found.append((balancer.statistics["gramian"], balancer.weights, *gradients))
        del balancer
    assert bool(made) != forms
    rows = []
    for loss in net.losses(x):
        parameters = list(wrt(net.trunk).parameters()) if isinstance(wrt(net.trunk), nn.Module) else wrt(net.trunk)
        rows.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters, retain_graph=True)]))
    expected = torch.stack(rows) @ torch.stack(rows).T
    torch.testing.assert_close(found[0][0], expected, rtol=1e-10, atol=1e-10 * float(expected.amax()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-10)


def test_a_task_that_is_left_out_of_inner_products():
    make, shape, wrt, _ = CASES["norm between"]
    net, x = Net(make, shape, False, torch.float64), torch.randn(shape, dtype=torch.float64)
    names, found = ["a", "b", "c"], []
    for exact in (False, True):
        balancer = MGDA(net.fork, wrt(net.trunk), tasks=names, exact=exact)
        balancer({name: loss for name, loss in zip(names, net.losses(x), strict=True) if name != "b"}).backward()
        found.append((balancer.statistics["gramian"], balancer.weights))
        del balancer
    assert found[0][0].shape == (2, 2)
    torch.testing.assert_close(*found)
