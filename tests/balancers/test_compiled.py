"""`torch.compile` around a model, a balancer, a loss function or a whole step changes nothing of what a balancer does.

A balancer, and a fork that one reads, run outside of compiled graphs. A fork that no balancer reads is part of them.
"""

import copy
import gc
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from balancers import (
    FAMO,
    MGDA,
    EqualWeighting,
    ForkError,
    GradientBalancer,
    GradNorm,
    LossBalancer,
    UncertaintyWeighting,
    get,
    names,
)

from ..slow_params import others_slow
from . import heads, nets
from .needs import supply

TASKS = 3
STEPS = 3
PLACES = ("features", "layer", "parameters")
OPTIONS: dict[str, dict[str, Any]] = {
    "m-config": {"takes_turns": False},
    "ntk": {"update_every": 1},
    "static": {"weights": [0.5, 1.0, 1.5]},
}
"""What methods need besides the tasks."""
KINDS = pytest.mark.parametrize("kind", others_slow(["separate", "batched"], "separate"))
"""Heads of their own behind a `Fork`, and `LinearHeads`."""
BACKENDS = pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.skipif(not any(map(shutil.which, ["c++", "g++", "clang++"])), reason="no C++ compiler"),
                pytest.mark.slow,
                pytest.mark.xdist_group("processes"),
            ],
        ),
    ],
)
pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
]


def build(kind: str) -> Any:
    return nets.build("linear", TASKS) if kind == "separate" else heads.build(heads.Batched)


def losses_of(outputs: Any, x: Tensor) -> list[Tensor]:
    return nets.losses_of(outputs.unbind(-2) if isinstance(outputs, Tensor) else outputs, x)


def make(name: str, place: str, net: Any) -> LossBalancer:
    method: Callable[..., LossBalancer] = get(name)
    options = {"tasks": TASKS} | OPTIONS.get(name, {})
    if place == "parameters":
        balancer = method(None, wrt=net.trunk, **options)
    elif place:
        wrt = {"layer": net.trunk[2], "trunk": net.trunk, "features": None}[place]
        balancer = method(net.fork, wrt=wrt, **options)
    else:
        balancer = method(**options)
    x = nets.inputs("linear", STEPS + 1)[-1]
    supply(balancer, lambda: losses_of(net(x), x))
    return balancer


def cases(every_place: bool) -> list[Any]:
    """Return the name of each method, and the places to try it at."""
    found = []
    for name in names():
        method = get(name)
        places = [""]
        if issubclass(method, GradientBalancer):
            places = [place for place in PLACES if place not in method.undefined_for]
        for place in places if every_place else places[-1:]:
            found.append(pytest.param(name, place, id=f"{name}-{place}" if place else name))
    return found


SOME = pytest.mark.parametrize(
    ("name", "place"),
    [
        ("gradnorm", "features"),
        ("gradnorm", "layer"),
        ("gradnorm", "parameters"),
        ("mgda", "features"),
        ("mgda", "layer"),
        ("mgda", "parameters"),
        ("imtl", "features"),
        ("graddrop", "features"),
        ("moco", "parameters"),
        ("uncertainty", ""),
        ("dwa", ""),
    ],
)
"""Methods of each kind."""

Forward = Callable[[Tensor], Tensor]
"""A function from a batch to the loss to call ``backward`` on."""


def compiled_model(net: Any, balancer: LossBalancer, backend: str) -> Forward:
    model = torch.compile(net, backend=backend)
    return lambda x: balancer(losses_of(model(x), x))


def model_compiled_in_place(net: Any, balancer: LossBalancer, backend: str) -> Forward:
    net.compile(backend=backend)
    return lambda x: balancer(losses_of(net(x), x))


def compiled_function(net: Any, balancer: LossBalancer, backend: str) -> Forward:
    return torch.compile(lambda x: balancer(losses_of(net(x), x)), backend=backend)


def compiled_loss(net: Any, balancer: LossBalancer, backend: str) -> Forward:
    loss = torch.compile(lambda outputs, x: balancer(losses_of(outputs, x)), backend=backend)
    return lambda x: loss(net(x), x)


