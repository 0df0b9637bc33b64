"""Situations in which a balancer once went wrong in silence, or was refused for another cause than the real one."""

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from balancers import (
    DBMTL,
    FAMO,
    MGDA,
    CAGrad,
    DynamicWeightAverage,
    EqualWeighting,
    Fork,
    ForkError,
    GradientBalancer,
    GradNorm,
    LinearHeads,
    LossBalancer,
    Losses,
    MetaBalance,
    MoCo,
    UncertaintyWeighting,
)
from balancers.engine.steps.measuring_step import read_at_a_fork

TASKS = 3


class Net(nn.Module):
    """A trunk of two layers, a fork and three heads."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))
        self.fork = Fork(TASKS)
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(TASKS))
        self.double()

    def losses(self, seed: int = 0) -> list[Tensor]:
        return self.losses_of(inputs(seed))

    def losses_of(self, x: Tensor) -> list[Tensor]:
        outputs = [head(z) for head, z in zip(self.heads, self.fork(self.trunk(x)), strict=True)]
        return [(i + 1) * (output - i).square().mean() for i, output in enumerate(outputs)]

    def gradients(self) -> list[Tensor]:
        found = [parameter.grad.clone() for parameter in self.parameters() if parameter.grad is not None]
        self.zero_grad()
        return found


def inputs(seed: int = 0) -> Tensor:
    return torch.randn(7, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


REPLACING = pytest.mark.parametrize("method", [MoCo, DBMTL])


# One pass per loss assumed.


@REPLACING
def test_two_losses_of_one_forward_pass(method: type[GradientBalancer]):
    """Without a fork, too, each call would be a step of the method."""
    net = Net()
    balancer = method(None, wrt=net.trunk, tasks=["a", "b", "c"])
    a, b, c = net.losses()
    with pytest.raises(RuntimeError, match="Call it once, with the losses of all tasks"):
        (balancer({"a": a, "b": b}) + balancer({"c": c})).backward()


@pytest.mark.parametrize("method", [GradNorm, CAGrad])
def test_two_losses_of_one_forward_pass_at_a_fork(method: type[GradientBalancer]):
    """The features are those of the first call. On the first step, the audit of the second call finds none."""
    net = Net()
    balancer = method(net.fork, tasks=["a", "b", "c"])
    for _ in range(2):
        a, b, c = net.losses()
        with pytest.raises(ForkError, match=r"neither can two calls of one: call it once, with all losses"):
            (balancer({"a": a, "b": b}) + balancer({"c": c})).backward()


def test_what_the_refusal_of_two_calls_advises_works():
    """Two batches in a step of the optimiser are two passes of a window; held weights take any number of calls."""
    net, apart = Net(), Net()
    balancer = GradNorm(net.fork, accumulate=2)
    for batch in range(6):
        balancer(net.losses(batch)).backward()
    assert balancer.optimizer_steps == 3
    with balancer.held():
        weights = balancer.weights
        net.zero_grad()
        (balancer(net.losses(0)) + balancer(net.losses(1))).backward()
    total = sum(w * loss for seed in range(2) for w, loss in zip(weights, apart.losses(seed), strict=True))
    found = net.gradients()
    torch.testing.assert_close(found, list(torch.autograd.grad(total, list(apart.parameters()))))


@pytest.mark.parametrize("make", [lambda net: GradNorm(net.fork), lambda net: CAGrad(None, wrt=net.trunk, tasks=TASKS)])
def test_threads_that_train_side_by_side(make: Callable[[Net], LossBalancer]):
    def train(seed: int) -> list[Tensor]:
        net = nets[seed]
        balancer, optimizer = balancers[seed], torch.optim.SGD(net.parameters(), lr=1e-3)
        for step in range(30):
            optimizer.zero_grad()
            balancer(net.losses(step)).backward()
            optimizer.step()
        return [*balancer.state_dict().values(), *(parameter.detach() for parameter in net.parameters())]

    nets = [Net(seed) for seed in range(3)]
    balancers = [make(net) for net in nets]
    alone = [train(seed) for seed in range(3)]
    nets = [Net(seed) for seed in range(3)]
    balancers = [make(net) for net in nets]
    together: dict[int, list[Tensor]] = {}
    threads = [threading.Thread(target=lambda s=seed: together.update({s: train(s)})) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(3):
        torch.testing.assert_close(together[seed], alone[seed])


def test_an_audit_trains_no_balancer_within():
    """Of heads as one product, each loss is differentiated once before the backward pass."""
    torch.manual_seed(0)
    trunk, heads = nn.Linear(4, 5).double(), LinearHeads(2, 5, 2).double()
    outer, inner = GradNorm(heads.fork), UncertaintyWeighting(2)
    first, second = heads(trunk(inputs())).unbind(-2)
    parts = [first.square().mean(), first.abs().mean()]
    total = outer([inner(parts), second.square().mean()])
    assert inner.optimizer_steps == 0
    total.backward()
    assert inner.optimizer_steps == 1


# Silence where nothing was measured.


@pytest.mark.parametrize("method", [MoCo, DBMTL, MGDA])
def test_a_parameter_that_is_listed_twice_counts_once(method: type[GradientBalancer]):
    found = []
    for times in (1, 2):
        net = Net()
        balancer = method(None, wrt=[*net.trunk.parameters()] * times, tasks=TASKS)
        balancer(net.losses()).backward()
        found.append([balancer.weights, *net.gradients()])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("method", [MGDA, GradNorm])
def test_a_loss_that_does_not_reach_the_parameters(method: type[GradientBalancer]):
    net = Net()
    balancer = method(None, wrt=net.trunk, tasks=["a", "b", "c"])
    a, _, c = net.losses()
    with pytest.raises(ForkError, match="task 'b' does not depend on the parameters that wrt names"):
        balancer([a, net.heads[1].bias.square().sum(), c]).backward()


@pytest.mark.parametrize("make", [lambda net: MGDA(net.fork), lambda net: GradNorm(net.fork, net.trunk[2])])
def test_a_loss_that_no_longer_reaches_the_fork(make: Callable[[Net], LossBalancer]):
    net = Net()
    balancer = make(net)
    balancer(net.losses()).backward()
    first, _, third = net.losses()
    with pytest.warns(RuntimeWarning, match="no gradient of the loss of task 1 arrived"):
        balancer([first, net.heads[1].bias.square().sum(), third]).backward()


def test_parameters_that_were_replaced_in_part():
    net = Net()
    balancer = MGDA(None, wrt=list(net.trunk.parameters()), tasks=TASKS)
    balancer(net.losses()).backward()
    net.trunk[0].load_state_dict(net.trunk[0].state_dict(), assign=True)
    with pytest.warns(RuntimeWarning, match="no loss depends any more on 2 of the parameters that wrt lists"):
        balancer(net.losses()).backward()


@pytest.mark.parametrize("method", [GradNorm, MGDA, MoCo])
@pytest.mark.parametrize("frozen", [False, True], ids=["replaced", "frozen"])
def test_parameters_upstream_of_a_fork_that_were_replaced_in_part(method: type[GradientBalancer], frozen: bool):
    net = Net()
    balancer = method(net.fork, wrt=list(net.trunk.parameters()))
    for _ in range(2):
        balancer(net.losses()).backward()
    if frozen:
        net.trunk[0].requires_grad_(False)
    else:
        net.trunk[0].load_state_dict(net.trunk[0].state_dict(), assign=True)
    if method is MoCo:
        with pytest.raises(ForkError, match="other parameters of wrt are trained" if frozen else "all parameters"):
            balancer(net.losses()).backward()
        return
    with pytest.warns(RuntimeWarning, match="no loss depends any more on 2 of the parameters that wrt lists"):
        balancer(net.losses()).backward()


@pytest.mark.parametrize("method", [GradNorm, MGDA, DBMTL])
def test_a_checkpoint_that_hides_a_part_of_wrt(method: type[GradientBalancer]):
    """Nothing upstream of the checkpoint is trained, so that no pass through it shows that it hides a layer."""

    class Trunk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.hidden, self.last = (nn.Linear(3, 3) for _ in range(3))
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor, use_reentrant: bool) -> Tensor:
            z = self.frozen(x).requires_grad_()
            return self.last(checkpoint(lambda z: self.hidden(z).tanh(), z, use_reentrant=use_reentrant))

    trunk, heads, x = Trunk(), [nn.Linear(3, 1) for _ in range(2)], torch.randn(4, 3)

    def step(balancer: LossBalancer, use_reentrant: bool) -> None:
        z = trunk(x, use_reentrant)
        balancer([head(z).square().mean() for head in heads]).backward()

    with pytest.raises(ForkError, match=r"no loss reaches 2 of the parameters.*use_reentrant=False"):
        step(method(None, wrt=trunk, tasks=2), True)
    step(method(None, wrt=trunk, tasks=2), False)
    step(method(None, wrt=trunk.last, tasks=2), True)


@pytest.mark.parametrize("method", [GradNorm, MGDA])
def test_a_parameter_that_is_frozen_before_the_backward_pass(method: type[GradientBalancer]):
    net = Net()
    balancer = method(None, wrt=net.trunk, tasks=TASKS)
    loss = balancer(net.losses())
    net.trunk[0].requires_grad_(False)
    with pytest.raises(ForkError, match=r"was frozen .* between the forward and the backward pass"):
        loss.backward()


def test_features_within_vmap():
    net = Net()
    balancer = GradNorm(net.fork)
    losses = torch.vmap(lambda x: torch.stack(net.losses_of(x[None])))(torch.randn(2, 4).double()).mean(0)
    with pytest.raises(ForkError, match=r"in a transform of torch\.func"):
        balancer(losses).backward()


def stacked(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses) * 2


def concatenated(losses: list[Tensor]) -> Tensor:
    return torch.cat([loss[None] for loss in losses])


@pytest.mark.parametrize("join", [stacked, concatenated])
def test_a_detached_loss_in_a_vector(join: Callable[[list[Tensor]], Tensor]):
    net = Net()
    balancer = GradNorm(net.fork)
    first, second, third = net.losses()
    with pytest.raises(ForkError, match=r"task 1 does not depend on the features .* was it detached"):
        balancer(join([first, second.detach(), third]))


def run(balancer: LossBalancer, losses: Callable[[], Losses], steps: int) -> None:
    """Make steps without an optimiser."""
    for _ in range(steps):
        balancer(losses()).backward()


def test_an_optimiser_that_makes_no_step():
    """The one that is followed belongs to another, whose step() is called."""
    net = Net()
    balancer = GradNorm(net.fork)
    balancer.follow(torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.warns(RuntimeWarning, match="made no step after any of the last 50 accumulation windows"):
        run(balancer, net.losses, 60)


MISSING_CALL = r"(?s)after_step, which was not called .*balancer\.after_step\(losses\)"


def of_weighting(parameter: nn.Parameter, **options: Any) -> LossBalancer:
    return MGDA(None, wrt=parameter, tasks=2, weighting=FAMO(2), **options)


@pytest.mark.parametrize("make", [lambda _, **options: FAMO(2, **options), of_weighting], ids=["alone", "as weighting"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_after_step_is_never_called(make: Callable[..., LossBalancer], accumulate: int):
    """The second step says so, and no later one does."""
    parameter = nn.Parameter(torch.ones(2))
    balancer = make(parameter, accumulate=accumulate)
    run(balancer, parameter.square, accumulate)
    with pytest.warns(RuntimeWarning, match=MISSING_CALL) as caught:
        run(balancer, parameter.square, 60)
    assert len(caught) == 1


@pytest.mark.parametrize("make", [lambda _: FAMO(2), of_weighting], ids=["alone", "as weighting"])
def test_after_step_is_no_longer_called(make: Callable[..., LossBalancer]):
    """A step that a GradScaler skips may go without; fifty in a row are too many."""
    parameter = nn.Parameter(torch.ones(2))
    balancer = make(parameter)
    for steps in (1, 40, 40):
        run(balancer, parameter.square, steps)
        balancer.after_step(parameter.detach().square())
    with pytest.warns(RuntimeWarning, match="none of the last 50 passes was followed by after_step"):
        run(balancer, parameter.square, 60)


def test_a_loss_that_stays_below_its_bound():
    balancer = FAMO(["a", "b"], min_losses={"a": 0.0, "b": 2.0})
    parameter = nn.Parameter(torch.ones(2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(6):
            balancer(parameter.square()).backward()
            balancer.after_step(parameter.detach().square())
    assert "that of task 'b'" in str(caught[0].message)


def test_features_of_an_unknown_kind():
    net = Net()
    balancer = GradNorm(net.fork)
    with pytest.raises(TypeError, match="the fork was given features of type Wrapped, in which it finds no tensor"):
        net.fork(type("Wrapped", (), {})())
    del balancer


# State.


def methods() -> Iterator[LossBalancer]:
    yield from (EqualWeighting(2), UncertaintyWeighting(2), DynamicWeightAverage(2, period=2), FAMO(2))


@pytest.mark.parametrize("balancer", list(methods()), ids=lambda balancer: balancer.name)
def test_state_that_moved_in_inference_mode(balancer: LossBalancer):
    """As in a check of the validation loop before training."""
    parameter = nn.Parameter(torch.ones(2, dtype=torch.float64))
    with torch.inference_mode():
        balancer.eval()(parameter.square())
    balancer.train()
    for _ in range(3):
        balancer(parameter.square()).backward()
        balancer.after_step(parameter.square())
    assert balancer.last_weights.dtype == torch.float64
    with torch.inference_mode():
        made = type(balancer)(2)
    made(parameter.square()).backward()


def test_long_names_are_not_mistaken():
    names = ["semantic segmentation of the whole scene " * 2, "depth of each point in metres, absolute " * 2]
    state = EqualWeighting(names).state_dict()
    EqualWeighting(names).load_state_dict(state)
    with pytest.raises(ValueError, match="other names"):
        EqualWeighting(names[::-1]).load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_seed_survives_half_precision(dtype: torch.dtype):
    balancer = GradNorm(Fork(2), update_every=300)
    balancer.seed, balancer.drawn, balancer.turn = 2**63 - 1235, 70_001, 299
    other = GradNorm(Fork(2), update_every=300)
    other.set_extra_state(balancer.get_extra_state().to(dtype))
    assert (other.seed, other.drawn, other.turn) == (balancer.seed, balancer.drawn, balancer.turn)


@REPLACING
def test_a_layer_of_another_size(method: type[GradientBalancer]):
    net = Net()
    balancer = method(None, wrt=net.trunk, tasks=TASKS)
    net.trunk[0], net.trunk[2] = nn.Linear(4, 9).double(), nn.Linear(9, 5).double()
    with pytest.raises(ForkError, match="keeps state for each parameter"):
        balancer(net.losses()).backward()


@REPLACING
def test_a_part_that_is_compiled_later(method: type[GradientBalancer]):
    net, plain = Net(), Net()
    balancer, other = (method(None, wrt=each.trunk, tasks=TASKS) for each in (net, plain))
    net.trunk[2] = torch.compile(net.trunk[2], backend="eager")
    balancer(net.losses()).backward()
    other(plain.losses()).backward()
    torch.testing.assert_close(net.gradients(), plain.gradients())


# Losses of zero and below.


@pytest.mark.parametrize("losses", [(1.0, 0.0, 0.01, 0.01), (1.0, 0.5, -0.001, -0.5)])
def test_dwa_compares_with_a_mean_above_zero_alone(losses: Sequence[float]):
    balancer = DynamicWeightAverage(2, period=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for loss in losses:
            parameter = nn.Parameter(torch.tensor([1.0, loss]))
            balancer(parameter * 1.0).backward()
            assert balancer.weights.min() > 0.5


# Real, dense gradients assumed.


@pytest.mark.parametrize("method", [GradNorm, MGDA, MoCo])
def test_conjugated_parameters(method: type[GradientBalancer]):
    """PyTorch conjugates them when it must, and not before."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 4, dtype=torch.complex128))
    x = torch.randn(6, 4, dtype=torch.complex128)
    found = []
    for conjugated in (weight.conj(), torch.conj_physical(weight)):
        balancer = method(None, wrt=[weight], tasks=2)
        y = x @ conjugated
        balancer([y.abs().square().mean(), (y - 1).abs().mean()]).backward()
        found.append((balancer.weights, weight.grad.clone(), *balancer.statistics.values()))
        weight.grad = None
    torch.testing.assert_close(*found)


