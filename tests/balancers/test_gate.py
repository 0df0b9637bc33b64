"""A combining method that reads the whole trunk: one pass a task through the trunk, and no pass with their sum.

Every gradient is compared with rows that are formed one by one, on the network without its fork.
"""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from balancers import (
    DBMTL,
    MGDA,
    EqualWeighting,
    Fork,
    ForkError,
    GradientBalancer,
    GradNorm,
    LinearHeads,
    MoCo,
    Read,
    Result,
    UPGrad,
)
from balancers.engine.forks import fork as forks
from balancers.engine.forks.gate import close
from balancers.engine.measuring import ghost_norms as ghosts
from balancers.engine.measuring import task_gradients
from balancers.engine.measuring.between import Between
from balancers.engine.measuring.row_products import RowProducts

from ..slow_params import others_slow
from .ranks import Ranks
from .worker_gate import run

TASKS = 3
Aliases = Sequence[Any]


def formula(gramian: Tensor) -> Tensor:
    """Return weights that depend on the gradients' lengths and angles."""
    return 1 / gramian.diagonal(dim1=-2, dim2=-1).clamp(min=1e-30).sqrt() + 0.1 * torch.tanh(gramian.sum(-1))


class InverseNorm(GradientBalancer):
    name, summary, reads = "inverse-norm", "A test.", "gramian"

    def solve(self, gramian: Tensor) -> Tensor:
        return formula(gramian)


class Net(nn.Module):
    """A trunk, a fork, and heads that see all tensors of the features."""

    def __init__(self, trunk: nn.Module, x: Any, num_tasks: int = TASKS, batched: bool = False) -> None:
        super().__init__()
        self.trunk = trunk.double()
        with torch.no_grad():
            width = joined(copy.deepcopy(self.trunk)(x)).shape[1]
        self.heads = (
            LinearHeads(num_tasks, width, 2)
            if batched
            else nn.ModuleList(nn.Linear(width, 2) for _ in range(num_tasks))
        ).double()
        self.fork = self.heads.fork if batched else Fork(num_tasks)

    def outputs(self, features: Any, fork: Callable[[Any], Aliases]) -> Sequence[Tensor]:
        return [head(joined(z)) for head, z in zip(self.heads, fork(features), strict=True)]

    def forward(self, x: Any) -> Sequence[Tensor]:
        features = self.trunk(x)
        if isinstance(self.heads, LinearHeads):
            return self.heads(joined(features)).unbind(1)
        return self.outputs(features, self.fork)

    def plain(self, x: Any) -> Sequence[Tensor]:
        """Return the same without the fork."""
        features = self.trunk(x)
        if isinstance(self.heads, LinearHeads):
            weights = zip(self.heads.weight, self.heads.bias, strict=True)
            return [F.linear(joined(features), weight, bias) for weight, bias in weights]
        return self.outputs(features, lambda z: [z] * len(self.heads))


def joined(features: Any) -> Tensor:
    leaves = [torch.view_as_real(z) if z.is_complex() else z for z in tree_leaves(features)]
    return torch.cat([z.flatten(1) for z in leaves], 1)


def losses_of(outputs: Sequence[Tensor]) -> list[Tensor]:
    return [(i + 1) * (output - torch.sin(torch.tensor(i))).square().mean() for i, output in enumerate(outputs)]


def dense(gradient: Tensor) -> Tensor:
    gradient = gradient.to_dense() if gradient.layout is not torch.strided else gradient
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient


def rows_of(losses: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return for each loss the gradient of each leaf."""
    found = [torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True) for loss in losses]
    return [
        [dense(torch.zeros_like(leaf) if part is None else part) for part, leaf in zip(row, leaves, strict=True)]
        for row in found
    ]


def gramian_of(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    flat = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    return flat @ flat.T


def weighted(weights: Tensor, rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [sum(w * part for w, part in zip(weights, column, strict=True)) for column in zip(*rows, strict=True)]


def close_to(found: Any, expected: Any, rtol: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * 0.1)


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list with an entry for each call of a fork that asked for a gate: whether there is one."""
    made: list[bool] = []

    def recorded(*arguments: Any) -> Any:
        found = close(*arguments)
        made.append(found is not None)
        return found

    monkeypatch.setattr(forks, "close", recorded)
    return made


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[ghosts.Layer]:
    """Return a list of the layers whose gradients are not formed."""
    asked: list[ghosts.Layer] = []
    plain = ghosts.Layer.products

    def recorded(layer: ghosts.Layer) -> RowProducts:
        asked.append(layer)
        return plain(layer)

    monkeypatch.setattr(ghosts.Layer, "products", recorded)
    return asked


def check(net: Net, x: Any, balancer: GradientBalancer, others: Sequence[Tensor] = ()) -> None:
    """Raise AssertionError unless a step has the combination in the trunk, and plain gradients in the heads."""
    shared = [p for p in net.trunk.parameters() if p.requires_grad]
    heads = list(net.heads.parameters())
    torch.manual_seed(5)
    losses = losses_of(net.plain(x))
    rows = rows_of(losses, [*shared, *others])
    weights = formula(gramian_of([row[: len(shared)] for row in rows]))
    of_heads = torch.autograd.grad(sum(losses), heads)
    net.zero_grad()
    for other in others:
        other.grad = None
    torch.manual_seed(5)
    total = balancer(losses_of(net(x)))
    total.backward()
    close_to(balancer.weights, weights)
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in (*shared, *others)]
    close_to([dense(each) for each in found], weighted(weights, rows))
    close_to([p.grad for p in heads], list(of_heads))


class Sequences(Net):
    """Linear heads for each position of a sequence."""

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        return self.heads(self.trunk(x)).unbind(-2)

    def plain(self, x: Tensor) -> Sequence[Tensor]:
        features = self.trunk(x)
        return [F.linear(features, w, b) for w, b in zip(self.heads.weight, self.heads.bias, strict=True)]


@pytest.mark.parametrize("num_tasks", [2, 3, 5])
@pytest.mark.parametrize("options", [{}, {"exact": True}, {"update_every": 2}], ids=str)
def test_linear_heads_of_a_sequence(options: dict[str, Any], num_tasks: int, gates: list[bool]) -> None:
    torch.manual_seed(0)
    trunk, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8)), torch.randn(2, 3, 6, dtype=torch.float64)
    net = Sequences(trunk, x, num_tasks, batched=True)
    net.heads = LinearHeads(num_tasks, 8, 2).double()
    balancer = InverseNorm(net.heads.fork, net.trunk, **options)
    check(net, x, balancer)
    balancer(losses_of(net(x))).backward()
    assert gates == [True, True]


@pytest.mark.parametrize("num_tasks", [2, 5])
def test_weights_that_half_precision_does_not_hold(gates: list[bool], num_tasks: int) -> None:
    """Gradients of half precision that are tiny get weights above 65504."""
    torch.manual_seed(0)
    x = torch.randn(8, 4, dtype=torch.float64)
    net = Net(nn.Linear(4, 5), x, num_tasks).half()
    balancer = InverseNorm(net.fork, wrt=net.trunk)
    losses = [1e-5 * (out.float() - 1).square().mean() for out in net(x.half())]
    rows = rows_of([1e-5 * (out.float() - 1).square().mean() for out in net.plain(x.half())], [*net.trunk.parameters()])
    balancer(losses).backward()
    assert gates == [True]
    assert balancer.weights.max() > 65504
    wide = [[part.float() for part in row] for row in rows]
    expected = weighted(balancer.weights, wide)
    for parameter, direction in zip(net.trunk.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad.float(), direction, rtol=2e-2, atol=2e-2)


class Halves(GradientBalancer):
    """Puts directions in the place of gradients: half their sum."""

    name, summary, reads, replaces_gradients = "halves", "A test.", "gradients", True
    undefined_for = {"layer": "it replaces gradients"}

    def update(self, read: Read) -> Result:
        return Result(torch.ones_like(read.losses), directions=[each.sum(0) / 2 for each in read.gradients])


