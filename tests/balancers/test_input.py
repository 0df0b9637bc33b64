"""Wrong input is refused at once, and the message names the argument, what was expected and what came."""

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from balancers import (
    EqualWeighting,
    Fork,
    GradientBalancer,
    GradNorm,
    LossBalancer,
    StaticWeighting,
    UncertaintyWeighting,
    create,
    get,
)

from .nets import build


def loss(value: Any = 1.0, **options: Any) -> Tensor:
    return torch.tensor(value, **{"requires_grad": True} | options)


def refused(error: type[Exception], words: list[str], call: Callable[[], Any]) -> None:
    with pytest.raises(error) as caught:
        call()
    assert caught.type is error
    message = str(caught.value)
    for word in words:
        assert re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message), f"{word!r} is not in {message!r}"


LOSSES: dict[str, tuple[Callable[[], Any], type[Exception], list[str]]] = {
    "too few": (lambda: [loss()], ValueError, ["losses has 1 entry", "2 tasks (depth, normals)"]),
    "too many": (lambda: [loss()] * 3, ValueError, ["losses has 3 entries", "2 tasks (depth, normals)"]),
    "none": (lambda: [], ValueError, ["losses has 0 entries", "2 tasks"]),
    "long tensor": (lambda: loss([1.0, 2.0, 3.0]), ValueError, ["losses", "(3,)", "(2,)", "2 tasks"]),
    "one scalar": (lambda: loss(), ValueError, ["losses", "()", "(2,)"]),
    "per sample": (lambda: [loss(), loss([1.0, 2.0])], ValueError, ["task 'normals'", "(2,)", "scalar"]),
    "shape (1,)": (lambda: [loss([1.0]), loss()], ValueError, ["task 'depth'", "(1,)", "scalar"]),
    "detached": (lambda: [loss(), loss().detach()], ValueError, ["task 'normals'", "does not require grad"]),
    "detached tensor": (lambda: loss([1.0, 2.0]).detach(), ValueError, ["losses", "does not require grad"]),
    "detached in dict": (
        lambda: {"normals": loss().detach(), "depth": loss()},
        ValueError,
        ["task 'normals'", "does not require grad"],
    ),
    "float": (lambda: [loss(), 0.5], TypeError, ["task 'normals'", "float", "scalar tensor"]),
    "None": (lambda: {"depth": None, "normals": loss()}, TypeError, ["task 'depth' is None", "leave it out"]),
    "integers": (
        lambda: [torch.tensor(1), loss()],
        TypeError,
        ["task 'depth'", "torch.int64", "floating-point"],
    ),
    "integer tensor": (lambda: torch.tensor([1, 2]), TypeError, ["losses", "torch.int64", "floating-point"]),
    "complex": (lambda: [loss(1j), loss()], TypeError, ["task 'depth'", "torch.complex64"]),
    "one float": (lambda: 3.0, TypeError, ["losses", "float", "list", "dict"]),
    "generator": (lambda: (loss() for _ in range(2)), TypeError, ["losses", "generator"]),
    "unknown task": (
        lambda: {"depth": loss(), "normal": loss()},
        ValueError,
        ["losses", "'normal'", "(depth, normals)"],
    ),
    "empty dict": (lambda: {}, ValueError, ["losses is empty", "2 tasks (depth, normals)"]),
}


@pytest.mark.parametrize("method", ["equal", "gradnorm"])
@pytest.mark.parametrize("case", LOSSES)
def test_losses(case: str, method: str):
    make, error, words = LOSSES[case]
    names = ["depth", "normals"]
    balancer = EqualWeighting(names) if method == "equal" else GradNorm(Fork(2), tasks=names)
    before = {key: value.clone() for key, value in balancer.named_buffers()}
    refused(error, words, lambda: balancer(make()))
    assert all(value.equal(before[key]) for key, value in balancer.named_buffers())


def test_unnamed_tasks_are_called_by_number():
    refused(ValueError, ["task 1", "(2,)"], lambda: EqualWeighting(2)([loss(), loss([1.0, 2.0])]))


