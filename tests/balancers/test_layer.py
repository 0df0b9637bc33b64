"""Gradients of a last shared layer are a matrix product if it is linear, and otherwise come from autograd.

The number of backward passes that reach the layer's parameters tells the two ways apart: one, and one more for each
task whose loss autograd differentiates; where that would run the forward pass again for each of them, one more for all.
In each way the norms must equal those of `torch.autograd.grad` on another graph.
"""

import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from balancers import EqualWeighting, Fork, GradNorm, LinearHeads
from balancers.engine.measuring import layer_gradients, vector_jacobian
from balancers.engine.measuring.measure import Measurement
from bench.cost.operation_count import count

from ..slow_params import others_slow

pytestmark = pytest.mark.on_device

TASKS, INPUTS, WIDTH = 3, 5, 4
HEADS = pytest.mark.parametrize("heads", others_slow(["separate", "batched"], "separate"))


@dataclass
class Trunk:
    """A function from inputs ``(..., 5)`` to features ``(..., 4)``, and the parameters to take gradients of."""

    features: Callable[[Tensor], Tensor]
    wrt: Sequence[nn.Parameter]


class Heads:
    """Three linear heads, with parameters of their own or as one product."""

    def __init__(self, kind: str) -> None:
        torch.manual_seed(1)
        self.together = LinearHeads(TASKS, WIDTH, 2).double()
        self.fork = self.together.fork if kind == "batched" else Fork(TASKS)
        self.kind = kind

    def outputs(self, z: Tensor) -> Tensor:
        """Return the heads' outputs, ``(..., T, 2)``."""
        if self.kind == "batched":
            return self.together(z)
        weights, biases = self.together.weight, self.together.bias
        heads = zip(self.fork(z), weights.unbind(), biases.unbind(), strict=True)
        return torch.stack([F.linear(each, weight, bias) for each, weight, bias in heads], -2)

    def plain_outputs(self, z: Tensor) -> Tensor:
        return torch.einsum("...d,tod->...to", z, self.together.weight) + self.together.bias


def losses_of(outputs: Tensor) -> list[Tensor]:
    errors = outputs - torch.tensor([1.0, 2.0, -1.0], dtype=outputs.dtype)[:, None]
    return [c * own.square().mean() for c, own in zip((1.0, 1.4, 0.7), errors.unbind(-2), strict=True)]


def norms_of(trunk: Trunk, heads: Heads, batches: Sequence[Tensor]) -> Tensor:
    """Return the norm of each task's gradient of its mean over ``batches``, ``(T,)``, each from a graph of its own."""
    norms = []
    for task in range(TASKS):
        loss = sum(losses_of(heads.plain_outputs(trunk.features(x)))[task] for x in batches) / len(batches)
        gradients = torch.autograd.grad(loss, list(trunk.wrt))
        norms.append(torch.cat([gradient.flatten().double() for gradient in gradients]).norm())
    return torch.stack(norms)


def batch(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, INPUTS, generator=generator, dtype=torch.float64)


def passes_by(parameter: nn.Parameter, run: Callable[[], None]) -> int:
    """Count the backward passes that reach a parameter: those that train, which hooks see, and those that measure."""
    seen = list[object]()

    def counted(grad: Callable[..., Any]) -> Callable[..., Any]:
        def call(outputs: Any, inputs: Any, *more: Any, **options: Any) -> Any:
            seen.extend(each for each in inputs if each is parameter)
            return grad(outputs, inputs, *more, **options)

        return call

    handle = parameter.register_hook(seen.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd, "grad", counted(torch.autograd.grad))
        patch.setattr(vector_jacobian, "gradients_at", counted(vector_jacobian.gradients_at))
        run()
    handle.remove()
    return len(seen)