def expected_of(net: Net, x: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Return what the parameters of the trunk and of the heads get in a step of `InverseNorm`."""
    losses = losses_of(net.plain(x))
    rows = rows_of(losses, list(net.trunk.parameters()))
    of_heads = torch.autograd.grad(sum(losses), list(net.heads.parameters()))
    return weighted(formula(gramian_of(rows)), rows), list(of_heads)


def gradients_of(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters()]


class Function(nn.Module):
    """Parameters, and what is computed of them and the inputs."""

    def __init__(self, function: Callable[..., Any], **parameters: Any) -> None:
        super().__init__()
        self.function = function
        for name, each in parameters.items():
            if isinstance(each, nn.Module):
                self.add_module(name, each)
            else:
                self.register_parameter(name, nn.Parameter(each))

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


def mlp(width: int = 8, bias: bool = True, *more: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, width, bias), nn.Tanh(), *more, nn.Linear(width, width, bias), nn.ReLU(inplace=True)
    )


def conv(dimensions: int, channels: int, **options: Any) -> nn.Module:
    cls = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    return nn.Sequential(cls(2, channels, 3, **options), nn.Tanh(), cls(channels, channels, 1), nn.Softplus())


def uniform(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, dtype=dtype) - 0.3


class Lost(torch.autograd.Function):
    """The sum, of which the second term gets no gradient."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Value(torch.autograd.Function):
    """Another value, with the gradient as it is."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Plus(nn.Module):
    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.shift = shift

    def __deepcopy__(self, memo: Any) -> "Plus":
        return Plus(self.shift.detach().clone().requires_grad_())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class Skipping(nn.Module):
    """Layers, of which each call leaves out some."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.skipped = -1

    def forward(self, x: Tensor) -> Tensor:
        for k, layer in enumerate(self.layers):
            x = x if k == self.skipped else x + layer(x).tanh()
        return x


class Checkpointed(nn.Module):
    def __init__(self, part: nn.Module, reentrant: bool = False) -> None:
        super().__init__()
        self.part, self.reentrant, self.runs = part, reentrant, 0

    @classmethod
    def of(cls, net: Net) -> Net:
        new = copy.copy(net)
        new.__dict__["_modules"] = dict(net._modules)
        new.trunk = cls(net.trunk)
        return new

    def _run(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.part(x)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self._run, x, use_reentrant=self.reentrant)


class Siamese(Net):
    """Calls the fork twice, before any head."""

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        first, second = self.fork(self.trunk(x)), self.fork(self.trunk(x.flip(-1)))
        return [head(joined([a, b])) for head, a, b in zip(self.heads, first, second, strict=True)]

    def plain(self, x: Tensor) -> Sequence[Tensor]:
        first, second = self.trunk(x), self.trunk(x.flip(-1))
        return [head(joined([first, second])) for head in self.heads]


class Picks(Net):
    """Each head sees some of the features."""

    which: Sequence[Sequence[str]] = ()
    twice = False

    def outputs(self, features: Any, fork: Callable[[Any], Aliases]) -> Sequence[Tensor]:
        aliases = [fork(features)]
        if self.twice:
            aliases.append(fork({k: z.sin() for k, z in features.items()}))
        return [head(sum(alias[i][k] for alias in aliases for k in self.which[i])) for i, head in enumerate(self.heads)]


def compiled(net: Net) -> Net:
    """Return a network that shares all modules, with a compiled trunk."""
    new = copy.copy(net)
    new.__dict__["_modules"] = dict(net._modules)
    new.trunk = torch.compile(net.trunk, backend="aot_eager")
    return new


def lstm() -> nn.Module:
    return Function(lambda self, x: self.lstm(x)[0], lstm=nn.LSTM(4, 5, batch_first=True))


def frozen() -> nn.Module:
    net = mlp()
    net[0].requires_grad_(False)
    return net


def frozen_bias() -> nn.Module:
    net = mlp()
    net[0].bias.requires_grad = net[2].weight.requires_grad = False
    return net


def shared_bias() -> nn.Module:
    net = mlp()
    net[2].bias = net[0].bias
    return net


def tied() -> nn.Module:
    net = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8), nn.Tanh())
    net[1].weight = net[0].weight
    return net


IDS = "ids"
# The trunk, and the shape of the inputs.
TRUNKS: dict[str, tuple[Callable[[], nn.Module], Sequence[Any]]] = {
    "few rows": (lambda: mlp(16), (2, 16)),
    "many rows": (lambda: mlp(4), (40, 4)),
    "no bias": (lambda: mlp(16, False), (2, 16)),
    "no bias, many rows": (lambda: mlp(4, False), (40, 4)),
    "sequence": (lambda: mlp(16), (2, 3, 16)),
    "layer norm": (lambda: mlp(16, True, nn.LayerNorm(16)), (2, 16)),
    "batch norm": (lambda: mlp(8, True, nn.BatchNorm1d(8)), (5, 8)),
    "dropout": (lambda: mlp(8, True, nn.Dropout(0.3)), (5, 8)),
    "conv1d": (lambda: conv(1, 8, stride=2, padding=1), (2, 2, 5)),
    "conv2d": (lambda: conv(2, 16, stride=2, dilation=2), (1, 2, 6, 6)),
    "conv2d, many positions": (lambda: conv(2, 3, padding=1), (3, 2, 8, 8)),
    "conv3d": (lambda: conv(3, 16, stride=(2, 1, 3), padding=(1, 0, 1)), (1, 2, 3, 3, 4)),
    "grouped": (lambda: conv(2, 32, groups=2, bias=False), (1, 2, 4, 4)),
    "circular": (lambda: conv(2, 16, padding=1, padding_mode="circular"), (1, 2, 3, 3)),
    "same": (lambda: nn.Sequential(nn.Conv2d(2, 16, 2, padding="same"), nn.Tanh()), (1, 2, 3, 3)),
    "unbatched conv": (lambda: nn.Sequential(nn.Conv2d(2, 16, 2), nn.Tanh()), (2, 3, 3)),
    "channels last": (lambda: conv(2, 16).to(memory_format=torch.channels_last), (1, 2, 4, 4)),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(2, 8, 3), nn.Tanh()), (1, 2, 2, 2)),
    "embedding": (lambda: nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4), nn.Tanh()), (IDS, 3, 2)),
    "embedding bag": (lambda: nn.Sequential(nn.EmbeddingBag(8, 4), nn.Linear(4, 4), nn.Tanh()), (IDS, 3, 2)),
    "sparse": (lambda: nn.Sequential(nn.Embedding(8, 4, sparse=True), nn.Linear(4, 4), nn.Tanh()), (IDS, 3, 2)),
    "embedding tied to a layer": (tied, (IDS, 3, 2)),
    "attention": (lambda: Function(lambda self, x: self.a(x, x, x)[0], a=nn.MultiheadAttention(8, 2)), (2, 3, 8)),
    "transformer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.2, batch_first=True), (2, 3, 8)),
    "lstm": (lstm, (2, 3, 4)),
    "applied twice": (lambda: Function(lambda self, x: self.a(self.a(x).tanh()), a=nn.Linear(16, 16)), (2, 16)),
    "applied twice, many rows": (
        lambda: Function(lambda self, x: self.a(self.a(x).tanh()), a=nn.Linear(4, 4)),
        (40, 4),
    ),
    "conv applied twice": (
        lambda: Function(lambda self, x: self.a(self.a(x).tanh()), a=nn.Conv1d(8, 8, 3, padding=1)),
        (1, 8, 3),
    ),
    "weight used otherwise too": (
        lambda: Function(lambda self, x: F.linear(x, self.w) + self.w.sum(), w=uniform(16, 16)),
        (2, 16),
    ),
    "bias made of the weight": (
        lambda: Function(lambda self, x: F.linear(x, self.w, self.w.sin().sum(1)), w=uniform(16, 16)),
        (2, 16),
    ),
    "bias made by another layer": (
        lambda: Function(
            lambda self, x: F.linear(x, self.w, F.linear(x[:1], self.v)[0]).tanh(), w=uniform(16, 16), v=uniform(16, 16)
        ),
        (2, 16),
    ),
    "bias made by a layer that is used otherwise too": (
        lambda: Function(
            lambda self, x: F.linear(F.linear(x, self.v), self.w, F.linear(x[:1], self.v)[0]).tanh(),
            w=uniform(16, 16),
            v=uniform(16, 16),
        ),
        (2, 16),
    ),
    "weight and its transpose": (
        lambda: Function(lambda self, x: F.linear(F.linear(x, self.w).tanh(), self.w.T), w=uniform(16, 16)),
        (2, 16),
    ),
    "product with a matrix": (lambda: Function(lambda self, x: (x @ self.w).tanh(), w=uniform(16, 16)), (2, 16)),
    "product of parameters": (
        lambda: Function(lambda self, x: F.linear(x, F.linear(self.v, self.w)), w=uniform(8, 8), v=uniform(8, 8)),
        (2, 8),
    ),
    "scalar": (lambda: Function(lambda self, x: self.t * self.a(x), a=nn.Linear(8, 8), t=uniform()), (2, 8)),
    "two scalars": (lambda: Function(lambda self, x: (self.t * x + self.s).exp(), t=uniform(), s=uniform()), (2, 8)),
    "one scalar": (lambda: Function(lambda self, x: (self.t * x).exp(), t=uniform()), (2, 8)),
    "nothing in a parameter": (
        lambda: Function(lambda self, x: self.a(x) + self.t.sum(), a=nn.Linear(8, 8), t=uniform(0)),
        (2, 8),
    ),
    "weight norm": (lambda: nn.Sequential(weight_norm(nn.Linear(8, 8)), nn.Tanh()), (2, 8)),
    "shared bias": (shared_bias, (2, 8)),
    "bias of one number": (
        lambda: Function(lambda self, x: torch.addmm(self.b, x, self.w.t()).tanh(), w=uniform(16, 16), b=uniform(1)),
        (2, 16),
    ),
    "bias of a matrix": (
        lambda: Function(
            lambda self, x: torch.addmm(self.b, x, self.w.t()).tanh(), w=uniform(16, 16), b=uniform(2, 16)
        ),
        (2, 16),
    ),
    "scaled product": (
        lambda: Function(
            lambda self, x: torch.addmm(self.b, x, self.w.t(), beta=2, alpha=3).tanh(), w=uniform(16, 16), b=uniform(16)
        ),
        (2, 16),
    ),
    "complex": (
        lambda: Function(
            lambda self, x: F.linear(x.to(self.w.dtype), self.w), w=torch.complex(uniform(16, 16), uniform(16, 16))
        ),
        (2, 16),
    ),
    "made complex": (
        lambda: Function(
            lambda self, x: F.linear(torch.complex(x, x.sin()), self.w.to(torch.complex128)), w=uniform(16, 16)
        ),
        (2, 16),
    ),
    "a frozen layer": (frozen, (2, 8)),
    "a frozen bias, a frozen weight": (frozen_bias, (2, 8)),
    "gradient lost on the way": (
        lambda: Function(lambda self, x: Lost.apply(self.a(x), self.a(x * 2)).tanh(), a=nn.Linear(16, 16)),
        (2, 16),
    ),
    "sparse inputs": (
        lambda: Function(lambda self, x: torch.mm(x.to_sparse(), self.w.t()).tanh(), w=uniform(16, 16)),
        (2, 16),
    ),
    "sparse inputs, with a bias": (
        lambda: Function(
            lambda self, x: F.linear(x.to_sparse_csr(), self.w, self.b).tanh(), w=uniform(16, 16), b=uniform(16)
        ),
        (2, 16),
    ),
    "checkpointed": (lambda: Checkpointed(mlp(16)), (2, 16)),
    "checkpointed dropout": (lambda: Checkpointed(mlp(16, True, nn.Dropout(0.3))), (2, 16)),
    "checkpointed attention": (
        lambda: Checkpointed(nn.TransformerEncoderLayer(8, 2, 16, 0.2, batch_first=True)),
        (2, 3, 8),
    ),
    "checkpointed part": (lambda: nn.Sequential(nn.Linear(8, 8), Checkpointed(mlp(8)), nn.Linear(8, 8)), (2, 8)),
    "two tensors": (
        lambda: Function(lambda self, x: {"a": self.a(x), "b": (self.a(x * 2), x)}, a=nn.Linear(8, 8)),
        (2, 8),
    ),
    "one tensor twice": (lambda: Function(lambda self, x: [z := self.a(x), z], a=nn.Linear(8, 8)), (2, 8)),
    "outputs of one node": (lambda: Function(lambda self, x: self.a(x).chunk(2, -1), a=nn.Linear(8, 8)), (2, 8)),
    "complex features": (
        lambda: Function(lambda self, x: torch.complex(self.a(x), self.a(x).sin()), a=nn.Linear(8, 8)),
        (2, 8),
    ),
}


