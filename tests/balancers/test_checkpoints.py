"""A checkpointed model trains as it does without checkpoints, and its trunk is not run again for each task."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import checkpoint as checkpoints
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from balancers import DBMTL, MGDA, CAGrad, ExcessMTL, Fork, ForkError, GradientBalancer, GradNorm, LinearHeads, MoCo

from ..slow_params import others_slow

TASKS, WIDTH = 10, 4
METHODS = pytest.mark.parametrize("method", [GradNorm, MGDA], ids=lambda method: method.name)
"""One that weighs the losses by the norms of their gradients, and one that combines the gradients by their Gramian."""
KINDS = pytest.mark.parametrize("kind", others_slow(["separate", "batched"], "separate"))
"""Heads of their own behind a `Fork`, and `LinearHeads`."""
PLACES = pytest.mark.parametrize("place", ["features", "layer", "trunk", "parameters"])
"""What is measured: the features, the last shared layer, the whole trunk, or the trunk without a fork."""


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, WIDTH))


class Net(nn.Module):
    """A trunk, which counts its calls, a fork, and linear heads.

    Args:
        saved: the parts that run in a checkpoint: "trunk", "layer" (the last shared one), "fork", "head" (each one),
            "heads" (with the fork), "model".
        kind: "separate" or "batched".
        num_tasks: T.
        trunk: makes the trunk, from 5 inputs to 4 features.
        options: of the checkpoints.
    """

    def __init__(
        self,
        *saved: str,
        kind: str = "separate",
        num_tasks: int = TASKS,
        trunk: Callable[[], nn.Module] = mlp,
        **options: Any,
    ) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.saved, self.kind, self.options = saved, kind, {"use_reentrant": False, **options}
        self.trunk = trunk()
        if kind == "batched":
            self.together = LinearHeads(num_tasks, WIDTH, 2)
            self.fork = self.together.fork
        else:
            self.fork = Fork(num_tasks)
            self.heads = nn.ModuleList(nn.Linear(WIDTH, 2) for _ in range(num_tasks))
        self.double()
        self.runs = 0

    def run(self, part: str, function: Callable[..., Any], *inputs: Any) -> Any:
        """Call a function, in a checkpoint if the part is to be saved."""
        return checkpoint(function, *inputs, **self.options) if part in self.saved else function(*inputs)

    def run_trunk(self, x: Tensor) -> Any:
        self.runs += 1
        return self.trunk(x)

    def features(self, x: Tensor) -> Any:
        if "layer" in self.saved:
            return self.run("layer", self.trunk[2:], self.trunk[:2](x))
        return self.run("trunk", self.run_trunk, x)

    def outputs(self, z: Any) -> tuple[Tensor, ...]:
        if self.kind == "batched":
            return self.run("fork", lambda z: self.run("head", self.together, z), z).unbind(-2)
        aliases = self.run("fork", self.fork, z)
        return tuple(self.run("head", head, each) for head, each in zip(self.heads, aliases, strict=True))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.run("model", lambda x: self.run("heads", self.outputs, self.features(x)), x)


def losses_of(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [(i + 1) / len(outputs) * (output - 1 - i / 5).square().mean() for i, output in enumerate(outputs)]


def batch(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 5, generator=generator, dtype=torch.float64).requires_grad_()


def make(method: type[GradientBalancer], place: str, net: Net, **options: Any) -> GradientBalancer:
    if place == "parameters":
        return method(None, wrt=net.trunk, tasks=options.pop("tasks", net.fork.num_tasks), **options)
    wrt = {"features": None, "layer": net.trunk[2] if place == "layer" else None, "trunk": net.trunk}[place]
    return method(net.fork, wrt=wrt, **options)


def step(net: Net, balancer: GradientBalancer, t: int) -> None:
    net.runs = 0
    net.zero_grad()
    torch.manual_seed(t)
    balancer(losses_of(net(batch(t)))).backward()


def compare(method: type[GradientBalancer], place: str, net: Net, plain: Net, steps: int = 3) -> list[int]:
    """Check steps against those of the same network without checkpoints; return how often each ran the trunk."""
    one, other = make(method, place, net), make(method, place, plain)
    runs = []
    for t in range(steps):
        step(net, one, t)
        step(plain, other, t)
        torch.testing.assert_close(one.weights, other.weights, rtol=1e-10, atol=1e-12)
        for found, expected in zip(net.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(dense(found.grad), dense(expected.grad), rtol=1e-10, atol=1e-12)
        runs.append(net.runs)
    for key, value in other.state_dict().items():
        torch.testing.assert_close(one.state_dict()[key], value, rtol=1e-9, atol=1e-12)
    return runs


def dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense()


def runs_of(method: type[GradientBalancer], place: str) -> int:
    """Return how often a checkpointed trunk is run in a step: where a gate sums the gradients, no pass follows."""
    return 2 if place == "features" or (place == "trunk" and method.combines) else 3


# How often the trunk is run: in the forward pass, in the backward pass, and once for all that is measured.


@PLACES
@METHODS
@KINDS
@pytest.mark.parametrize(
    "saved", [("trunk",), ("model",), ("trunk", "heads"), ("trunk", "head"), ("trunk", "fork")], ids=" ".join
)
def test_runs_of_a_checkpointed_trunk(kind: str, method: type[GradientBalancer], place: str, saved: tuple[str, ...]):
    runs = compare(method, place, Net(*saved, kind=kind), Net(kind=kind))
    of_model = 2 if place == "features" else 3  # a fork within a checkpoint has no gate
    assert runs == [of_model if saved == ("model",) else runs_of(method, place)] * 3


@pytest.mark.parametrize("method", [CAGrad, ExcessMTL, MoCo, DBMTL], ids=lambda method: method.name)
@pytest.mark.parametrize("place", ["layer", "parameters"])
def test_runs_of_other_methods(method: type[GradientBalancer], place: str):
    if place in method.undefined_for:
        place = "parameters"
    assert compare(method, place, Net("trunk"), Net()) == [runs_of(method, place)] * 3


@METHODS
@pytest.mark.parametrize("place", ["layer", "parameters"])
@pytest.mark.parametrize("num_tasks", [1, 2])
def test_runs_with_few_tasks(num_tasks: int, place: str, method: type[GradientBalancer]):
    assert (
        compare(method, place, Net("trunk", num_tasks=num_tasks), Net(num_tasks=num_tasks))
        == [runs_of(method, place)] * 3
    )


@METHODS
@PLACES
@pytest.mark.parametrize("saved", [(), ("head",)], ids=["nothing", "head"])
def test_a_trunk_that_is_not_checkpointed_runs_once(saved: tuple[str, ...], place: str, method: type[GradientBalancer]):
    assert compare(method, place, Net(*saved), Net()) == [1, 1, 1]


@METHODS
@pytest.mark.parametrize("place", ["layer", "trunk", "parameters"])
def test_runs_with_tasks_left_out(place: str, method: type[GradientBalancer]):
    names = [f"task{i}" for i in range(TASKS)]
    nets = [Net("trunk"), Net()]
    balancers = [make(method, place, net, tasks=names) for net in nets]
    for t in range(4):
        for net, balancer in zip(nets, balancers, strict=True):
            net.zero_grad()
            net.runs = 0
            losses = dict(zip(names, losses_of(net(batch(t))), strict=True))
            balancer({name: losses[name] for k, name in enumerate(names) if t == 0 or (k + t) % 3}).backward()
        assert nets[0].runs == runs_of(method, place)
        torch.testing.assert_close(balancers[0].weights, balancers[1].weights, rtol=1e-10, atol=1e-12)
        for found, expected in zip(nets[0].trunk.parameters(), nets[1].trunk.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:no gradient of the loss of task 1 arrived")
@METHODS
@pytest.mark.parametrize("place", ["layer", "trunk", "parameters"])
def test_a_task_whose_loss_misses_the_trunk_in_one_step(place: str, method: type[GradientBalancer]):
    """It is given, but no gradient of it arrives: nobody may wait for that."""
    nets = [Net("trunk", num_tasks=3), Net(num_tasks=3)]
    balancers = [make(method, place, net) for net in nets]
    for t in range(3):
        for net, balancer in zip(nets, balancers, strict=True):
            net.zero_grad()
            first, second, third = losses_of(net(batch(t)))
            balancer([first, net.heads[1].bias.square().sum() if t else second, third]).backward()
        torch.testing.assert_close(balancers[0].weights, balancers[1].weights, rtol=1e-10, atol=1e-12)
        for found, expected in zip(nets[0].trunk.parameters(), nets[1].trunk.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-10, atol=1e-12)


class Scales(Net):
    """A network whose features are three tensors, as those of networks that work at several resolutions."""

    def run_trunk(self, x: Tensor) -> dict[str, Tensor]:
        z = super().run_trunk(x)
        return {"one": z, "two": z.tanh(), "three": z.square()}

    def outputs(self, z: dict[str, Tensor]) -> tuple[Tensor, ...]:
        pairs = zip(self.heads, self.fork(z), strict=True)
        return tuple(head(each["one"] + each["two"] * each["three"]) for head, each in pairs)


@METHODS
@PLACES
def test_runs_with_several_tensors_of_features(place: str, method: type[GradientBalancer]):
    """They come from one run of the trunk, which need not be repeated for each of them."""
    assert compare(method, place, Scales("trunk"), Scales()) == [runs_of(method, place)] * 3


@pytest.mark.parametrize("place", ["layer", "parameters"])
def test_runs_with_accumulation(place: str):
    nets = [Net("trunk"), Net()]
    balancers = [make(GradNorm, place, net, accumulate=2) for net in nets]
    for t in range(4):
        for net, balancer in zip(nets, balancers, strict=True):
            step(net, balancer, t)
        assert nets[0].runs == 3
    torch.testing.assert_close(balancers[0].next_weights, balancers[1].next_weights, rtol=1e-10, atol=1e-12)


@METHODS
@PLACES
def test_a_second_pass_of_a_checkpointed_model(place: str, method: type[GradientBalancer]):
    net = Net("trunk")
    balancer = make(method, place, net)
    loss = balancer(losses_of(net(batch(0))))
    loss.backward(retain_graph=True)
    first = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    loss.backward()
    for parameter, gradient in zip(net.parameters(), first, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14)


# Trunks that can't be differentiated for all tasks at once without care.


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(5, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cells(torch.stack([x, x.flip(-1)], 1))[0].mean(1)


class Attention(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.inputs = nn.Linear(5, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, dropout=dropout, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inputs(torch.stack([x, x.flip(-1)], 1))
        return self.attention(h, h, h, need_weights=False)[0].mean(1)


class Words(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, WIDTH, sparse=sparse)
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.embedding((3 * x.abs()).long().clamp(max=9)).mean(1))


class Branching(nn.Module):
    """Reads a value on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, WIDTH), nn.Linear(5, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        return h + self.two(x) if h.sum().item() > 0 else h * self.two(x)


class Square(torch.autograd.Function):
    """An operator that is none of PyTorch's, such as a kernel of one's own, in both passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(x.detach().numpy() ** 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        [x] = ctx.saved_tensors
        return torch.from_numpy(2 * x.detach().numpy() * gradients[0].numpy())


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(5, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return Square.apply(self.last(x))


class Inner(nn.Module):
    """Has a checkpoint of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.3)), nn.Linear(6, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.first, x, use_reentrant=False))


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