def measuring_passes(trunk: Trunk, kind: str, shape: Sequence[int] = (6,), accumulate: int = 1) -> int:
    """Check GradNorm's norms at every step; return the number of passes that it made besides the network's own."""
    heads = Heads(kind)
    balancer = GradNorm(heads.fork, wrt=trunk.wrt, accumulate=accumulate)
    counts = set()
    for t in range(4):
        batches = [batch(*shape, seed=accumulate * t + part) for part in range(accumulate)]
        for x in batches:
            loss = balancer(losses_of(heads.outputs(trunk.features(x)))) / accumulate
            counts.add(passes_by(trunk.wrt[0], loss.backward))
        found = balancer.statistics["gradient_norms"] / balancer.weights
        expected = norms_of(trunk, heads, batches)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0, msg=lambda msg, t=t: f"step {t}: {msg}")
    [passes] = counts
    return passes - 1


# Layers whose gradients are one product


def linear(*after: nn.Module, bias: bool = True) -> Trunk:
    layer = nn.Linear(6, WIDTH, bias)
    trunk = nn.Sequential(nn.Linear(INPUTS, 6), nn.Tanh(), layer, *after).double()
    return Trunk(trunk, list(layer.parameters()))


def only(part: str, *after: nn.Module) -> Trunk:
    trunk = linear(*after)
    weight, bias = trunk.wrt
    return Trunk(trunk.features, {"weight": [weight], "bias": [bias], "bias, weight": [bias, weight]}[part])


def frozen_bias() -> Trunk:
    trunk = only("weight", nn.ReLU())
    trunk.features[2].bias.requires_grad_(False)
    return trunk


def first_layer() -> Trunk:
    layer = nn.Linear(INPUTS, WIDTH).double()
    return Trunk(nn.Sequential(layer, nn.ReLU()), list(layer.parameters()))


def frozen_before() -> Trunk:
    trunk = linear(nn.ReLU())
    trunk.features[0].requires_grad_(False)
    return trunk


def functional_relu() -> Trunk:
    trunk = linear()
    return Trunk(lambda x: torch.relu(trunk.features(x)), trunk.wrt)


def matrix() -> Trunk:
    weight = nn.Parameter(torch.randn(WIDTH, INPUTS, dtype=torch.float64))
    return Trunk(lambda x: x @ weight.t(), [weight])


def bias_used_before() -> Trunk:
    """Return a trunk that uses the bias, which is not in ``wrt``, once more before the layer."""
    trunk = only("weight")
    front, layer = trunk.features[:2], trunk.features[2]

    def features(x: Tensor) -> Tensor:
        return layer(torch.cat([front(x)[..., :2], layer.bias.expand(*x.shape[:-1], 4)], -1))

    return Trunk(features, trunk.wrt)


class View(nn.Module):
    """Splits each sample's features in two: ``(..., 8)`` to ``(..., 2, 4)``."""

    def forward(self, z: Tensor) -> Tensor:
        return z.view(*z.shape[:-1], 2, WIDTH)


def reshaped(*after: nn.Module) -> Trunk:
    layer = nn.Linear(INPUTS, 2 * WIDTH).double()
    return Trunk(nn.Sequential(layer, *after), list(layer.parameters()))


def flattened() -> Trunk:
    """Return a trunk whose features have one dimension for all samples, each of which becomes two rows."""
    trunk = linear(nn.ReLU())
    return Trunk(lambda x: trunk.features(x).reshape(-1, 2).repeat(1, 2), trunk.wrt)


PRODUCTS: dict[str, Callable[[], Trunk]] = {
    "linear": linear,
    "relu": lambda: linear(nn.ReLU()),
    "functional relu": functional_relu,
    "no bias": lambda: linear(bias=False),
    "no bias, relu": lambda: linear(nn.ReLU(), bias=False),
    "weight": lambda: only("weight"),
    "weight, relu": lambda: only("weight", nn.ReLU()),
    "bias": lambda: only("bias"),
    "bias, relu": lambda: only("bias", nn.ReLU()),
    "bias before weight": lambda: only("bias, weight", nn.ReLU()),
    "frozen bias": frozen_bias,
    "first layer": first_layer,
    "frozen before": frozen_before,
    "matrix": matrix,
}
EITHER: dict[str, Callable[[], Trunk]] = {
    "linear": linear,
    "relu": lambda: linear(nn.ReLU()),
    "relu in place": lambda: linear(nn.ReLU(inplace=True)),
    "no bias": lambda: linear(bias=False),
    "bias used before": bias_used_before,
    "relu, reshaped": lambda: reshaped(nn.ReLU(), View()),
    "reshaped, relu": lambda: reshaped(View(), nn.ReLU()),
    "flattened": flattened,
}