def inputs_of(shape: Sequence[Any]) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    if shape[0] == IDS:
        return torch.randint(8, shape[1:], generator=generator)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def build(case: str, num_tasks: int = TASKS, batched: bool = False) -> tuple[Net, Tensor]:
    torch.manual_seed(1)
    make, shape = TRUNKS[case]
    x = inputs_of(shape)
    return Net(make(), x, num_tasks, batched), x


@pytest.mark.parametrize("num_tasks", others_slow([3, 5], 3))
@pytest.mark.parametrize("case", TRUNKS)
def test_the_trunks_gradient_is_the_combination(case: str, num_tasks: int, gates: list[bool]) -> None:
    net, x = build(case, num_tasks)
    balancer = InverseNorm(net.fork, net.trunk)
    for _ in range(2):
        check(net, x, balancer)
    assert gates == [True] * 2


def test_layers_are_looked_for_where_the_last_step_is_no_guide(
    asked: list[ghosts.Layer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trunk whose gradients autograd forms all is not searched again, until its graph or its batch is another."""
    searched: list[int] = []

    def search(between: Between, is_chosen: Callable[[ghosts.Layer], bool]) -> Any:
        searched.append(len(between.nodes))
        return ghosts.layers_between(between, is_chosen)

    monkeypatch.setattr(task_gradients, "layers_between", search)
    net, _ = build("few rows")
    net.trunk = net.trunk.insert(1, nn.Linear(16, 16).double())
    balancer = InverseNorm(net.fork, net.trunk)
    many, few = torch.randn(200, 16, dtype=torch.float64), torch.randn(2, 16, dtype=torch.float64)

    def searches(x: Tensor) -> int:
        before = len(searched)
        check(net, x, balancer)
        return len(searched) - before

    assert [searches(many) for _ in range(3)] == [1, 0, 0]
    assert not asked
    assert [searches(few) for _ in range(2)] == [1, 1]
    assert asked
    assert [searches(many) for _ in range(2)] == [1, 0]
    balancer.exact = True
    assert [searches(many) for _ in range(2)] == [1, 0]
    balancer.exact = False
    net.trunk.append(nn.Tanh())
    assert [searches(many) for _ in range(2)] == [1, 0]


@pytest.mark.parametrize(
    "case", ["few rows", "many rows", "conv2d", "sparse", "lstm", "complex", "scalar", "attention"]
)
def test_exact_forms_the_gradients(case: str, asked: list[ghosts.Layer], gates: list[bool]) -> None:
    net, x = build(case)
    check(net, x, InverseNorm(net.fork, net.trunk, exact=True))
    assert gates == [True]
    assert not asked


@pytest.mark.parametrize("method", [MoCo, DBMTL])
def test_inputs_get_the_sum_where_gradients_are_replaced_and_tasks_left_out(
    method: type[GradientBalancer], gates: list[bool]
) -> None:
    net, x = build("few rows")
    balancer = method(net.fork, net.trunk, tasks=["a", "b", "c"])
    inputs = x.clone().requires_grad_()
    losses = losses_of(net.plain(inputs))
    first, third = losses[0], losses[2]
    [expected] = torch.autograd.grad(first.log() + third.log() if method is DBMTL else first + third, inputs)
    ours = losses_of(net(inputs))
    balancer({"a": ours[0], "c": ours[2]}).backward()
    close_to(inputs.grad, expected)
    assert gates == [True]


@pytest.mark.parametrize("method", others_slow([MoCo, DBMTL], MoCo))
@pytest.mark.parametrize("case", [case for case in TRUNKS if case != "sparse"])
def test_tracked_gradients_are_those_without_a_fork(
    case: str, method: type[GradientBalancer], gates: list[bool]
) -> None:
    one, x = build(case)
    other, _ = build(case)
    balancer, without = method(one.fork, one.trunk), method(None, other.trunk, tasks=TASKS)
    for scale in (1.0, 8.0, 1.0):
        one.zero_grad()
        other.zero_grad()
        torch.manual_seed(5)
        (scale * balancer(losses_of(one(x)))).backward()
        torch.manual_seed(5)
        (scale * without(losses_of(other.plain(x)))).backward()
        close_to(balancer.weights, without.weights)
        for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None)
            if ours.grad is not None:
                close_to(dense(ours.grad), dense(theirs.grad))
    assert gates == [True] * 3
    close_to(dict(balancer.state_dict()), dict(without.state_dict()))


@pytest.mark.parametrize("batched", [False, True], ids=["separate", "batched"])
@pytest.mark.parametrize("num_tasks", [1, 2, 4, 12])
@pytest.mark.parametrize("case", ["few rows", "many rows", "conv2d", "layer norm"])
def test_any_number_of_tasks(case: str, num_tasks: int, batched: bool, gates: list[bool]) -> None:
    net, x = build(case, num_tasks, batched)
    check(net, x, InverseNorm(net.fork, net.trunk))
    assert gates == [True]


@pytest.mark.parametrize("method", [InverseNorm, MoCo])
def test_parameters_are_given_as_a_list_or_a_generator(method: type[GradientBalancer], gates: list[bool]) -> None:
    found = []
    for give in (lambda net: net, lambda net: list(net.parameters())[::-1], lambda net: net.parameters()):
        net, x = build("few rows")
        balancer = method(net.fork, give(net.trunk))
        balancer(losses_of(net(x))).backward()
        found.append([balancer.weights, *[p.grad for p in net.parameters()]])
    close_to(found[1], found[0])
    close_to(found[2], found[0])
    assert gates == [True] * 3


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("num_tasks", [2, 5])
def test_a_sparse_gradient_stays_sparse(num_tasks: int, exact: bool) -> None:
    net, x = build("sparse", num_tasks)
    balancer, weight = InverseNorm(net.fork, net.trunk, exact=exact), net.trunk[0].weight
    optimizers = [torch.optim.SparseAdam([weight]), torch.optim.SGD(list(net.trunk[1:].parameters()), 0.1)]
    for _ in range(2):
        check(net, x, balancer)
        assert weight.grad.is_sparse
        assert weight.grad.coalesce().indices().shape[1] == len(x.unique())
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("method", [MoCo, DBMTL])
def test_tracked_gradients_cant_be_sparse(method: type[GradientBalancer]) -> None:
    net, x = build("sparse")
    with pytest.raises(TypeError, match="sparse"):
        method(net.fork, net.trunk)(losses_of(net(x))).backward()


@pytest.mark.parametrize("case", ["few rows", "scalar", "complex", "conv2d", "two tensors"])
def test_directions_replace_gradients(case: str, gates: list[bool]) -> None:
    net, x = build(case)
    shared, heads = list(net.trunk.parameters()), list(net.heads.parameters())
    expected = torch.autograd.grad(sum(losses_of(net.plain(x))), shared + heads)
    (8 * Halves(net.fork, net.trunk)(losses_of(net(x)))).backward()
    close_to([p.grad for p in shared], [4 * each for each in expected[: len(shared)]])
    close_to([p.grad for p in heads], [8 * each for each in expected[len(shared) :]])
    assert gates == [True]


def test_inputs_and_other_leaves_get_the_combination(gates: list[bool]) -> None:
    for trunk in (lambda: mlp(16), lambda: mlp(4, True, nn.LayerNorm(4))):
        torch.manual_seed(1)
        net = Net(trunk(), x := torch.randn(3, trunk()[0].in_features, dtype=torch.float64))
        shift = torch.randn(x.shape[1], dtype=torch.float64, requires_grad=True)
        net.trunk = nn.Sequential(Plus(shift), *net.trunk)
        check(net, x.requires_grad_(), InverseNorm(net.fork, net.trunk), [x, shift])
        check(net, x, InverseNorm(net.fork, net.trunk, exact=True), [x, shift])
    one, other = (copy.deepcopy(net) for _ in range(2))
    found = []
    for each, balancer in ((one, MoCo(one.fork, one.trunk)), (other, MoCo(None, other.trunk, tasks=TASKS))):
        own = x.detach().clone().requires_grad_()
        balancer(losses_of(each(own))).backward()
        found.append([own.grad, each.trunk[0].shift.grad, *[p.grad for p in each.parameters()]])
    close_to(found[0][2:], found[1][2:])
    rows = rows_of(losses_of(other.plain(own)), [own, other.trunk[0].shift])
    close_to(found[0][:2], weighted(torch.ones(TASKS, dtype=torch.float64), rows))


def test_a_part_of_the_trunk_is_measured_the_old_way(gates: list[bool]) -> None:
    net, x = build("few rows")
    shared = list(net.trunk.parameters())
    losses = losses_of(net.plain(x))
    rows = rows_of(losses, shared)
    weights = formula(gramian_of([row[2:] for row in rows]))
    balancer = InverseNorm(net.fork, net.trunk[2])
    balancer(losses_of(net(x))).backward()
    close_to(balancer.weights, weights)
    close_to([p.grad for p in shared], weighted(weights, rows))
    assert gates == [False]
    with pytest.raises(ForkError, match="all parameters"):
        MoCo(net.fork, net.trunk[2])(losses_of(net(x))).backward()


def test_a_parameter_that_is_not_used() -> None:
    net, x = build("few rows")
    shared, of_heads = expected_of(net, x)
    net.trunk.spare = nn.Linear(2, 2)
    net.trunk.forward = lambda x: net.trunk[3](net.trunk[2](net.trunk[1](net.trunk[0](x))))
    with pytest.raises(ForkError, match="features do not depend on"):
        InverseNorm(net.fork, list(net.trunk.parameters()))(losses_of(net(x))).backward()
    InverseNorm(net.fork, net.trunk)(losses_of(net(x))).backward()
    spare = list(net.trunk.spare.parameters())
    assert all(parameter.grad is None for parameter in spare)
    close_to(gradients_of(net.trunk)[: -len(spare)], shared)
    close_to(gradients_of(net.heads), of_heads)


def test_layers_that_are_left_out_in_some_steps(gates: list[bool]) -> None:
    torch.manual_seed(1)
    x = torch.randn(3, 8, dtype=torch.float64)
    net = Net(Skipping(), x)
    balancer = InverseNorm(net.fork, net.trunk)
    for net.trunk.skipped in (0, -1, 1, 0, -1, 2):
        check(net, x, balancer)
    assert gates == [True] * 6
    one, other = copy.deepcopy(net), copy.deepcopy(net)
    balancer, without = MoCo(one.fork, one.trunk), MoCo(None, other.trunk, tasks=TASKS)
    for skipped in (1, -1, 1, 0, -1):
        one.trunk.skipped = other.trunk.skipped = skipped
        one.zero_grad()
        other.zero_grad()
        balancer(losses_of(one(x))).backward()
        without(losses_of(other.plain(x))).backward()
        close_to(balancer.weights, without.weights)
        for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None)
            if ours.grad is not None:
                close_to(ours.grad, theirs.grad)


@pytest.mark.parametrize("case", ["few rows", "two tensors"])
def test_a_fork_that_is_called_twice(case: str) -> None:
    torch.manual_seed(1)
    make, shape = TRUNKS[case]
    x = inputs_of(shape)
    net = Siamese(make(), x)
    with torch.no_grad():
        width = joined([net.trunk(x), net.trunk(x)]).shape[1]
    net.heads = nn.ModuleList(nn.Linear(width, 2) for _ in range(TASKS)).double()
    check(net, x, InverseNorm(net.fork, net.trunk))
    balancer = MoCo(net.fork, net.trunk)
    with pytest.raises(ForkError, match="calls the fork once"):
        balancer(losses_of(net(x))).backward()


@pytest.mark.parametrize("method", [InverseNorm, MoCo], ids=["weights", "directions"])
@pytest.mark.parametrize("batched", [False, True], ids=["separate", "batched"])
def test_an_earlier_forward_pass_that_is_still_held(
    batched: bool, method: type[GradientBalancer], gates: list[bool]
) -> None:
    """Validation without no_grad: its outputs keep features alive that no loss of the next step comes from."""
    one, x = build("few rows", batched=batched)
    other, _ = build("few rows", batched=batched)
    balancer, expected = method(one.fork, one.trunk), method(other.fork, other.trunk)
    held = None
    for _ in range(3):
        one.zero_grad()
        other.zero_grad()
        balancer(losses_of(one(x))).backward()
        expected(losses_of(other(x))).backward()
        held = losses_of(one(2 * x))
        close_to(gradients_of(one), gradients_of(other))
    assert held is not None
    assert balancer.weights.equal(expected.weights)


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("which", ["a b c", "ab bc c", "a a a", "ab a ab", "a c c"])
def test_features_that_some_heads_dont_use(which: str, twice: bool, gates: list[bool]) -> None:
    torch.manual_seed(1)
    layers = {k: nn.Linear(8, 8) for k in "abc"}
    layers["c"].weight = layers["a"].weight
    trunk = Function(lambda self, x: {k: getattr(self, k)(x).tanh() for k in "abc"}, **layers)
    x = torch.randn(2, 8, dtype=torch.float64)
    net = Picks(trunk, x)
    net.heads = nn.ModuleList(nn.Linear(8, 2) for _ in range(TASKS)).double()
    net.which, net.twice = which.split(), twice
    check(net, x, InverseNorm(net.fork, net.trunk))
    assert gates == [True] * (1 + twice)
    if not twice:
        one, other = copy.deepcopy(net), copy.deepcopy(net)
        for each, balancer in ((one, MoCo(one.fork, one.trunk)), (other, MoCo(None, other.trunk, tasks=TASKS))):
            balancer(losses_of((each if each is one else each.plain)(x))).backward()
        close_to([p.grad for p in one.heads.parameters()], [p.grad for p in other.heads.parameters()])
        for ours, theirs in zip(one.trunk.parameters(), other.trunk.parameters(), strict=True):
            close_to(ours.grad, torch.zeros_like(ours) if theirs.grad is None else theirs.grad)


def test_features_that_are_a_leaf(gates: list[bool]) -> None:
    queries = nn.Parameter(torch.randn(2, 8, dtype=torch.float64))
    fork, heads = Fork(2), nn.ModuleList(nn.Linear(8, 2) for _ in range(2)).double()
    losses = losses_of([head(queries) for head in heads])
    rows = rows_of(losses, [queries])
    balancer = InverseNorm(fork, queries)
    balancer(losses_of([head(z) for head, z in zip(heads, fork(queries), strict=True)])).backward()
    close_to(balancer.weights, formula(gramian_of(rows)))
    close_to([queries.grad], weighted(balancer.weights, rows))
    assert gates == [True]


class Queries(nn.Module):
    """Two tensors of features: one has a layer upstream of it, the other is a parameter that the layer reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.queries = nn.Linear(8, 8), nn.Parameter(torch.randn(2, 8))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.layer(x * self.queries).tanh(), self.queries]


@pytest.mark.parametrize("method", [InverseNorm, MoCo, DBMTL], ids=lambda method: method.name)
def test_a_leaf_among_the_features(method: type[GradientBalancer], gates: list[bool]) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 8, dtype=torch.float64)
    one = Net(Queries(), x)
    other = copy.deepcopy(one)
    balancer, without = method(one.fork, one.trunk), method(None, other.trunk, tasks=TASKS)
    for _ in range(3):
        one.zero_grad()
        other.zero_grad()
        balancer(losses_of(one(x))).backward()
        without(losses_of(other.plain(x))).backward()
        close_to(gradients_of(one.trunk), gradients_of(other.trunk))
        close_to(balancer.weights, without.weights)
    assert gates == [True] * 3