def compiled_balancer(net: Any, balancer: LossBalancer, backend: str) -> Forward:
    compiled = torch.compile(balancer, backend=backend)
    return lambda x: compiled(losses_of(net(x), x))


WAYS = [compiled_model, model_compiled_in_place, compiled_function, compiled_loss, compiled_balancer]


def run(net: Any, balancer: LossBalancer, forward: Forward) -> list[Tensor]:
    """Train; return the weights and gradients of each step, and the state at the end."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    seen: list[Tensor] = []
    for x in nets.inputs("linear", STEPS):
        optimizer.zero_grad()
        forward(x).backward()
        seen += [balancer.weights, *(parameter.grad.clone() for parameter in net.parameters())]
        optimizer.step()
        if balancer.looks_again:
            with torch.no_grad():
                balancer.after_step(losses_of(net(x), x))
    return seen + list(balancer.state_dict().values())


def same(found: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def check(name: str, place: str, kind: str, way: Callable[..., Forward], backend: str) -> None:
    plain = build(kind)
    balancer = make(name, place, plain)
    expected = run(plain, balancer, lambda x: balancer(losses_of(plain(x), x)))
    net = build(kind)
    compiled = make(name, place, net)
    same(run(net, compiled, way(net, compiled, backend)), expected)


@BACKENDS
@SOME
@KINDS
@pytest.mark.slow
def test_a_compiled_model(kind: str, name: str, place: str, backend: str):
    """Hooks fire, weights and gradients are those without a compiler, and the balancer learns.

    The compiler is told that the trunk's part is differentiated more than once: see
    `test_batches_of_changing_size_at_the_trunk` for what is said where it was not.
    """
    with torch._functorch.config.patch(donated_buffer=False):
        check(name, place, kind, compiled_model, backend)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "place"), cases(every_place=False))
def test_each_method_in_a_compiled_function(name: str, place: str):
    check(name, place, "separate", compiled_function, "eager")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "place"), cases(every_place=True))
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@KINDS
def test_each_method_at_each_place(kind: str, way: Callable[..., Forward], name: str, place: str):
    check(name, place, kind, way, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(("name", "place"), [("gradnorm", "layer"), ("mgda", "features"), ("famo", "")])
def test_what_may_be_compiled(way: Callable[..., Forward], name: str, place: str):
    check(name, place, "separate", way, "aot_eager")


@pytest.mark.parametrize("optimises", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "place"),
    [("gradnorm", "layer"), ("mgda", "features"), ("uncertainty", ""), ("pcgrad", "trunk"), ("moco", "trunk")],
)
def test_a_whole_step_in_a_compiled_function(name: str, place: str, optimises: bool):
    """The backward pass, too, and the optimiser's step."""
    results = []
    for compiles in (False, True):
        net = build("separate")
        balancer = make(name, place, net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.02)

        def step(x: Tensor, net: Any = net, balancer: LossBalancer = balancer, optimizer: Any = optimizer) -> Tensor:
            loss = balancer(losses_of(net(x), x))
            loss.backward()
            if optimises:
                optimizer.step()
                optimizer.zero_grad()
            return loss.detach()

        train = torch.compile(step, backend="eager") if compiles else step
        values = [train(x) for x in nets.inputs("linear", STEPS)]
        gradients = [] if optimises else [parameter.grad for parameter in net.parameters()]
        results.append([*values, *gradients, *net.parameters(), *balancer.state_dict().values()])
    same(*results)


@pytest.mark.slow
def test_after_step_in_a_compiled_function():
    results = []
    for compiles in (False, True):
        balancer = FAMO(TASKS)
        net = build("separate")

        def look(x: Tensor, net: Any = net, balancer: FAMO = balancer) -> None:
            balancer.after_step([0.9 * loss.detach() for loss in losses_of(net(x), x)])

        look_again = torch.compile(look, backend="eager") if compiles else look
        for x in nets.inputs("linear", STEPS):
            balancer(losses_of(net(x), x)).backward()
            look_again(x)
        results.append(list(balancer.state_dict().values()))
    same(*results)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "place"), [("gradnorm", "layer"), ("mgda", "features"), ("uncertainty", "")])