@HEADS
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("shape", [(6,), (2, 3)], ids=str)
@pytest.mark.parametrize("name", PRODUCTS)
def test_one_product(name: str, shape: tuple[int, ...], accumulate: int, heads: str):
    assert measuring_passes(PRODUCTS[name](), heads, shape, accumulate) == 0


@HEADS
def test_a_relu_in_place(heads: str):
    assert measuring_passes(linear(nn.ReLU(inplace=True)), heads) == 0


@HEADS
@pytest.mark.parametrize("shape", [(2, 3), (2, 2, 3), (1,), (1, 1), ()], ids=str)
@pytest.mark.parametrize("name", EITHER)
def test_right_either_way(name: str, shape: tuple[int, ...], heads: str):
    assert measuring_passes(EITHER[name](), heads, shape) in (0, TASKS)


@HEADS
@pytest.mark.parametrize("name", ["linear", "relu", "no bias", "weight", "bias"])
def test_under_autocast(name: str, heads: str):
    """Gradients are computed in bfloat16, as the network's own, and their norms in float32."""
    trunk = PRODUCTS[name]()
    parts = Heads(heads)
    trunk.features.float()
    parts.together.float()
    balancer = GradNorm(parts.fork, wrt=trunk.wrt)
    for t in range(3):
        x = batch(16, seed=t).float()

        def losses(outputs: Callable[[Tensor], Tensor], x: Tensor = x) -> list[Tensor]:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return losses_of(outputs(trunk.features(x)).float())

        norms = []
        for loss in losses(parts.plain_outputs):
            gradients = torch.autograd.grad(loss, list(trunk.wrt), retain_graph=True)
            norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm())
        assert passes_by(trunk.wrt[0], balancer(losses(parts.outputs)).backward) == 1
        found = balancer.statistics["gradient_norms"] / balancer.weights
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, torch.stack(norms), rtol=2e-2, atol=0)


@HEADS
def test_the_networks_own_gradients_are_left_alone(heads: str):
    """Measuring may overwrite its own tensors, but not the gradients that go on into the trunk."""
    trunk, parts = linear(nn.ReLU()), Heads(heads)
    balancer = GradNorm(parts.fork, wrt=trunk.wrt, optimizer="sgd", lr=0.1)
    parameters = [*trunk.features.parameters(), *parts.together.parameters()]
    for t in range(3):
        x = batch(6, seed=t)
        losses = losses_of(parts.plain_outputs(trunk.features(x)))
        expected = torch.autograd.grad(torch.dot(balancer.next_weights.double(), torch.stack(losses)), parameters)
        trunk.features.zero_grad()
        parts.together.zero_grad()
        balancer(losses_of(parts.outputs(trunk.features(x)))).backward()
        torch.testing.assert_close([p.grad for p in parameters], list(expected), rtol=1e-12, atol=1e-15)


# Layers whose gradients come from autograd


def twice() -> Trunk:
    layer = nn.Linear(4, WIDTH).double()
    return Trunk(lambda x: layer(torch.tanh(layer(x[..., :4]))), list(layer.parameters()))


def weight_used_before() -> Trunk:
    layer = nn.Linear(4, WIDTH).double()
    return Trunk(lambda x: layer(torch.tanh(x[..., :4] @ layer.weight)), list(layer.parameters()))


def weight_in_the_bias() -> Trunk:
    weight = nn.Parameter(torch.randn(WIDTH, INPUTS, dtype=torch.float64))
    return Trunk(lambda x: F.linear(x, weight, weight.sum(1)), [weight])


def weight_as_bias() -> Trunk:
    weight = nn.Parameter(torch.randn(WIDTH, INPUTS, dtype=torch.float64))
    return Trunk(lambda x: torch.relu(F.linear(x, weight, weight.select(1, 0))), [weight])