def test_features_without_rows(gates: list[bool]) -> None:
    for case in ("few rows", "conv2d", "layer norm"):
        net, x = build(case)
        net.double()
        for batched in (False, True):
            net = Net(net.trunk, x, batched=batched)
            balancer = MGDA(net.fork, net.trunk)
            balancer([output.sum() for output in net(x[:0])]).backward()
            assert all(not p.grad.any() for p in net.trunk.parameters())
            del balancer


NAMES = ["a", "b", "c", "d"]


@pytest.mark.parametrize("batched", [False, True], ids=["separate", "batched"])
@pytest.mark.parametrize("case", ["few rows", "many rows", "conv2d", "sparse", "layer norm"])
def test_tasks_that_are_left_out(case: str, batched: bool, gates: list[bool]) -> None:
    net, x = build(case, 4, batched)
    shared = list(net.trunk.parameters())
    balancer = InverseNorm(net.fork, net.trunk, tasks=NAMES)
    for given in ("abcd", "ac", "d", "bcd"):
        here = [NAMES.index(name) for name in given]
        losses = losses_of(net.plain(x))
        rows = rows_of([losses[i] for i in here], shared)
        weights = formula(gramian_of(rows))
        net.zero_grad()
        losses = losses_of(net(x))
        balancer({NAMES[i]: losses[i] for i in here}).backward()
        close_to(balancer.weights[here], weights)
        close_to([dense(p.grad) for p in shared], weighted(weights, rows))
    assert gates == [True] * 4