TRUNKS: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.3), nn.Linear(6, WIDTH)),
    "noise": lambda: nn.Sequential(nn.Linear(5, 6), Noise(), nn.Linear(6, WIDTH)),
    "attention": lambda: Attention(0.0),
    "attention with dropout": lambda: Attention(0.3),
    "lstm": Recurrent,
    "words": lambda: Words(False),
    "layer norm": lambda: nn.Sequential(nn.Linear(5, WIDTH), nn.LayerNorm(WIDTH), nn.GELU()),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 2, 2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, WIDTH)
    ),
    "branching": Branching,
    "checkpoint inside": Inner,
}


RANDOM = ("dropout", "noise", "attention with dropout", "checkpoint inside")


@METHODS
@pytest.mark.parametrize("place", ["trunk", "parameters"])
@pytest.mark.parametrize("name", TRUNKS)
def test_each_kind_of_trunk(name: str, place: str, method: type[GradientBalancer]):
    """Random numbers are drawn again as they were, for which the trunk may be tried once more than else."""
    nets = [Net(*saved, num_tasks=TASKS, trunk=TRUNKS[name]) for saved in (("trunk",), ())]
    assert max(compare(method, place, *nets)) <= (4 if name in RANDOM else 3)


@METHODS
@pytest.mark.parametrize("place", ["trunk", "parameters"])
@pytest.mark.parametrize("how", ["checkpoint", "saved on the CPU"])
@pytest.mark.parametrize("trunk", [Own, lambda: Words(sparse=True)], ids=["own operator", "sparse words"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_trunk_that_takes_one_gradient_at_a_time(
    trunk: Callable[[], nn.Module], how: str, place: str, method: type[GradientBalancer]
):
    """Where all tasks can't be differentiated at once, they are one by one."""

    class Saved(Net):
        def features(self, x: Tensor) -> Tensor:
            with torch.autograd.graph.save_on_cpu():
                return super().features(x)

    net = Net("trunk", num_tasks=3, trunk=trunk) if how == "checkpoint" else Saved(num_tasks=3, trunk=trunk)
    runs = compare(method, place, net, Net(num_tasks=3, trunk=trunk))
    assert max(runs) <= (2 + 2 + 3 if how == "checkpoint" else 1)  # it is tried in two ways before


@METHODS
@pytest.mark.parametrize("place", ["trunk", "parameters"])
def test_batch_normalisation_in_a_checkpoint(place: str, method: type[GradientBalancer]):
    """Gradients are right; PyTorch's checkpoint itself updates the running statistics once more in each run."""

    def trunk() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, WIDTH))

    assert (
        compare(method, place, Net("trunk", num_tasks=3, trunk=trunk), Net(num_tasks=3, trunk=trunk))
        == [runs_of(method, place)] * 3
    )