def computed_weight() -> Trunk:
    weight = nn.Parameter(torch.randn(WIDTH, INPUTS, dtype=torch.float64))
    return Trunk(lambda x: F.linear(x, weight / weight.norm()), [weight])


def weight_norm() -> Trunk:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(INPUTS, WIDTH)).double()
    return Trunk(layer, list(layer.parameters()))


def square_weight(transposed: bool) -> Trunk:
    """Return a trunk with a square weight, whose shape doesn't tell whether it is transposed."""
    weight = nn.Parameter(torch.randn(4, 4, dtype=torch.float64))
    return Trunk(lambda x: x[..., :4] @ (weight.t().t() if transposed else weight), [weight])


def layer_and_one_before() -> Trunk:
    trunk = linear(nn.ReLU())
    return Trunk(trunk.features, [*trunk.features[0].parameters(), *trunk.wrt])


def layer_before() -> Trunk:
    trunk = linear(nn.ReLU())
    return Trunk(trunk.features, list(trunk.features[0].parameters()))


def skip() -> Trunk:
    trunk = linear()
    return Trunk(lambda x: trunk.features(x) + x[..., :WIDTH], trunk.wrt)


def changed_in_place(change: Callable[[Tensor], Tensor]) -> Trunk:
    trunk = linear()
    return Trunk(lambda x: change(trunk.features(x)), trunk.wrt)


def convolution() -> Trunk:
    layer = nn.Conv1d(1, 1, 2).double()
    return Trunk(lambda x: torch.relu(layer(x.unsqueeze(-2)).squeeze(-2)), list(layer.parameters()))


def then_convolution() -> Trunk:
    trunk = linear()
    after = nn.Conv1d(1, 1, 3, padding=1).double()
    return Trunk(lambda x: torch.relu(after(trunk.features(x).unsqueeze(-2)).squeeze(-2)), trunk.wrt)


def product(make: Callable[..., Tensor], *shape: int) -> Trunk:
    """Return a trunk of ``make(bias, inputs, transposed weight)``, with a bias of shape ``shape``."""
    weight = nn.Parameter(torch.randn(WIDTH, INPUTS, dtype=torch.float64))
    bias = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    return Trunk(lambda x: make(bias, x, weight.t()), [weight, bias])


def saved_elsewhere(how: str) -> Trunk:
    trunk = linear(nn.ReLU())

    def features(x: Tensor) -> Tensor:
        if how == "checkpoint":
            return checkpoint(trunk.features, x, use_reentrant=False)
        if how == "checkpointed layer":
            front, last = trunk.features[:2], trunk.features[2:]
            return checkpoint(last, front(x), use_reentrant=False)
        hooks = {
            "cpu": torch.autograd.graph.save_on_cpu,
            "hooks": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t * 2, lambda t: t / 2),
        }
        with hooks[how]():
            return trunk.features(x)

    return Trunk(features, trunk.wrt)


OTHERS: dict[str, Callable[[], Trunk]] = {
    "twice": twice,
    "weight used before": weight_used_before,
    "weight in the bias": weight_in_the_bias,
    "weight as bias": weight_as_bias,
    "computed weight": computed_weight,
    "weight norm": weight_norm,
    "square": lambda: square_weight(False),
    "square, transposed": lambda: square_weight(True),
    "layer and one before": layer_and_one_before,
    "layer before": layer_before,
    "skip": skip,
    "scaled in place": lambda: changed_in_place(lambda z: z.mul_(2)),
    "relu, then scaled": lambda: changed_in_place(lambda z: z.relu() * 2),
    "part of the outputs": lambda: changed_in_place(lambda z: torch.cat([z[..., :2], z[..., :2]], -1)),
    "relu of another view": lambda: changed_in_place(lambda z: z.flip(-1).relu()),
    "tanh": lambda: linear(nn.Tanh()),
    "leaky relu": lambda: linear(nn.LeakyReLU(0.1)),
    "gelu": lambda: linear(nn.GELU()),
    "layer norm": lambda: linear(nn.LayerNorm(WIDTH)),
    "two relus": lambda: linear(nn.LayerNorm(WIDTH), nn.ReLU()),
    "convolution": convolution,
    "then a convolution": then_convolution,
    "alpha": lambda: product(lambda b, x, w: torch.addmm(b, x, w, alpha=3), WIDTH),
    "beta": lambda: product(lambda b, x, w: torch.addmm(b, x, w, beta=0.5), WIDTH),
    "alpha and beta": lambda: product(lambda b, x, w: torch.addmm(b, x, w, alpha=2, beta=2), WIDTH),
}
RECOMPUTED: dict[str, Callable[[], Trunk]] = {
    "checkpoint": lambda: saved_elsewhere("checkpoint"),
    "checkpointed layer": lambda: saved_elsewhere("checkpointed layer"),
    "saved on the CPU": lambda: saved_elsewhere("cpu"),
    "saved otherwise": lambda: saved_elsewhere("hooks"),
}