@pytest.mark.parametrize("method", [MoCo, DBMTL, UPGrad])
def test_tasks_that_are_left_out_are_as_without_a_fork(method: type[GradientBalancer], gates: list[bool]) -> None:
    one, x = build("layer norm", 4)
    other = copy.deepcopy(one)
    balancer, without = method(one.fork, one.trunk, tasks=NAMES), method(None, other.trunk, tasks=NAMES)
    for given in ("abcd", "ac", "d", "bcd"):
        one.zero_grad()
        other.zero_grad()
        for weigh, losses in ((balancer, losses_of(one(x))), (without, losses_of(other.plain(x)))):
            weigh({name: loss for name, loss in zip(NAMES, losses, strict=True) if name in given}).backward()
        close_to(balancer.weights, without.weights)
        close_to([p.grad for p in one.trunk.parameters()], [p.grad for p in other.trunk.parameters()])
    assert gates == [True] * 4


def test_a_loss_that_does_not_require_grad() -> None:
    net, x = build("few rows")
    losses = losses_of(net(x))
    with pytest.raises(ValueError, match="was it detached"):
        InverseNorm(net.fork, net.trunk)([*losses[:2], losses[2].detach()]).backward()


@pytest.mark.parametrize("method", [MGDA, UPGrad, MoCo])
def test_a_loss_of_zero(method: type[GradientBalancer], gates: list[bool]) -> None:
    one, x = build("few rows")
    other = copy.deepcopy(one)
    balancer, without = method(one.fork, one.trunk), method(None, other.trunk, tasks=TASKS)
    for weigh, losses in ((balancer, losses_of(one(x))), (without, losses_of(other.plain(x)))):
        weigh([losses[0], losses[1] * 0, losses[2]]).backward()
    close_to(balancer.weights, without.weights)
    close_to([p.grad for p in one.trunk.parameters()], [p.grad for p in other.trunk.parameters()])
    assert gates == [True]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("case", ["few rows", "many rows", "conv2d", "embedding", "sparse", "layer norm"])