def test_held_weights_in_a_compiled_function(name: str, place: str):
    results = []
    for compiles in (False, True):
        net = build("separate")
        balancer = make(name, place, net)

        def total(x: Tensor, net: Any = net, balancer: LossBalancer = balancer) -> Tensor:
            with balancer.held():
                loss = balancer(losses_of(net(x), x))
                loss.backward()
            return loss.detach()

        function = torch.compile(total, backend="eager") if compiles else total
        values = [function(x) for x in nets.inputs("linear", STEPS)]
        results.append([*values, *(parameter.grad for parameter in net.parameters()), balancer.weights])
    same(*results)


@pytest.mark.parametrize(("name", "place"), [("gradnorm", "features"), ("uncertainty", "")])
def test_weights_and_statistics_read_in_a_compiled_function(name: str, place: str):
    net = build("separate")
    balancer = make(name, place, net)

    def read(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss = balancer(losses_of(net(x), x))
        return loss, 2 * balancer.weights, balancer.statistics["losses"].sum()

    compiled = torch.compile(read, backend="eager")
    for x in nets.inputs("linear", STEPS):
        loss, weights, total = compiled(x)
        same([weights, total], [2 * balancer.weights, sum(losses_of(net(x), x)).detach()])
        loss.backward()


@pytest.mark.slow
@KINDS
@pytest.mark.parametrize("name", ["gradnorm", "mgda"])
def test_update_every_with_a_compiled_model(kind: str, name: str):
    """The fork is read in every second step: the model has a graph for each."""
    plain, net = build(kind), build(kind)
    one, other = get(name)(plain.fork, update_every=2), get(name)(net.fork, update_every=2)
    model = torch.compile(net, backend="eager")
    x = nets.inputs("linear", 1)[0]
    for _ in range(2 * STEPS):
        plain.zero_grad()
        net.zero_grad()
        one(losses_of(plain(x), x)).backward()
        other(losses_of(model(x), x)).backward()
        same([parameter.grad for parameter in net.parameters()], [p.grad for p in plain.parameters()])
    same(list(other.state_dict().values()), list(one.state_dict().values()))


@pytest.mark.slow
@KINDS
def test_a_balancer_made_after_the_model_was_compiled(kind: str):
    """The model is compiled anew when a balancer begins to read the fork, and when it goes."""
    net = build(kind)
    model = torch.compile(net, backend="eager")
    x = nets.inputs("linear", 1)[0]

    def gradients(loss: Tensor) -> list[Tensor]:
        net.zero_grad()
        loss.backward()
        return [parameter.grad.clone() for parameter in net.parameters()]

    plain = gradients(sum(losses_of(model(x), x)))
    balancer = MGDA(net.fork)
    twin = build(kind)
    MGDA(twin.fork)(losses_of(twin(x), x)).backward()
    same(gradients(balancer(losses_of(model(x), x))), [parameter.grad for parameter in twin.parameters()])
    del balancer
    gc.collect()
    assert not net.fork.reading.recording
    same(gradients(sum(losses_of(model(x), x))), plain)


@pytest.mark.slow
@KINDS
@pytest.mark.parametrize("name", ["gradnorm", "mgda"])
def test_a_compiled_model_in_eval_mode_and_without_gradients(kind: str, name: str):
    net, plain = build(kind), build(kind)
    balancer, expected = get(name)(net.fork), get(name)(plain.fork)
    model = torch.compile(net, backend="eager")
    x = nets.inputs("linear", 1)[0]
    for mode in (True, False, True):
        net.train(mode)
        with torch.no_grad():
            same(losses_of(model(x), x), losses_of(plain(x), x))
            balancer(losses_of(model(x), x))
        balancer(losses_of(model(x), x)).backward()
        expected(losses_of(plain(x), x)).backward()
    same(list(balancer.state_dict().values()), list(expected.state_dict().values()))


# One graph.


@KINDS
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["equal", "uncertainty", "gradnorm"])
def test_one_graph_where_no_balancer_reads_the_fork(kind: str, name: str, backend: str):
    net, plain = build(kind), build(kind)
    balancer = {
        "equal": lambda: EqualWeighting(TASKS),
        "uncertainty": lambda: UncertaintyWeighting(TASKS),
        "gradnorm": lambda: GradNorm(None, wrt=net.trunk, tasks=TASKS),
    }[name]()
    model = torch.compile(net, fullgraph=True, backend=backend)
    for x in nets.inputs("linear", STEPS):
        net.zero_grad()
        plain.zero_grad()
        balancer(losses_of(model(x), x)).backward()
        weights = balancer.weights
        sum(w * loss for w, loss in zip(weights, losses_of(plain(x), x), strict=True)).backward()
        same([parameter.grad for parameter in net.parameters()], [p.grad for p in plain.parameters()])