@HEADS
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", OTHERS)
def test_differentiated(name: str, accumulate: int, heads: str):
    assert measuring_passes(OTHERS[name](), heads, (6,), accumulate) == TASKS


@HEADS
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", RECOMPUTED)
def test_differentiated_together(name: str, accumulate: int, heads: str):
    """What a pass has to recompute, or to bring back, is brought back once for all tasks."""
    assert measuring_passes(RECOMPUTED[name](), heads, (6,), accumulate) == 1


@HEADS
@pytest.mark.parametrize("shape", [(WIDTH,), (1, WIDTH), (6, WIDTH), (6, 1), (1,), ()], ids=str)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_bias_of_another_shape(shape: tuple[int, ...], accumulate: int, heads: str):
    """`torch.addmm` takes any bias that broadcasts; a linear layer's bias has one entry for each output."""
    assert measuring_passes(product(torch.addmm, *shape), heads, (6,), accumulate) in (0, TASKS)


# A network that changes


class Changing:
    """A trunk that applies a part for each letter of ``way``: l for the layer, o for another layer, s for a sine."""

    def __init__(self) -> None:
        self.layer, self.other = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()
        self.way = "l"

    def features(self, x: Tensor) -> Tensor:
        z = x[..., :4]
        for letter in self.way:
            z = {"l": lambda z: self.layer(z).relu(), "o": lambda z: self.other(z).relu(), "s": torch.sin}[letter](z)
        return z

    def trunk(self) -> Trunk:
        return Trunk(self.features, list(self.layer.parameters()))


@HEADS
@pytest.mark.parametrize(
    "ways",
    [
        ["l"] * 4 + ["ll"] * 4 + ["lll"] * 3,
        ["ll", "l", "l", "ll", "l", "lll", "lll", "l"],
        ["ol", "ol", "ool", "ool", "ols", "ols", "ol", "ol"],
        ["ol"] * 4 + ["ll"] * 3,
        ["ll"] * 3 + ["ol"] * 3,
        ["ol", "ol", "ol", "lo", "lo"],
    ],
    ids=" ".join,
)
def test_a_layer_is_applied_once_and_then_more_often(ways: list[str], heads: str):
    """Norms stay right, also if the graph keeps its size because a second use of the layer replaces another layer."""
    changing, parts = Changing(), Heads(heads)
    trunk = changing.trunk()
    balancer = GradNorm(parts.fork, wrt=trunk.wrt)
    for t, way in enumerate(ways):
        changing.way = way
        x = batch(6, seed=t)
        balancer(losses_of(parts.outputs(trunk.features(x)))).backward()
        found = balancer.statistics["gradient_norms"] / balancer.weights
        expected = norms_of(trunk, parts, [x])
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0, msg=lambda msg, t=t: f"step {t}: {msg}")