@pytest.mark.parametrize("method", [InverseNorm, MGDA, MoCo, DBMTL])
def test_a_step_that_is_not_finite(method: type[GradientBalancer], case: str, bad: float) -> None:
    if case == "sparse" and method in (MoCo, DBMTL):
        return
    net, x = build(case)
    balancer = method(net.fork, net.trunk)
    balancer(losses_of(net(x))).backward()
    before = copy.deepcopy(balancer.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu")
    for place in ("loss", "gradient"):
        net.zero_grad()
        losses = losses_of(net(x))
        if place == "loss":
            losses[1] = losses[1] * bad
        else:
            losses[1] = losses[1] + (losses[1] - losses[1].detach()) * bad
            losses[1] = Value.apply(losses[1], losses[2].detach())
        scaler.scale(balancer(losses)).backward()
        assert all(not dense(p.grad).isfinite().all() for p in net.trunk.parameters())
        parameters = [p.detach().clone() for p in net.parameters()]
        scaler.step(optimizer)
        scaler.update()
        assert all(p.equal(old) for p, old in zip(net.parameters(), parameters, strict=True))
        for key, value in balancer.state_dict().items():
            assert value.equal(before[key]), key
    net.zero_grad()
    balancer(losses_of(net(x))).backward()
    assert all(dense(p.grad).isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("case", ["few rows", "many rows", "layer norm"])
def test_gradients_add_up(case: str) -> None:
    net, x = build(case)
    shared, of_heads = expected_of(net, x)
    balancer = InverseNorm(net.fork, net.trunk)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    balancer(losses_of(net(x))).backward()
    close_to(gradients_of(net.trunk), [1 + each for each in shared])
    balancer(losses_of(net(x))).backward()
    close_to(gradients_of(net.trunk), [1 + 2 * each for each in shared])
    close_to(gradients_of(net.heads), [1 + 2 * each for each in of_heads])


@pytest.mark.parametrize("case", ["few rows", "many rows", "layer norm", "conv2d"])
def test_gradients_can_be_changed_in_place(case: str) -> None:
    """No two of them are one tensor, nor one with the state."""
    net, x = build(case)
    for method in (InverseNorm, MoCo):
        balancer = method(net.fork, net.trunk)
        net.zero_grad()
        balancer(losses_of(net(x))).backward()
        state = copy.deepcopy(balancer.state_dict())
        before = [p.grad.clone() for p in net.parameters()]
        for k, p in enumerate(net.parameters()):
            p.grad.mul_(k)
        close_to(gradients_of(net), [k * each for k, each in enumerate(before)])
        close_to(dict(balancer.state_dict()), dict(state))
        del balancer


@pytest.mark.parametrize("batched", [False, True], ids=["separate", "batched"])
def test_a_second_pass_has_the_gradient_of_the_first(batched: bool) -> None:
    net, x = build("layer norm", batched=batched)
    shared, of_heads = expected_of(net, x)
    balancer = InverseNorm(net.fork, net.trunk)
    total = balancer(losses_of(net(x)))
    for _ in range(3):
        net.zero_grad()
        total.backward(retain_graph=True)
        close_to(gradients_of(net.trunk), shared)
        close_to(gradients_of(net.heads), of_heads)
    net.zero_grad()
    (3 * total).backward()
    close_to(gradients_of(net.trunk), [3 * each for each in shared])
    with pytest.raises(RuntimeError, match="second time"):
        total.backward()


def test_a_second_pass_of_a_method_that_replaces_gradients() -> None:
    net, x = build("layer norm")
    total = MoCo(net.fork, net.trunk)(losses_of(net(x)))
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward pass"):
        total.backward()


def test_torch_autograd_grad(gates: list[bool]) -> None:
    net, x = build("layer norm")
    shared, of_heads = expected_of(net, x)
    balancer = InverseNorm(net.fork, net.trunk)
    parameters = list(net.parameters())
    found = torch.autograd.grad(balancer(losses_of(net(x))), parameters)
    close_to(list(found), shared + of_heads)
    assert all(p.grad is None for p in parameters)
    balancer(losses_of(net(x))).backward(inputs=[parameters[0]])
    close_to(parameters[0].grad, shared[0])
    assert all(p.grad is None for p in parameters[1:])
    with pytest.raises(ForkError, match="for all parameters"):
        balancer(losses_of(net(x))).backward(inputs=[parameters[-1]])
    parameters[0].grad = None
    balancer(losses_of(net(x))).backward()
    close_to(gradients_of(net.trunk), shared)
    assert gates == [True] * 4


@pytest.mark.parametrize("case", ["few rows", "many rows", "layer norm", "embedding"])
def test_hooks_of_parameters_see_the_combination_once(case: str) -> None:
    net, x = build(case)
    shared, _ = expected_of(net, x)
    seen: list[Tensor] = []
    after: list[Tensor] = []
    optimizers = {p: torch.optim.SGD([p], 0.1) for p in net.parameters()}
    before = [p.detach().clone() for p in net.trunk.parameters()]

    def halve(gradient: Tensor) -> Tensor:
        seen.append(gradient)
        return gradient / 2

    def step(p: Tensor) -> None:
        after.append(p.grad.clone())
        optimizers[p].step()
        p.grad = None

    multi: list[Sequence[Tensor]] = []
    torch.autograd.graph.register_multi_grad_hook(list(net.trunk.parameters()), lambda each: multi.append(each))
    for p in net.trunk.parameters():
        p.register_hook(halve)
        p.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
    for p in net.parameters():
        p.register_post_accumulate_grad_hook(step)
    InverseNorm(net.fork, net.trunk)(losses_of(net(x))).backward()
    count = len(shared)
    assert len(seen) == count
    assert len(multi) == 1
    assert len(after) == len(list(net.parameters()))
    expected = [(each / 2).clamp(-0.1, 0.1) for each in shared]
    close_to([p.detach() for p in net.trunk.parameters()], [a - 0.1 * g for a, g in zip(before, expected, strict=True)])


def test_hooks_within_the_trunk_see_each_tasks_gradient() -> None:
    net, x = build("few rows")
    seen: list[Tensor] = []
    net.trunk[1].register_forward_hook(lambda *given: given[-1].register_hook(seen.append) and None)
    called: list[Any] = []
    net.trunk[0].register_full_backward_hook(lambda *given: called.append(given) and None)
    shared, _ = expected_of(net, x)
    seen.clear()
    called.clear()
    balancer = InverseNorm(net.fork, net.trunk)
    balancer(losses_of(net(x))).backward()
    assert len(seen) == len(called) == TASKS
    close_to(gradients_of(net.trunk), shared)
    hidden = net.trunk(x)
    losses = losses_of([head(z) for head, z in zip(net.heads, net.fork(hidden), strict=True)])
    with pytest.raises(RuntimeError, match="to not have been used"):
        torch.autograd.grad(losses[0], hidden)


def test_modes(gates: list[bool]) -> None:
    net, x = build("dropout")
    balancer = InverseNorm(net.fork, net.trunk)
    net.eval()
    check(net, x, balancer)
    with torch.no_grad():
        losses_of(net(x))
    with torch.inference_mode():
        losses_of(net(x))
    balancer.eval()
    shared, _ = expected_of(net, x)
    net.zero_grad()
    balancer(losses_of(net(x))).backward()
    close_to(gradients_of(net.trunk), shared)
    assert gates == [True] * 2


def test_update_every(gates: list[bool]) -> None:
    net, x = build("layer norm")
    balancer, weights = InverseNorm(net.fork, net.trunk, update_every=2), torch.tensor([])
    for step in range(4):
        y = x + step
        rows = rows_of(losses_of(net.plain(y)), list(net.trunk.parameters()))
        weights = formula(gramian_of(rows)) if step % 2 == 0 else weights
        net.zero_grad()
        balancer(losses_of(net(y))).backward()
        close_to(balancer.weights, weights)
        close_to(gradients_of(net.trunk), weighted(weights, rows))
    assert gates == [True] * 4


@pytest.mark.parametrize("case", ["few rows", "layer norm", "checkpointed"])
def test_held(case: str) -> None:
    net, x = build(case)
    balancer = InverseNorm(net.fork, net.trunk)
    balancer(losses_of(net(x))).backward()
    weights = balancer.weights
    y = x + 1
    rows = rows_of(losses_of(net.plain(y)), list(net.trunk.parameters()))
    new = formula(gramian_of(rows))
    losses = losses_of(net.plain(y))
    expected = torch.autograd.grad(
        sum(w * loss for w, loss in zip(weights, losses, strict=True)), list(net.parameters())
    )
    with balancer.held():
        for _ in range(3):
            net.zero_grad()
            balancer(losses_of(net(y))).backward()
            close_to(gradients_of(net), list(expected))
    close_to(balancer.weights, new)
    net.zero_grad()
    balancer(losses_of(net(y))).backward()
    close_to(gradients_of(net.trunk), weighted(new, rows))


@pytest.mark.parametrize("batched", [False, True], ids=["separate", "batched"])
@pytest.mark.parametrize(
    "case", ["few rows", "conv2d", "two tensors", "embedding", "sparse", "attention", "checkpointed"]
)
def test_a_fork_that_is_read_is_an_identity_without_the_balancer(case: str, batched: bool, gates: list[bool]) -> None:
    net, x = build(case, batched=batched)
    balancer = InverseNorm(net.fork, net.trunk)
    parameters = list(net.parameters())
    for weigh in (sum, EqualWeighting(TASKS)):
        expected = torch.autograd.grad(sum(losses_of(net.plain(x))), parameters)
        found = torch.autograd.grad(weigh(losses_of(net(x))), parameters)
        close_to([dense(each) for each in found], [dense(each) for each in expected])
    if case in ("sparse", "checkpointed"):
        return

    def penalty(outputs: Sequence[Tensor]) -> list[Tensor]:
        first = torch.autograd.grad(sum(losses_of(outputs)), parameters, create_graph=True)
        total = sum(each.square().sum() for each in first)
        return list(torch.autograd.grad(total, parameters))

    close_to(penalty(net(x)), penalty(net.plain(x)))
    check(net, x, balancer)
    assert gates == [True] * len(gates)


def test_a_batched_pass_through_a_gate() -> None:
    net, x = build("few rows")
    balancer = InverseNorm(net.fork, net.trunk)
    parameters = list(net.parameters())
    found = []
    for outputs in (net(x), net.plain(x)):
        losses = torch.stack(losses_of(outputs))
        found.append(
            torch.autograd.grad(losses, parameters, torch.eye(TASKS, dtype=torch.float64), is_grads_batched=True)
        )
    close_to(*found)
    check(net, x, balancer)


def test_a_balancer_without_a_fork_measures_through_a_gate() -> None:
    net, x = build("few rows")
    reader = InverseNorm(net.fork, net.trunk)
    for each in (net, Checkpointed.of(net)):
        balancer = InverseNorm(None, net.trunk, tasks=TASKS)
        rows = rows_of(losses_of(net.plain(x)), list(net.trunk.parameters()))
        weights = formula(gramian_of(rows))
        net.zero_grad()
        balancer(losses_of(each(x))).backward()
        close_to(balancer.weights, weights)
        close_to(gradients_of(net.trunk), weighted(weights, rows))
        check(net, x, reader)


@pytest.mark.parametrize(
    ("case", "runs"),
    [("checkpointed", 2), ("checkpointed part", 2), ("checkpointed dropout", 3), ("checkpointed attention", 3 + TASKS)],
)
def test_checkpoints(case: str, runs: int, gates: list[bool]) -> None:
    """The trunk runs again once for all tasks; where random numbers are drawn, it may be tried in vain before."""
    net, x = build(case)
    balancer = InverseNorm(net.fork, net.trunk)
    checked = next(module for module in net.modules() if isinstance(module, Checkpointed))
    for _ in range(3):
        check(net, x, balancer)
    for _ in range(3):
        checked.runs = 0
        torch.manual_seed(5)
        balancer(losses_of(net(x))).backward()
        assert checked.runs == runs
    assert gates == [True] * 6


def test_a_checkpoint_around_everything(gates: list[bool]) -> None:
    net, x = build("few rows")
    shared, of_heads = expected_of(net, x)
    balancer = InverseNorm(net.fork, net.trunk)
    for _ in range(2):
        net.zero_grad()
        balancer(losses_of(checkpoint(net, x, use_reentrant=False))).backward()
        close_to(gradients_of(net.trunk), shared)
        close_to(gradients_of(net.heads), of_heads)


def test_a_checkpoint_that_hides_parameters() -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    net = Net(Checkpointed(mlp(8), True), x)
    with pytest.raises(ForkError, match="use_reentrant"):
        InverseNorm(net.fork, net.trunk)(losses_of(net(x))).backward()


@pytest.mark.parametrize("case", ["few rows", "layer norm", "conv2d"])
def test_saved_tensors_on_the_host(case: str, gates: list[bool]) -> None:
    net, x = build(case)
    shared, of_heads = expected_of(net, x)
    balancer = InverseNorm(net.fork, net.trunk)
    for offloads in (True, False, True):
        net.zero_grad()
        with torch.autograd.graph.save_on_cpu() if offloads else nullcontext():
            total = balancer(losses_of(net(x)))
        total.backward()
        close_to(gradients_of(net.trunk), shared)
        close_to(gradients_of(net.heads), of_heads)
    assert gates == [True] * 3


def test_anomaly_mode() -> None:
    net, x = build("layer norm")
    balancer = InverseNorm(net.fork, net.trunk)
    with torch.autograd.detect_anomaly(check_nan=True):
        check(net, x, balancer)


def test_copies() -> None:
    net, x = build("layer norm")
    pair = nn.ModuleDict({"net": net, "balancer": InverseNorm(net.fork, net.trunk)})
    for other in (copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))):
        for each in (pair, other):
            check(each["net"], x, each["balancer"])