def test_a_first_dict_has_to_name_every_task():
    balancer = EqualWeighting(2)
    refused(ValueError, ["losses", "(a)", "2 tasks", "tasks=[...]"], lambda: balancer({"a": loss()}))
    balancer({"a": loss(), "b": loss()})
    refused(ValueError, ["'c'", "2 tasks (a, b)"], lambda: balancer({"a": loss(), "c": loss()}))


def test_a_refused_first_dict_gives_no_names():
    balancer = EqualWeighting(2)
    refused(TypeError, ["float"], lambda: balancer({"typo": 1.0, "b": loss()}))
    balancer({"a": loss(), "b": loss()})
    assert balancer.tasks == ("a", "b")


def test_names_of_tasks_must_be_strings():
    refused(TypeError, ["losses", "0"], lambda: EqualWeighting(2)({0: loss(), 1: loss()}))
    refused(TypeError, ["tasks", "0"], lambda: EqualWeighting([0, 1]))


def test_losses_need_no_gradient_in_an_evaluation():
    for balancer in (EqualWeighting(2), GradNorm(Fork(2))):
        values = [torch.tensor(1.0), torch.tensor(2.0)]
        with torch.no_grad():
            assert balancer(values) == 3
        assert balancer.eval()(values) == 3


NET = build("linear", 2)
FROZEN = nn.Linear(2, 2).requires_grad_(False)
NAMED = {"tasks": ["a", "b"]}