def test_a_window_whose_passes_differ():
    """In one pass the layer's gradient is a product, in the other it is not; the window's gradient is their sum."""
    changing, heads = Changing(), Heads("separate")
    trunk = changing.trunk()
    balancer = GradNorm(heads.fork, wrt=trunk.wrt, accumulate=2)
    for t in range(3):
        of_task = [0.0] * TASKS
        for way in ("ol", "ll"):
            changing.way = way
            x = batch(6, seed=t)
            losses = losses_of(heads.plain_outputs(trunk.features(x)))
            for task, loss in enumerate(losses):
                gradients = torch.autograd.grad(loss, list(trunk.wrt), retain_graph=True)
                of_task[task] = of_task[task] + torch.cat([g.flatten() for g in gradients]) / 2
            (balancer(losses_of(heads.outputs(trunk.features(x)))) / 2).backward()
        found = balancer.statistics["gradient_norms"] / balancer.weights
        torch.testing.assert_close(found, torch.stack([g.norm() for g in of_task]), rtol=1e-12, atol=0)


def test_an_evaluation_between_two_steps():
    """Norms stay right if the trunk is also run between steps."""
    trunk, heads = linear(nn.ReLU()), Heads("separate")
    balancer = GradNorm(heads.fork, wrt=trunk.wrt)
    for t in range(6):
        x = batch(6, seed=t)
        balancer(losses_of(heads.outputs(trunk.features(x)))).backward()
        found = balancer.statistics["gradient_norms"] / balancer.weights
        torch.testing.assert_close(found, norms_of(trunk, heads, [x]), rtol=1e-12, atol=0)
        with torch.no_grad() if t % 2 else nullcontext():
            for _ in range(t):
                trunk.features(batch(3))


# Memory


class Head(torch.autograd.Function):
    """A head with one output, whose backward pass notes how many gradients of features are alive."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, noted: list[weakref.ref[Tensor]], most: list[int]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.noted, ctx.most = noted, most
        return z @ weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        of_features = torch.outer(gradients[0], weight)
        ctx.noted.append(weakref.ref(of_features))
        ctx.most[0] = max(ctx.most[0], sum(ref() is not None for ref in ctx.noted))
        return of_features, None, None, None


@pytest.mark.parametrize("wrt", ["features", "layer", "tanh"])
@pytest.mark.parametrize("num_tasks", [2, 10, 40])
def test_a_tasks_gradient_is_freed_before_the_next_ones_is_computed(num_tasks: int, wrt: str):
    """At most two are alive: one task's, and their sum."""
    layer = nn.Linear(INPUTS, 256)
    after = nn.Tanh() if wrt == "tanh" else nn.ReLU()
    fork = Fork(num_tasks)
    balancer = GradNorm(fork, wrt=None if wrt == "features" else layer)
    weights = torch.randn(num_tasks, 256)
    for _ in range(3):
        most = [0]
        noted: list[weakref.ref[Tensor]] = []
        aliases = fork(after(layer(torch.randn(1024, INPUTS))))
        losses = [Head.apply(z, w, noted, most).square().mean() for z, w in zip(aliases, weights, strict=True)]
        del aliases
        balancer(losses).backward()
        assert len(noted) == num_tasks
        assert most[0] == 2


SIZES = {
    "as wide as the batch": (100, 100, 100),
    "wide layer": (16, 128, 1),
    "wide layer and heads": (16, 128, 128),
    "small heads": (64, 64, 1),
    "large batch": (1024, 64, 4),
}
"""For each size: samples, width of the layer, outputs of a head."""


def peak(num_tasks: int, kind: str, wrt: str | None, sizes: tuple[int, int, int]) -> int:
    """Return a step's peak memory in bytes. With ``wrt=None``, the balancer is equal weighting."""
    samples, width, outputs = sizes
    layer = nn.Linear(width, width)
    trunk = nn.Sequential(nn.Linear(INPUTS, width), nn.ReLU(), layer, nn.ReLU())
    together = LinearHeads(num_tasks, width, outputs)
    apart = nn.ModuleList(nn.Linear(width, outputs) for _ in range(num_tasks))
    fork = together.fork if kind == "batched" else Fork(num_tasks)
    balancer = {
        None: lambda: EqualWeighting(num_tasks),
        "features": lambda: GradNorm(fork),
        "layer": lambda: GradNorm(fork, wrt=layer),
    }[wrt]()
    x = torch.randn(samples, INPUTS)

    def step() -> None:
        for module in (trunk, together, apart):
            module.zero_grad()
        if kind == "batched":
            losses = together(trunk(x)).square().mean((0, 2))
        else:
            # `forward`, because counting FLOPs keeps the gradients of all outputs of modules that are called.
            aliases = fork.forward(trunk(x))
            losses = [head(z).square().mean() for head, z in zip(apart, aliases, strict=True)]
            del aliases
        balancer(losses).backward()

    for _ in range(3):
        step()
    return count(step, torch.device("cpu")).peak_bytes


