"""A fork that is attached to the heads of a model equals one that is written into its code."""

import copy
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from balancers import MGDA, CAGrad, Fork, ForkError, GradientBalancer, GradNorm, MoCo, PCGrad

from .ranks import Ranks

pytestmark = pytest.mark.on_device
TASKS = ("a", "b", "c")


class Model(nn.Module):
    """A trunk and three heads, with or without a fork in its code."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fork = Fork(len(TASKS)) if written else None
        self.build()

    def build(self) -> None:
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(5, 2) for _ in TASKS)

    def aliases(self, features: Any) -> Sequence[Any]:
        return [features] * len(TASKS) if self.fork is None else self.fork(features)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [head(z) for head, z in zip(self.heads, self.aliases(self.trunk(x)), strict=True)]

    def layer(self) -> nn.Module:
        return self.trunk[2]


class Convolutional(Model):
    def build(self) -> None:
        self.trunk = nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.Tanh(), nn.Conv2d(4, 3, 1))
        self.heads = nn.ModuleList(nn.Sequential(nn.Flatten(), nn.Linear(6, 2)) for _ in TASKS)

    def layer(self) -> nn.Module:
        return self.trunk[3]


class Pyramid(Model):
    """Features are a dict of tensors, passed by keyword with one that needs no gradient."""

    def build(self) -> None:
        self.trunk = nn.ModuleList([nn.Linear(6, 5), nn.Linear(5, 5)])
        self.heads = nn.ModuleList(Sum() for _ in TASKS)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = torch.tanh(self.trunk[0](x))
        levels = {"fine": fine, "coarse": [torch.relu(self.trunk[1](fine))]}
        return [
            head(levels=alias, scale=torch.ones(5))
            for head, alias in zip(self.heads, self.aliases(levels), strict=True)
        ]

    def layer(self) -> nn.Module:
        return self.trunk[1]


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 2)

    def forward(self, levels: dict[str, Any], scale: Tensor) -> Tensor:
        return self.linear(scale * (levels["fine"] + levels["coarse"][0]))


class Transformer(Model):
    """A transformer's layer, with heads of unlike shape that run in another order than the tasks have."""

    def build(self) -> None:
        self.trunk = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
        self.heads = nn.ModuleList(nn.Linear(6, outputs) for outputs in (1, 3, 2))

    def forward(self, x: Tensor) -> list[Tensor]:
        aliases = self.aliases(self.trunk(x.unsqueeze(0)))
        found = {i: self.heads[i](aliases[i]) for i in (2, 0, 1)}
        return [found[i] for i in range(len(TASKS))]

    def layer(self) -> nn.Module:
        return self.trunk.linear2


class Recomputed(Model):
    """Trunk and heads are checkpointed."""

    def forward(self, x: Tensor) -> list[Tensor]:
        z = checkpoint(self.trunk, x, use_reentrant=False)
        return [
            checkpoint(head, alias, use_reentrant=False)
            for head, alias in zip(self.heads, self.aliases(z), strict=True)
        ]


MODELS = (Model, Convolutional, Pyramid, Transformer, Recomputed)
BALANCERS: dict[str, Callable[[Fork, Model], GradientBalancer]] = {
    "gradnorm-layer": lambda fork, model: GradNorm(fork, model.layer(), tasks=TASKS, alpha=0.5),
    "gradnorm-features": lambda fork, model: GradNorm(fork, tasks=TASKS, alpha=0.5),
    "mgda-features": lambda fork, model: MGDA(fork, tasks=TASKS),
    "mgda-layer": lambda fork, model: MGDA(fork, model.layer(), tasks=TASKS),
    "pcgrad-trunk": lambda fork, model: PCGrad(fork, model.trunk, tasks=TASKS, seed=1),
    "moco-trunk": lambda fork, model: MoCo(fork, model.trunk, tasks=TASKS),
}


def losses_of(model: Model, seed: int, without: str = "") -> dict[str, Tensor]:
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(seed))
    return {
        task: (i + 1) * output.square().mean()
        for i, (task, output) in enumerate(zip(TASKS, model(x), strict=True))
        if task not in without
    }