def test_sparse_gradients_of_features():
    table, fork = nn.Parameter(torch.randn(9, 4)), Fork(2)
    heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(2))
    balancer = MGDA(fork)
    aliases = fork(table * 1)
    rows = [F.embedding(torch.arange(3), alias, sparse=True) for alias in aliases]
    with pytest.raises(TypeError, match="gradients of features are sparse"):
        balancer([head(each).square().mean() for head, each in zip(heads, rows, strict=True)]).backward()


def test_nested_features():
    fork = Fork(2)
    balancer = GradNorm(fork)
    rows = [torch.randn(2, 3), torch.randn(4, 3)]
    features = torch.nested.nested_tensor(rows, layout=torch.jagged, requires_grad=True)
    with pytest.raises(TypeError, match="features are a nested or a sparse tensor"):
        fork(features)
    with pytest.raises(TypeError, match="features are a nested or a sparse tensor"):
        fork(torch.randn(2, 3, requires_grad=True).to_sparse())
    del balancer


# Weights can't be held.


def test_nothing_is_committed_in_eval_mode():
    net = Net()
    gradnorm, famo = GradNorm(net.fork), FAMO(TASKS)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    following = GradNorm(None, wrt=net.trunk, tasks=TASKS, accumulate=2)
    following.follow(optimizer)
    for balancer, ends in (
        (gradnorm, lambda: None),
        (famo, lambda: famo.after_step(net.losses())),
        (following, lambda: optimizer.step()),
    ):
        total = balancer(net.losses())
        state = {key: value.clone() for key, value in balancer.state_dict().items()}
        balancer.eval()
        total.backward()
        ends()
        torch.testing.assert_close(balancer.state_dict(), state, rtol=0, atol=0)