@pytest.mark.parametrize(("spare", "products"), [(0, 3), (24, 2), (96, 1), (1000, 1)])
@pytest.mark.parametrize("overwrite", [True, False])
def test_products_at_a_time(spare: int, products: int, overwrite: bool, monkeypatch: pytest.MonkeyPatch):
    """The norms are the same if five tasks' products are computed in threes, in twos, or all at once."""
    monkeypatch.setattr(layer_gradients, "CHEAP_ENTRIES", 0)
    layer = nn.Linear(6, WIDTH).double()
    z = layer(torch.randn(2, 6, dtype=torch.float64)).relu()
    gradients = torch.randn(5, 2, WIDTH, dtype=torch.float64)
    of_weight = [torch.autograd.grad(z, layer.weight, each, retain_graph=True)[0] for each in gradients]
    measurement = Measurement(5, [layer.weight], False, torch.float64, overwrite)
    given = gradients.clone()
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        measurement.observe(z, None, given, spare)
    assert sum(event.name == "aten::bmm" for event in profiler.events()) == products
    [norms] = measurement.columns()
    torch.testing.assert_close(norms, torch.stack([each.norm() for each in of_weight]))
    assert given.equal(gradients) != overwrite


@pytest.mark.on_cpu  # counts the CPU's memory
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("wrt", ["features", "layer"])
@pytest.mark.parametrize("num_tasks", others_slow([2, 10, 40], 10))
@HEADS
def test_peak_memory(num_tasks: int, heads: str, wrt: str, size: str, monkeypatch: pytest.MonkeyPatch):
    """A step needs at most T + 1 copies of the features and two layer gradients more than equal weighting."""
    monkeypatch.setattr(layer_gradients, "CHEAP_ENTRIES", 0)
    samples, width, _ = SIZES[size]
    extra = peak(num_tasks, heads, wrt, SIZES[size]) - peak(num_tasks, heads, None, SIZES[size])
    features, layer = 4 * samples * width, 4 * (width * width + width)
    small = 4096  # a few tensors of T numbers
    assert extra <= (num_tasks + 1) * features + (2 * layer if wrt == "layer" else 0) + small


def test_small_products_are_one():
    """Small products exceed that bound because they are one; large ones by at most `layer_gradients.CHEAP_ENTRIES`."""
    small, large = (64, 64, 1), (16, 512, 1)
    extra = [peak(10, "batched", "layer", sizes) - peak(10, "batched", None, sizes) for sizes in (small, large)]
    assert extra[0] > 11 * 4 * 64 * 64 + 2 * 4 * (64 * 64 + 64)
    assert extra[1] <= 11 * 4 * 16 * 512 + 2 * 4 * (512 * 512 + 512) + 4 * layer_gradients.CHEAP_ENTRIES + 4096


def test_a_layer_with_sparse_inputs():
    """Its product is not a matrix product of dense tensors: its gradients come from autograd."""
    layer, fork = nn.Linear(6, 4, bias=False).double(), Fork(2)
    heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(2)).double()
    balancer, x = GradNorm(fork, layer), torch.eye(6, dtype=torch.float64)[:3].to_sparse()
    z = torch.mm(x, layer.weight.t())
    losses = [head(alias).square().mean() for head, alias in zip(heads, fork(z), strict=True)]
    expected = [torch.autograd.grad(loss, layer.weight, retain_graph=True)[0].norm() for loss in losses]
    balancer(losses).backward()
    torch.testing.assert_close(balancer.statistics["gradient_norms"], torch.stack(expected))