@pytest.mark.slow
@KINDS
def test_one_graph_after_the_last_balancer_is_gone(kind: str):
    net = build(kind)
    balancer = GradNorm(net.fork)
    x = nets.inputs("linear", 1)[0]
    balancer(losses_of(net(x), x)).backward()
    del balancer
    gc.collect()
    sum(losses_of(torch.compile(net, fullgraph=True, backend="eager")(x), x)).backward()


@KINDS
def test_one_graph_of_a_copy(kind: str):
    """A copied fork has no readers."""
    net = build(kind)
    balancer = GradNorm(net.fork)
    other = copy.deepcopy(net)
    x = nets.inputs("linear", 1)[0]
    sum(losses_of(torch.compile(other, fullgraph=True, backend="eager")(x), x)).backward()
    balancer(losses_of(net(x), x)).backward()


@KINDS
@pytest.mark.parametrize("first", [False, True], ids=["compiled before", "compiled after"])
def test_one_graph_where_a_balancer_reads_the_fork_is_refused(kind: str, first: bool):
    net = build(kind)
    x = nets.inputs("linear", 1)[0]
    balancer = MGDA(net.fork) if first else None
    model = torch.compile(net, fullgraph=True, backend="eager")
    if not first:
        model(x)
        balancer = MGDA(net.fork)
    with pytest.raises(Exception, match="a fork that a balancer reads"):
        balancer(losses_of(model(x), x))


@KINDS
def test_one_graph_without_gradients(kind: str):
    """Nothing is shown to a balancer then, so that a trained model can be compiled as a whole to be used."""
    net = build(kind)
    balancer = MGDA(net.fork)
    x = nets.inputs("linear", 1)[0]
    balancer(losses_of(net(x), x)).backward()
    model = torch.compile(net.eval(), fullgraph=True, backend="eager")
    with torch.no_grad():
        same(losses_of(model(x), x), losses_of(net(x), x))


@pytest.mark.parametrize(("name", "place"), [("mgda", "features"), ("gradnorm", "parameters"), ("uncertainty", "")])
def test_one_graph_of_a_balancer_is_refused(name: str, place: str):
    net = build("separate")
    balancer = make(name, place, net)
    x = nets.inputs("linear", 1)[0]
    function = torch.compile(lambda losses: balancer(losses), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="a balancer measures with hooks"):
        function(losses_of(net(x), x))


@KINDS
def test_an_exported_model(kind: str):
    """A model that a balancer reads can be exported, and gives the same outputs."""
    net = build(kind)
    balancer = GradNorm(net.fork)
    x = nets.inputs("linear", 1)[0]
    balancer(losses_of(net(x), x)).backward()
    with torch.no_grad():
        exported = torch.export.export(net.eval(), (x,)).module()
        same(losses_of(exported(x), x), losses_of(net(x), x))