def train(model: Model, balancer: GradientBalancer, autocast: bool = False) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shown = []
    for step in range(4):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = losses_of(model, step, "b" if step == 2 else "")
        balancer(losses).backward()
        shown += [balancer.weights, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        optimizer.step()
    return shown


@pytest.mark.parametrize("name", BALANCERS)
@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_equals_the_fork_in_the_code(kind: type[Model], name: str):
    written, plain = kind(written=True), kind(written=False)
    assert written.fork is not None
    expected = train(written, BALANCERS[name](written.fork, written))
    found = train(plain, BALANCERS[name](Fork.attach(list(plain.heads)), plain))
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))


def test_equals_it_under_autocast():
    written, plain = Model(written=True), Model(written=False)
    assert written.fork is not None
    expected = train(written, GradNorm(written.fork, written.layer(), tasks=TASKS), autocast=True)
    found = train(plain, GradNorm(Fork.attach(list(plain.heads)), plain.layer(), tasks=TASKS), autocast=True)
    assert all(map(torch.equal, found, expected))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["trunk", "heads", "model"])
def test_equals_it_with_parts_compiled(part: str):
    written, plain = Model(written=True), Model(written=False)
    assert written.fork is not None
    fork = Fork.attach(list(plain.heads))
    for model in (written, plain):
        if part == "trunk":
            model.trunk.compile(backend="eager")
        elif part == "heads":
            for head in model.heads:
                head.compile(backend="eager")
        else:
            model.compile(backend="eager")
    expected = train(written, MGDA(written.fork, tasks=TASKS))
    found = train(plain, MGDA(fork, tasks=TASKS))
    assert all(map(torch.equal, found, expected))


def test_does_nothing_without_a_balancer_and_without_gradients():
    """Heads are then called with the features themselves."""
    model, seen = Model(written=False), []
    fork = Fork.attach(list(model.heads))
    features = model.trunk(torch.randn(3, 6))
    for head in model.heads:
        head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for head in model.heads:
        head(features)
    balancer = GradNorm(fork, tasks=TASKS)
    with torch.no_grad():
        for head in model.heads:
            head(features)
    assert len(seen) == 6
    assert all(each is features for each in seen)
    for head in model.heads:
        head(features)
    assert all(each is not features and each.equal(features) for each in seen[6:])
    assert balancer.fork is fork


def test_detaching_ends_it():
    model = Model(written=False)
    fork = Fork.attach(list(model.heads))
    balancer = GradNorm(fork, tasks=TASKS)
    balancer(losses_of(model, 0)).backward()
    fork.detach()
    with pytest.raises(ForkError, match="no features of this step went through"):
        balancer(losses_of(model, 1)).backward()
    assert all(not head._forward_pre_hooks for head in model.heads)
    fork.detach()  # once more is no error


def test_a_copied_model_is_attached_to_anew():
    model = Model(written=False)
    balancer = GradNorm(Fork.attach(list(model.heads)), model.layer(), tasks=TASKS)
    balancer(losses_of(model, 0)).backward()
    other, fresh = copy.deepcopy(model), Model(written=False)
    shown = []
    for each in (other, fresh):
        each.zero_grad()
        shown.append(train(each, GradNorm(Fork.attach(list(each.heads)), each.layer(), tasks=TASKS)))
    assert all(map(torch.equal, *shown))
    assert all(map(torch.equal, losses_of(model, 0).values(), losses_of(Model(written=False), 0).values()))