def test_functional_transforms() -> None:
    net, x = build("few rows")
    balancer = InverseNorm(net.fork, net.trunk)
    parameters = dict(net.named_parameters())

    def loss(given: dict[str, Tensor], x: Tensor) -> Tensor:
        return sum(losses_of(torch.func.functional_call(net, given, (x,))))

    found = torch.func.grad(loss)(parameters, x)
    expected = torch.autograd.grad(sum(losses_of(net.plain(x))), list(parameters.values()))
    close_to(list(found.values()), list(expected))
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x.unsqueeze(1))
    close_to([part.mean(0) for part in each.values()], list(expected))
    check(net, x, balancer)


@pytest.mark.slow
def test_two_balancers_read_a_fork_the_old_way(gates: list[bool]) -> None:
    net, x = build("few rows")
    balancer, reader = InverseNorm(net.fork, net.trunk), GradNorm(net.fork, net.trunk[2])
    check(net, x, balancer)
    assert gates == []
    other = MoCo(net.fork, net.trunk)
    with pytest.raises(ForkError, match="no other balancer"):
        other(losses_of(net(x))).backward()
    del reader, other
    gc.collect()  # the exception holds one of them
    check(net, x, balancer)
    assert gates == [True]


def test_two_forks_in_series(gates: list[bool]) -> None:
    """The later fork has the earlier one upstream of it, so that the gradient of its features goes on to that."""
    torch.manual_seed(1)
    first, second, x = mlp(8).double(), mlp(8).double(), torch.randn(2, 8, dtype=torch.float64)
    one, two = Fork(2), Fork(2)
    heads = nn.ModuleList(nn.Linear(8, 2) for _ in range(3)).double()

    def losses(first_fork: Any, second_fork: Any) -> list[Tensor]:
        a, b = first_fork(first(x))
        c, d = second_fork(second(b))
        return losses_of([head(z) for head, z in zip(heads, (a, c, d), strict=True)])

    plain = losses(lambda z: (z, z), lambda z: (z, z))
    of_second = rows_of(plain[1:], list(second.parameters()))
    weights = formula(gramian_of(of_second))
    of_first = rows_of(plain, list(first.parameters()))
    of_first = [of_first[0], weighted(weights, of_first[1:])]
    outer_weights = formula(gramian_of(of_first))
    inner, outer = InverseNorm(two, second), InverseNorm(one, first)
    a, *others = losses(one, two)
    outer([a, inner(others)]).backward()
    close_to(inner.weights, weights)
    close_to(outer.weights, outer_weights)
    close_to(gradients_of(second), weighted(weights, of_second))
    close_to(gradients_of(first), weighted(outer_weights, of_first))
    assert gates == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("batched", [False, True], ids=["separate", "batched"])
@pytest.mark.parametrize("method", [InverseNorm, MoCo])
@pytest.mark.parametrize("case", ["few rows", "many rows", "layer norm", "outputs of one node"])
def test_memory_is_freed(case: str, method: type[GradientBalancer], batched: bool, gates: list[bool]) -> None:
    """A backward pass frees the activations while the loss lives; no cycle of references keeps the balancer."""
    net, x = build(case, batched=batched)
    balancer = method(net.fork, net.trunk)
    activations: list[Any] = []
    for module in net.trunk.modules():
        module.register_forward_hook(lambda *given: activations.extend(map(weakref.ref, tree_leaves(given[-1]))))
    gc.collect()
    gc.disable()
    try:
        total = balancer(losses_of(net(x)))
        total.backward()
        assert activations
        assert not any(ref() is not None for ref in activations)
        del total
        kept = weakref.ref(balancer)
        del balancer
        assert kept() is None
    finally:
        gc.enable()
    assert gates == [True]


def test_two_gates_on_a_trunk_keep_nothing_after_a_pass(gates: list[bool]) -> None:
    trunk, forks_ = mlp(16).double(), [Fork(2), Fork(2)]
    balancers = [InverseNorm(fork, trunk) for fork in forks_]
    activations: list[weakref.ref[Tensor]] = []
    for module in trunk:
        module.register_forward_hook(lambda *given: activations.append(weakref.ref(given[-1])))
    z = trunk(torch.randn(4, 16, dtype=torch.float64))
    losses = [[(i + 1) * each.square().mean() for i, each in enumerate(fork(z))] for fork in forks_]
    del z
    total = sum(balancer(each) for balancer, each in zip(balancers, losses, strict=True))
    del losses
    total.backward()
    assert gates == [True, True]
    assert activations
    assert not any(ref() is not None for ref in activations)