@METHODS
@PLACES
def test_a_checkpoint_under_autocast(place: str, method: type[GradientBalancer]):
    nets = [Net("trunk", num_tasks=3).float(), Net(num_tasks=3).float()]
    balancers = [make(method, place, net) for net in nets]
    for t in range(2):
        for net, balancer in zip(nets, balancers, strict=True):
            net.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                losses = [loss.float() for loss in losses_of(net(batch(t).float()))]
            balancer(losses).backward()
        torch.testing.assert_close(balancers[0].weights, balancers[1].weights, rtol=1e-3, atol=1e-4)
        for found, expected in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad, rtol=2e-2, atol=2e-2)


@METHODS
@PLACES
@pytest.mark.parametrize("how", ["sequential", "without early stop", "saved tensor hooks"])
def test_other_ways_to_save_memory(how: str, place: str, method: type[GradientBalancer]):
    class Other(Net):
        def features(self, x: Tensor) -> Tensor:
            if how == "sequential":
                return checkpoint_sequential(self.trunk, 2, x, use_reentrant=False)
            if how == "without early stop":
                with checkpoints.set_checkpoint_early_stop(False):
                    return checkpoint(self.trunk, x, use_reentrant=False)
            with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(), lambda a: torch.from_numpy(a)):
                return self.trunk(x.detach())

    compare(method, place, Other(num_tasks=3), Net(num_tasks=3))