ARGUMENTS: dict[str, tuple[Callable[[], Any], type[Exception], list[str]]] = {
    "no task": (lambda: EqualWeighting(0), ValueError, ["tasks is 0", "1 or more"]),
    "no name": (lambda: EqualWeighting([]), ValueError, ["tasks is []", "1 or more"]),
    "a string": (lambda: EqualWeighting("ab"), ValueError, ["tasks is 'ab'", "list of their names"]),
    "a fork": (
        lambda: EqualWeighting(Fork(2)),
        TypeError,
        ["tasks is of type Fork", "number of tasks", "names", "create(name, fork)"],
    ),
    "no whole number": (lambda: EqualWeighting(2.0), TypeError, ["tasks is of type float", "number of tasks"]),
    "tasks of no kind": (lambda: GradNorm(Fork(2), tasks=2.0), TypeError, ["tasks is of type float"]),
    "twice": (lambda: EqualWeighting(["a", "b", "a"]), ValueError, ["tasks", "a, b, a"]),
    "accumulate 0": (lambda: EqualWeighting(2, accumulate=0), ValueError, ["accumulate is 0", "1 or more"]),
    "accumulate -2": (lambda: GradNorm(Fork(2), accumulate=-2), ValueError, ["accumulate is -2", "1 or more"]),
    "accumulate 2.5": (lambda: GradNorm(Fork(2), accumulate=2.5), ValueError, ["accumulate is 2.5", "1 or more"]),
    "fork of none": (lambda: Fork(0), ValueError, ["num_tasks is 0", "at least one"]),
    "alpha -1": (lambda: GradNorm(Fork(2), alpha=-1.0), ValueError, ["alpha is -1.0", "0 or more"]),
    "alpha of text": (lambda: GradNorm(Fork(2), alpha="0.1"), ValueError, ["alpha is '0.1'", "0 or more"]),
    "lr of text": (lambda: UncertaintyWeighting(2, lr="0.1"), ValueError, ["lr is '0.1'", "positive"]),
    "alpha nan": (lambda: GradNorm(Fork(2), alpha=math.nan), ValueError, ["alpha is nan", "0 or more"]),
    "alpha inf": (lambda: GradNorm(Fork(2), alpha=math.inf), ValueError, ["alpha is inf", "0 or more"]),
    "lr 0": (lambda: GradNorm(Fork(2), lr=0.0), ValueError, ["lr is 0.0", "positive"]),
    "lr -1": (lambda: UncertaintyWeighting(2, lr=-1), ValueError, ["lr is -1", "positive"]),
    "lr inf": (lambda: GradNorm(Fork(2), lr=math.inf), ValueError, ["lr is inf", "finite"]),
    "optimizer": (
        lambda: GradNorm(Fork(2), optimizer="adamw"),
        ValueError,
        ["optimizer is 'adamw'", "'adam' or 'sgd'"],
    ),
    "freeze_after": (lambda: GradNorm(Fork(2), freeze_after=-1), ValueError, ["freeze_after is -1", "0 or more"]),
    "few initial losses": (
        lambda: GradNorm(Fork(2), initial_losses=[1.0]),
        ValueError,
        ["initial_losses has 1 entry", "2 tasks"],
    ),
    "initial loss 0": (
        lambda: GradNorm(Fork(2), initial_losses=[1.0, 0.0]),
        ValueError,
        ["initial_losses is [1.0, 0.0]", "positive"],
    ),
    "initial loss nan": (
        lambda: GradNorm(Fork(2), initial_losses=[1.0, math.nan]),
        ValueError,
        ["initial_losses", "nan", "finite", "positive"],
    ),
    "initial names": (
        lambda: GradNorm(Fork(2), initial_losses={"a": 1.0, "c": 1.0}, **NAMED),
        ValueError,
        ["initial_losses", "(a, c)", "(a, b)"],
    ),
    "initial losses of unnamed": (
        lambda: GradNorm(Fork(2), initial_losses={"a": 1.0, "c": 1.0}),
        ValueError,
        ["initial_losses", "2 tasks without names", "tasks=[...]"],
    ),
    "no fork": (lambda: GradNorm(NET, wrt=NET.layer), TypeError, ["fork", "Net", "Fork", "GradNorm(net.fork)"]),
    "tasks for a fork": (lambda: GradNorm(["a", "b"]), TypeError, ["fork", "list", "GradNorm(net.fork)"]),
    "nothing": (lambda: GradNorm(), TypeError, ["GradNorm", "fork", "GradNorm(None, wrt=net.trunk, tasks=[...])"]),
    "nothing but tasks": (lambda: create("pcgrad", tasks=["a", "b"]), TypeError, ["PCGrad", "PCGrad(net.fork)"]),
    "nothing, by name": (lambda: get("gradnorm")(), TypeError, ["GradNorm", "fork", "GradNorm(net.fork)"]),
    "nothing, not at features": (
        lambda: get("inverse-dirichlet")(),
        TypeError,
        ["InverseDirichlet(net.fork, wrt=net.trunk)", "InverseDirichlet(None, wrt=net.trunk, tasks=[...])"],
    ),
    "nothing, without a fork": (lambda: get("moco")(), TypeError, ["write MoCo(None, wrt=net.trunk, tasks=[...])"]),
    "nothing, at a fork alone": (lambda: get("encodec")(), TypeError, ["EnCodecBalancer(net.fork)"]),
    "nothing to measure": (lambda: GradNorm(None, tasks=2), ValueError, ["fork", "wrt", "parameters"]),
    "no tasks": (
        lambda: GradNorm(None, wrt=NET.layer),
        ValueError,
        ["fork", "tasks", "number", "GradNorm(net.fork)", "GradNorm(None, wrt=net.trunk, tasks=[...])"],
    ),
    "tasks of another fork": (
        lambda: GradNorm(Fork(2), tasks=["a", "b", "c"]),
        ValueError,
        ["tasks", "['a', 'b', 'c']", "fork", "2"],
    ),
    "tasks number": (lambda: GradNorm(Fork(2), tasks=3), ValueError, ["tasks is 3", "fork", "2"]),
    "wrt of nothing": (lambda: GradNorm(Fork(2), wrt=nn.ReLU()), ValueError, ["wrt", "ReLU", "without a parameter"]),
    "wrt empty": (lambda: GradNorm(Fork(2), wrt=[]), ValueError, ["wrt holds no parameters"]),
    "wrt frozen": (lambda: GradNorm(Fork(2), wrt=FROZEN), ValueError, ["wrt", "Linear", "requires grad"]),
    "wrt frozen parameter": (
        lambda: GradNorm(Fork(2), wrt=FROZEN.weight),
        ValueError,
        ["wrt", "(2, 2)", "does not require grad"],
    ),
    "wrt of tensors": (lambda: GradNorm(Fork(2), wrt=[torch.ones(2)]), TypeError, ["wrt", "Tensor", "parameters"]),
    "wrt of modules": (lambda: GradNorm(Fork(2), wrt=[NET.layer]), TypeError, ["wrt", "Linear", "parameters"]),
    "wrt a name": (
        lambda: GradNorm(Fork(2), wrt="trunk.2"),
        TypeError,
        ["wrt is of type str", "a module, parameters or None"],
    ),
    "wrt a number": (lambda: GradNorm(Fork(2), wrt=2), TypeError, ["wrt is of type int", "parameters or None"]),
    "likelihood": (
        lambda: UncertaintyWeighting(2, "laplace"),
        ValueError,
        ["likelihoods", "'laplace'", "'gaussian' or 'softmax'"],
    ),
    "few likelihoods": (
        lambda: UncertaintyWeighting(2, ["softmax"]),
        ValueError,
        ["likelihoods has 1 entry", "2 tasks"],
    ),
    "likelihood names": (
        lambda: UncertaintyWeighting(["a", "b"], {"a": "softmax"}),
        ValueError,
        ["likelihoods", "(a)", "(a, b)"],
    ),
    "weights of other tasks": (
        lambda: StaticWeighting({"a": 1.0, "b": 2.0}, tasks=["a", "c"]),
        ValueError,
        ["weights has the tasks ['a', 'b']", "['a', 'c']"],
    ),
    "negative weight": (lambda: StaticWeighting([1.0, -1.0]), ValueError, ["weights", "[1.0, -1.0]", "0 or more"]),
    "zero weights": (lambda: StaticWeighting([0.0, 0.0]), ValueError, ["weights", "not all of them 0"]),
    "nan weight": (lambda: StaticWeighting([1.0, math.nan]), ValueError, ["weights", "nan", "finite"]),
    "weights for others": (
        lambda: StaticWeighting([1.0], tasks=["a", "b"]),
        ValueError,
        ["weights", "2 tasks (a, b)"],
    ),
    "nested weights": (lambda: StaticWeighting([[1.0], [2.0]]), ValueError, ["weights", "(2, 1)", "2 tasks"]),
    "matrix of weights": (lambda: StaticWeighting(torch.ones(2, 2)), ValueError, ["weights", "(2, 2)"]),
    "column of weights": (lambda: StaticWeighting(torch.ones(2, 1)), ValueError, ["weights", "(2, 1)"]),
    "no weights": (lambda: StaticWeighting([]), ValueError, ["weights"]),
    "a fork as weights": (
        lambda: StaticWeighting(Fork(2)),
        TypeError,
        ["weights is of type Fork", "one weight per task"],
    ),
    "one weight": (lambda: StaticWeighting(1.0), TypeError, ["weights is of type float", "one weight per task"]),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments(case: str):
    call, error, words = ARGUMENTS[case]
    refused(error, words, call)


def test_a_signature_says_that_a_fork_is_required():
    assert inspect.signature(GradNorm).parameters["fork"].default is inspect.Parameter.empty
    assert inspect.signature(GradNorm).parameters["wrt"].default is None


def test_a_method_that_overrides_nothing_says_what_to_override():
    class Empty(LossBalancer):
        pass

    refused(NotImplementedError, ["Empty", "weigh"], lambda: Empty(1)([loss()]))


@pytest.mark.parametrize("reads", ["norms", "gramian", "gradients"])
def test_a_method_that_makes_nothing_of_gradients_says_what_to_override(reads: str):
    def run() -> None:
        method = type("Empty", (GradientBalancer,), {"reads": reads, "weigh": lambda self, losses: losses})
        outputs = NET(torch.ones(1, 5, dtype=torch.float64))
        method(None, wrt=NET.layer, tasks=2)([output.sum() for output in outputs]).backward()

    refused(NotImplementedError, ["Empty", "update"], run)


def test_a_set_has_no_order_and_is_refused():
    parameters = list(nn.Linear(2, 2).parameters())
    for kind in (set, frozenset):
        refused(TypeError, ["wrt", "set", "list"], lambda kind=kind: GradNorm(None, wrt=kind(parameters), tasks=2))
        refused(TypeError, ["tasks", "set", "list"], lambda kind=kind: EqualWeighting(kind(["depth", "normals"])))