# Checkpointing.


def skip(numbers: Iterator[int]) -> None:
    next(numbers)


@pytest.mark.parametrize("when", ["later", "not the first loss"])
def test_runs_of_a_checkpoint_that_the_first_look_misses(when: str):
    runs, numbers = count(), []
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    trunk.register_forward_pre_hook(lambda *_: skip(runs))
    heads = nn.ModuleList(nn.Linear(5, 1).double() for _ in range(8))
    balancer = MGDA(None, wrt=trunk, tasks=8)
    for step in range(4):
        before = next(runs)
        z = checkpoint(trunk, inputs(), use_reentrant=False) if step or when != "later" else trunk(inputs())
        first = trunk(inputs()) if when != "later" else z
        balancer([head(z if i else first).square().mean() for i, head in enumerate(heads)]).backward()
        numbers.append(next(runs) - before - 1)
    assert numbers[1] <= 4
    assert numbers[2:] == [3 if when == "later" else 4] * 2


# Compilation.


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", ["gradnorm", "uncertainty", "dwa", "moco"])
def test_a_whole_step_is_compiled_by_a_backend_that_makes_functions_pure(name: str):
    makes = {
        "gradnorm": lambda net: GradNorm(net.fork),
        "uncertainty": lambda net: UncertaintyWeighting(TASKS),
        "dwa": lambda net: DynamicWeightAverage(TASKS, period=1),
        "moco": lambda net: MoCo(None, wrt=net.trunk, tasks=TASKS),
    }
    found = []
    for compiles in (False, True):
        net = Net()
        balancer = makes[name](net)

        def step(x: Tensor, net: Net = net, balancer: LossBalancer = balancer) -> None:
            balancer(net.losses_of(x)).backward()

        with torch._functorch.config.patch(donated_buffer=False):
            run = torch.compile(step, backend="aot_eager") if compiles else step
            for seed in range(3):
                run(inputs(seed))
        found.append((balancer.state_dict(), net.gradients()))
    torch.testing.assert_close(*found)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("make", [lambda net: MGDA(net.fork), lambda net: UncertaintyWeighting(TASKS)])