def test_a_batch_for_each_task():
    """Each task has a forward pass of its own, of which one head runs."""

    class OneAtATime(Model):
        def one(self, task: int, seed: int) -> Tensor:
            x = torch.randn(7, 6, generator=torch.Generator().manual_seed(10 * seed + task))
            z = self.trunk(x)
            return self.heads[task](self.aliases(z)[task]).square().mean()

    written, plain = OneAtATime(written=True), OneAtATime(written=False)
    assert written.fork is not None
    forks = (written.fork, Fork.attach(list(plain.heads), apart=True))
    found = []
    for model, fork in zip((written, plain), forks, strict=True):
        balancer = GradNorm(fork, model.layer(), tasks=TASKS)
        for seed in range(3):
            model.zero_grad()
            balancer([model.one(task, seed) for task in range(3)]).backward()
            found.append([balancer.weights, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(found[3:], found[:3], rtol=0, atol=0)


def test_a_task_that_is_left_out_of_the_forward_pass():
    model = Model(written=False)
    fork = Fork.attach(list(model.heads))
    balancer = CAGrad(fork, tasks=TASKS)
    for seed in range(3):
        z = model.trunk(torch.randn(7, 6, generator=torch.Generator().manual_seed(seed)))
        balancer({task: model.heads[i](z).square().mean() for i, task in enumerate("ab")}).backward()
    assert balancer.weights[:2].gt(0).all()


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize(("method", "wrt"), [("gradnorm", "layer"), ("mgda", "features"), ("pcgrad", "trunk")])
def test_equals_it_on_two_ranks(ranks: Ranks, method: str, wrt: str, how: str):
    case = {"method": method, "wrt": wrt, "how": how}
    expected = ranks.run("worker_attach", case | {"written": True})
    found = ranks.run("worker_attach", case | {"written": False})
    for one, other in zip(found, expected, strict=True):
        assert all(map(torch.equal, one, other))
    assert found[0][0].equal(found[1][0])


# Refusals.


def test_some_heads_alone_can_run_again_and_again():
    model = Model(written=False)
    fork = Fork.attach(list(model.heads))
    balancer = GradNorm(fork, model.layer(), tasks=TASKS)
    model.eval(), balancer.eval()
    for seed in range(2):  # an evaluation with gradients, of one task, or a step that is left before its loss
        x = torch.randn(7, 6, generator=torch.Generator().manual_seed(seed))
        assert model.heads[0](model.trunk(x)).requires_grad
    model.train(), balancer.train()
    written = Model(written=True)
    assert written.fork is not None
    expected = train(written, GradNorm(written.fork, written.layer(), tasks=TASKS))
    assert all(map(torch.equal, train(model, balancer), expected))


def test_a_model_is_copied_and_saved_after_a_step_without_some_heads(tmp_path: Path):
    model = Model(written=False)
    fork = Fork.attach(list(model.heads))
    balancer = GradNorm(fork, model.layer(), tasks=TASKS)
    z = model.trunk(torch.randn(7, 6))
    balancer({"a": model.heads[0](z).square().mean()}).backward()
    gone = weakref.ref(z)
    del z
    assert gone() is None
    model.heads[1](model.trunk(torch.randn(7, 6)))  # whose round is not ended by a call
    copied = copy.deepcopy(model)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    for other in (copied, loaded):
        assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))


def test_heads_that_get_other_tensors_are_refused():
    class Levels(Model):
        def forward(self, x: Tensor) -> list[Tensor]:
            z = self.trunk(x)
            return [head(z * (i + 1)) for i, head in enumerate(self.heads)]

    model = Levels(written=False)
    GradNorm(fork := Fork.attach(list(model.heads)), tasks=TASKS)
    balancer = GradNorm(fork, tasks=TASKS)
    with pytest.raises(ForkError, match="head 1 got other features than head 0 before it in this step"):
        balancer(losses_of(model, 0))


def test_a_head_that_runs_twice_is_refused():
    class Twice(Model):
        def forward(self, x: Tensor) -> list[Tensor]:
            z = self.trunk(x)
            return [self.heads[0](z), self.heads[0](z), self.heads[1](z)]

    model = Twice(written=False)
    balancer = GradNorm(Fork.attach(list(model.heads)), tasks=TASKS)
    with pytest.raises(ForkError, match=r"head 0 \(Linear\) ran twice on the same features"):
        balancer(losses_of(model, 0))


def test_what_can_not_be_heads():
    linear = nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"heads\[1\] is of type str; expected a module"):
        Fork.attach([linear, "head"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"heads\[0\] and heads\[1\] are one module, which serves both tasks"):
        Fork.attach([linear, linear])
    with pytest.raises(ValueError, match=r"heads\[0\] and heads\[1\] share a Linear"):
        Fork.attach([nn.Sequential(linear, nn.Linear(2, 1)), nn.Sequential(linear, nn.Linear(2, 1))])
    tied = nn.Linear(2, 2)
    tied.weight = linear.weight
    with pytest.raises(ValueError, match=r"share a Parameter"):
        Fork.attach([linear, tied])
    with pytest.raises(ValueError, match="num_tasks is 0"):
        Fork.attach([])


def test_features_that_reach_a_loss_past_the_heads_are_refused():
    """As with a fork in the code."""
    model = Model(written=False)
    balancer = GradNorm(Fork.attach(list(model.heads)), tasks=TASKS)
    z = model.trunk(torch.randn(3, 6))
    losses = [head(z).square().mean() for head in model.heads]
    with pytest.raises(ForkError, match="task 'b'"):
        balancer([losses[0], losses[1] + z.square().mean(), losses[2]])