def test_a_pass_breaks_a_cycle_through_a_hook_of_the_trunk() -> None:
    class Holder:
        loss: Tensor

    def step() -> weakref.ref[Holder]:
        net, x = build("few rows")
        holder = Holder()

        def hooked(_: nn.Module, __: object, z: Tensor) -> None:
            z.register_hook(lambda gradient, _=holder: gradient)

        handle = net.trunk[-1].register_forward_hook(hooked)
        holder.loss = InverseNorm(net.fork, net.trunk)(losses_of(net(x)))
        handle.remove()
        holder.loss.backward()
        return weakref.ref(holder)

    kept = step()
    gc.collect()
    assert kept() is None


@pytest.mark.slow
def test_memory_does_not_grow() -> None:
    net, x = build("layer norm")
    balancer = InverseNorm(net.fork, net.trunk)
    counts = []
    for _ in range(3):
        for _ in range(2):
            losses_of(net(x))
            balancer(losses_of(net(x)))
            balancer(losses_of(net(x))).backward()
        gc.collect()
        counts.append(sum(type(each) is Tensor for each in gc.get_objects()))
    assert counts[2] <= counts[1]


@pytest.mark.parametrize("case", ["few rows", "many rows", "conv2d", "layer norm", "attention"])
def test_single_precision(case: str) -> None:
    net, x = build(case)
    other = copy.deepcopy(net).float()
    shared, _ = expected_of(net, x)
    balancer = InverseNorm(other.fork, other.trunk)
    balancer(losses_of(other(x.float()))).backward()
    for ours, exact in zip(other.trunk.parameters(), shared, strict=True):
        assert (ours.grad.double() - exact).norm() <= 1e-5 * exact.norm()


@pytest.mark.parametrize("case", ["few rows", "many rows", "conv2d", "layer norm", "sequence"])
def test_autocast(case: str, gates: list[bool]) -> None:
    net, x = build(case)
    net, x = net.float(), x.float()
    balancer = InverseNorm(net.fork, net.trunk)
    with torch.autocast("cpu", torch.bfloat16):
        plain = [loss.float() for loss in losses_of(net.plain(x))]
        total = balancer([loss.float() for loss in losses_of(net(x))])
    rows = rows_of(plain, list(net.trunk.parameters()))
    weights = formula(gramian_of(rows))
    total.backward()
    torch.testing.assert_close(balancer.weights, weights, rtol=0.03, atol=0)
    for ours, theirs in zip(gradients_of(net.trunk), weighted(weights, rows), strict=True):
        assert ours.dtype is torch.float32
        assert (ours - theirs).norm() <= 0.05 * theirs.norm()
    assert gates == [True]


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("case", ["few rows", "many rows", "dropout", "two tensors"])
def test_a_compiled_trunk(case: str, gates: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = build(case)
    net.eval()
    shared, of_heads = expected_of(net, x)
    monkeypatch.setattr(torch._functorch.config, "donated_buffer", False)
    balancer = InverseNorm(net.fork, net.trunk)
    whole = torch.compile(net, backend="aot_eager")
    for each in (compiled(net), whole):
        for _ in range(2):
            net.zero_grad()
            balancer(losses_of(each(x))).backward()
            close_to(gradients_of(net.trunk), shared)
            close_to(gradients_of(net.heads), of_heads)
    assert all(gates)


def test_an_optimizer_that_calls_a_closure() -> None:
    net, x = build("few rows")
    balancer = InverseNorm(net.fork, net.trunk)
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=4)
    values: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = balancer(losses_of(net(x)))
        total.backward()
        values.append(total.item())
        return total

    for _ in range(3):
        values.clear()
        with balancer.held():
            optimizer.step(closure)
        assert values[-1] < values[0]


@pytest.mark.parametrize("change", [lambda z: z.mul_(2), lambda z: z.relu_()])
def test_a_head_that_changes_its_features_in_place(change: Callable[[Tensor], Tensor]) -> None:
    net, x = build("no bias")
    balancer = InverseNorm(net.fork, net.trunk)
    aliases = net.fork(net.trunk(x))
    change(aliases[0])
    losses = losses_of([head(z) for head, z in zip(net.heads, aliases, strict=True)])
    with pytest.raises(ForkError, match="in place"):
        balancer(losses)


def test_features_that_come_late() -> None:
    class Late(Net):
        def outputs(self, features: Any, fork: Callable[[Any], Aliases]) -> Sequence[Tensor]:
            first = super().outputs(features, fork)
            more = fork(features + sum(output.sum() for output in first).detach())
            again = fork(features * first[0].sum())
            return [head(a) + head(b) for head, a, b in zip(self.heads, more, again, strict=True)]

    torch.manual_seed(1)
    x = torch.randn(2, 8, dtype=torch.float64)
    net = Late(mlp(8), x)
    with pytest.raises(ForkError):
        InverseNorm(net.fork, net.trunk)(losses_of(net(x))).backward()


def test_a_copy_of_a_compiled_or_shared_trunk_is_refused() -> None:
    net, x = build("few rows")
    balancer = InverseNorm(net.fork, net.trunk)
    other = copy.deepcopy(net)
    with pytest.raises(ForkError, match="copied model"):
        balancer(losses_of(other(x))).backward()


def test_a_parameter_that_is_frozen_or_replaced_meanwhile(gates: list[bool]) -> None:
    net, x = build("few rows")
    balancer = InverseNorm(net.fork, net.trunk)
    check(net, x, balancer)
    net.trunk[0].weight.requires_grad_(False)
    check(net, x, balancer)
    net.trunk[0].weight = nn.Parameter(torch.randn(16, 16, dtype=torch.float64))
    check(net, x, balancer)
    assert gates == [True] * 3


def test_threads(gates: list[bool]) -> None:
    """Networks that share a trunk are trained side by side."""
    from concurrent.futures import ThreadPoolExecutor

    def train(seed: int) -> None:
        torch.manual_seed(1)
        make, shape = TRUNKS["layer norm"]
        x = inputs_of(shape) + seed
        net = Net(make(), x)
        balancer = InverseNorm(net.fork, net.trunk)
        for _ in range(5):
            shared, _ = expected_of(net, x)
            net.zero_grad()
            balancer(losses_of(net(x))).backward()
            close_to(gradients_of(net.trunk), shared)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(train, range(8)))


distributed = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch.distributed with gloo"
)


def agree(
    ranks: Ranks, name: str, gated: bool = True, model: str = "ddp", lacks: bool = False, passes: int = 1, **ddp: Any
) -> None:
    """Raise AssertionError unless two ranks do the same as one process with the whole batch."""
    case = {"name": name, "model": model, "lacks": lacks, "passes": passes, "ddp": ddp}
    first, second = ranks.run("worker_gate", case)
    alone = run(case, 0, 1)
    for what in ("weights", "gradients"):
        for one, other, expected in zip(first[what], second[what], alone[what], strict=True):
            assert one.equal(other)
            close_to(one, expected)
    assert set(first["gated"]) == set(second["gated"]) == ({True} if gated else set())


@distributed
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"find_unused_parameters": True},
        {"find_unused_parameters": True, "lacks": True},
        {"static_graph": True},
        {"gradient_as_bucket_view": True},
        {"bucket_cap_mb": 0.0001},
        {"passes": 2},
        {"passes": 2, "gradient_as_bucket_view": True},
        {"model": "ddp trunk"},
        {"model": "ddp trunk", "find_unused_parameters": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["upgrad", "moco"])
def test_ranks_are_one_with_the_whole_batch(ranks: Ranks, name: str, options: dict[str, Any]) -> None:
    agree(ranks, name, **options)


@pytest.mark.slow
@distributed
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("name", ["upgrad", "moco"])
def test_a_static_graph_of_the_trunk_alone_is_refused(ranks: Ranks, name: str) -> None:
    with pytest.raises(AssertionError, match="wrap the whole model, or make it without static_graph"):
        agree(ranks, name, model="ddp trunk", static_graph=True)


@pytest.mark.slow
@distributed
@pytest.mark.xdist_group("processes")
def test_sharded_parameters_are_measured_the_old_way(ranks: Ranks) -> None:
    agree(ranks, "upgrad", gated=False, model="fsdp")
    with pytest.raises(AssertionError, match="is not sharded"):
        agree(ranks, "moco", gated=False, model="fsdp")