def test_compiled_autograd_is_refused(make: Callable[[Net], LossBalancer]):
    net = Net()
    balancer = make(net)

    def step(x: Tensor) -> None:
        balancer(net.losses_of(x)).backward()

    with torch._dynamo.config.patch(compiled_autograd=True):
        run = torch.compile(step, backend="eager")
        with pytest.raises(RuntimeError, match="can't measure in compiled autograd"):
            run(inputs())


@pytest.mark.parametrize("first", ["replaces", "forks"])
@pytest.mark.parametrize("method", [MoCo, DBMTL, MetaBalance], ids=lambda method: method.name)
def test_two_networks_that_share_nothing_train_in_one_pass(method: type[GradientBalancer], first: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    (one, its_heads), (two, other_heads) = ((nn.Linear(8, 16), [nn.Linear(16, 1) for _ in range(2)]) for _ in range(2))
    fork = Fork(2)
    replacing, at_fork = method(None, wrt=one, tasks=2), MGDA(fork, wrt=two)

    def of_one() -> Tensor:
        z = one(x)
        return replacing([head(z).square().mean() for head in its_heads])

    def of_two() -> Tensor:
        return at_fork([head(z).square().mean() for head, z in zip(other_heads, fork(two(x)), strict=True)])

    losses = [of_one(), of_two()] if first == "replaces" else [of_two(), of_one()]
    (losses[0] + losses[1]).backward()
    assert replacing.statistics.keys() >= {"losses"}
    assert not at_fork.weights.allclose(torch.ones(2))
    assert one.weight.grad is not None


def test_a_pass_that_an_exception_ended_leaves_nothing_behind() -> None:
    torch.manual_seed(0)
    trunk, heads, fork = nn.Linear(4, 4), [nn.Linear(4, 1) for _ in range(2)], Fork(2)
    balancer = MGDA(fork, wrt=trunk)

    def losses(fails: bool) -> list[Tensor]:
        z = trunk(torch.randn(3, 4))
        if fails:
            z.register_hook(lambda gradient: 1 / 0)
        return [head(alias).square().mean() for head, alias in zip(heads, fork(z), strict=True)]

    for fails in (True, True, True, False):
        total = balancer(losses(fails))
        if fails:
            with pytest.raises(ZeroDivisionError):
                total.backward()
        else:
            total.backward()
    assert not read_at_a_fork