@METHODS
@PLACES
def test_selective_checkpoints(place: str, method: type[GradientBalancer]):
    """PyTorch lets these be differentiated once, which is enough where the features are measured.

    Otherwise PyTorch refuses, by the cause or, before 2.13, by what it finds when it recomputes.
    """

    def policy(_: object, operator: object, *__: object, **___: object) -> checkpoints.CheckpointPolicy:
        choice = checkpoints.CheckpointPolicy
        return choice.MUST_SAVE if operator == torch.ops.aten.addmm.default else choice.PREFER_RECOMPUTE

    class Selective(Net):
        def features(self, x: Tensor) -> Tensor:
            contexts = checkpoints.create_selective_checkpoint_contexts
            return checkpoint(self.trunk, x, use_reentrant=False, context_fn=lambda: contexts(policy))

    net = Selective(num_tasks=3)
    if runs_of(method, place) == 2:
        compare(method, place, net, Net(num_tasks=3))
        return
    with pytest.raises(RuntimeError, match=r"selective activation checkpoint|Recomputed values"):
        step(net, make(method, place, net), 0)


def test_a_checkpoint_that_finds_another_forward_pass_says_so():
    """PyTorch's own check is not lost where the balancer tries another way."""
    calls = []

    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(5, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            calls.append(x)
            return self.last(x) if len(calls) == 1 else F.relu(self.last(x[:2]))

    net = Net("trunk", num_tasks=3, trunk=Forgetful)
    balancer = make(GradNorm, "trunk", net)
    with pytest.raises(checkpoints.CheckpointError):
        balancer(losses_of(net(batch(0)))).backward()


# Reentrant checkpoints, which hide what they recompute from the graph.

HIDDEN = {
    "features": ("fork", "heads", "model"),
    "layer": ("trunk", "layer", "fork", "heads", "model"),
    "trunk": ("trunk", "layer", "fork", "heads", "model"),
    "parameters": ("trunk", "layer", "fork", "head", "heads", "model"),
}
"""The parts that must not run in a reentrant checkpoint, by what is measured."""


def is_hidden(part: str, kind: str, place: str) -> bool:
    return part in HIDDEN[place] or (part == "head" and kind == "batched")


@pytest.mark.parametrize("part", ["trunk", "layer", "fork", "head", "heads", "model"])
@pytest.mark.parametrize("later", [False, True], ids=["first step", "later step"])
@PLACES
@METHODS
@KINDS
def test_reentrant_checkpoints(kind: str, method: type[GradientBalancer], place: str, later: bool, part: str):
    """They work where they hide nothing that is measured; elsewhere the message names them."""
    net, plain = Net(part, kind=kind, num_tasks=3, use_reentrant=True), Net(kind=kind, num_tasks=3)
    if not is_hidden(part, kind, place):
        compare(method, place, net, plain)
        return
    balancer = make(method, place, net)
    if later:
        saved, net.saved = net.saved, ()
        step(net, balancer, 0)
        net.saved = saved
    before = {key: value.clone() for key, value in balancer.state_dict().items() if key != "last_weights"}
    for t in (1, 2):
        with pytest.raises(ForkError, match="use_reentrant"):
            step(net, balancer, t)
        if later:  # the first step also moves the state to the losses' type
            assert all(value.equal(balancer.state_dict()[key]) for key, value in before.items())
    net.saved = ()
    step(net, balancer, 3)