@pytest.mark.parametrize("name", ["gradnorm", "mgda"])
def test_a_traced_model_is_refused(name: str):
    """`torch.jit.trace` records operators, not hooks."""
    net = build("separate")
    balancer = get(name)(net.fork)
    x = nets.inputs("linear", 1)[0]
    net.forward = lambda x, forward=net.forward: tuple(forward(x))
    traced = torch.jit.trace(net, (x,), check_trace=False)
    with pytest.raises(ForkError, match="fork"):
        balancer(losses_of(list(traced(x)), x)).backward()
    balancer(losses_of(net(x), x)).backward()


# Compiled parts that are differentiated more than once.


@pytest.mark.slow
@KINDS
@pytest.mark.parametrize("name", ["gradnorm", "mgda"])
def test_batches_of_changing_size_at_the_features(kind: str, name: str):
    """The compiler makes a graph for any size when the second one comes, such as an epoch's last, smaller batch."""
    net, plain = build(kind), build(kind)
    balancer, expected = make(name, "features", net), make(name, "features", plain)
    model = torch.compile(net, backend="aot_eager")
    for t, x in enumerate(nets.inputs("linear", 2 * STEPS)):
        x = x[: 4 - t % 3]
        net.zero_grad()
        plain.zero_grad()
        balancer(losses_of(model(x), x)).backward()
        expected(losses_of(plain(x), x)).backward()
        same([parameter.grad for parameter in net.parameters()], [p.grad for p in plain.parameters()])
    same(list(balancer.state_dict().values()), list(expected.state_dict().values()))


@pytest.mark.parametrize("place", ["layer", "parameters"])
@pytest.mark.parametrize("name", ["gradnorm", "mgda"])
@pytest.mark.parametrize("donates", others_slow([False, True], True))
def test_batches_of_changing_size_at_the_trunk(name: str, place: str, donates: bool):
    """Such a graph may be differentiated once, unless the compiler was told; PyTorch's message names no balancer."""
    net, plain = build("separate"), build("separate")
    balancer, expected = make(name, place, net), make(name, place, plain)
    with torch._functorch.config.patch(donated_buffer=donates):
        trunk = torch.compile(net.trunk, backend="aot_eager")

        def step(x: Tensor) -> None:
            net.zero_grad()
            balancer(losses_of(net.outputs([net.fork(trunk(x))]), x)).backward()

        if donates:
            step(nets.inputs("linear", 1)[0])
            with pytest.raises(ForkError, match="donated_buffer"):
                step(nets.inputs("linear", 1)[0][:3])
            return
        for t, x in enumerate(nets.inputs("linear", 2 * STEPS)):
            step(x[: 4 - t % 3])
            plain.zero_grad()
            expected(losses_of(plain(x[: 4 - t % 3]), x[: 4 - t % 3])).backward()
            same([parameter.grad for parameter in net.parameters()], [p.grad for p in plain.parameters()])


# With other things around.


@KINDS
@pytest.mark.parametrize("place", ["layer", "parameters"])
def test_a_compiled_trunk_in_a_checkpoint(kind: str, place: str):
    results = []
    for compiles in (False, True):
        net = build(kind)
        balancer = make("mgda", place, net)
        trunk = torch.compile(net.trunk, backend="aot_eager") if compiles else net.trunk
        for x in nets.inputs("linear", STEPS):
            net.zero_grad()
            z = torch.utils.checkpoint.checkpoint(trunk, x, use_reentrant=False)
            outputs = net.outputs([net.fork(z)]) if kind == "separate" else net.outputs(z)
            balancer(losses_of(outputs, x)).backward()
        results.append([*(parameter.grad for parameter in net.parameters()), balancer.weights])
    same(*results)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gradnorm", "mgda"])
def test_a_compiled_model_under_ddp(name: str):
    """DDP splits the graph of a model that is compiled."""
    results = []
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        for compiles in (False, True):
            net = build("separate")
            balancer = make(name, "layer", net)
            model: nn.Module = DistributedDataParallel(net)
            model = torch.compile(model, backend="aot_eager") if compiles else model
            for x in nets.inputs("linear", STEPS):
                net.zero_grad()
                balancer(losses_of(model(x), x)).backward()
            results.append([*(parameter.grad for parameter in net.parameters()), balancer.weights])
    finally:
        dist.destroy_process_group()
    same(*results)
