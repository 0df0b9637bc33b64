"""Losses and gradients at the edge of what a method is made for: zero, negative, not finite, without a gradient."""

import copy
import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from balancers import CAGrad, Fork, GradientBalancer, LossBalancer, get, names
from balancers.engine.classes.training_warnings import INVALID
from balancers.engine.host_copy import HostCopy

from ..slow_params import others_slow
from .integration import assert_bit_equal
from .needs import supply

TASKS = ("a", "b", "c")
SHARED = 5


class Net(nn.Module):
    """A shared parameter ``theta``, a fork, and one number a head; losses and their gradients are planted.

    Args:
        gradients: of each loss with respect to ``theta``, ``(T, 5)``.
    """

    def __init__(self, gradients: Tensor) -> None:
        super().__init__()
        self.shared = nn.Linear(1, SHARED, bias=False).double()
        nn.init.zeros_(self.shared.weight)
        self.gradients = gradients
        self.fork = Fork(len(gradients))
        self.heads = nn.ParameterList(torch.zeros((), dtype=torch.float64) for _ in gradients)

    def losses(self, values: Sequence[float] | Tensor, forks: bool) -> dict[str, Tensor]:
        """Return losses of these values."""
        theta = self.shared(torch.ones(1, dtype=torch.float64))
        aliases = self.fork(theta) if forks else [theta] * len(self.heads)
        parts = zip(TASKS, values, self.gradients, aliases, self.heads, strict=False)
        return {task: value + (gradient * z).sum() + head for task, value, gradient, z, head in parts}

    @property
    def trunk(self) -> Tensor:
        """The gradient that ``theta`` received, ``(5,)``."""
        return self.shared.weight.grad.flatten()


GRADIENTS = torch.tensor(
    [[1.0, 0.5, 0.0, -0.5, 0.0], [-0.5, 1.0, 0.3, 0.0, 0.2], [0.4, -0.2, 2.0, 0.1, -0.3]], dtype=torch.float64
)
"""Of different lengths; the first two conflict."""


class Problem:
    """Planted losses, and a balancer of one method at one place."""

    def __init__(self, name: str, place: str, gradients: Tensor = GRADIENTS, **options: Any) -> None:
        self.net, self.place = Net(gradients.clone()), place
        make: Callable[..., LossBalancer] = get(name)
        positional: Mapping[str, Sequence[Any]] = {
            "features": [self.net.fork],
            "layer": [self.net.fork, self.net.shared],
            "parameters": [None, self.net.shared],
            "": [[1.0] * len(gradients)] if name == "static" else [],
        }
        options = {"tasks": TASKS[: len(gradients)]} | ({"takes_turns": False} if name == "m-config" else {}) | options
        self.balancer = make(*positional[place], **options)
        supply(self.balancer, lambda: self.net.losses([1.0] * len(gradients), forks=False))

    def step(self, values: Sequence[float] | Tensor, tasks: Sequence[str] = TASKS) -> None:
        """Train one step on losses of these values."""
        self.net.zero_grad()
        losses = self.net.losses(values, forks=self.place in ("features", "layer"))
        self.balancer({task: loss for task, loss in losses.items() if task in tasks}).backward()
        if self.balancer.looks_again:
            self.balancer.after_step({task: 0.9 * loss.detach() for task, loss in losses.items() if task in tasks})

    def state(self) -> dict[str, Tensor]:
        """Return a copy of what was learnt: all that is saved but the last step's weights, and the counters."""
        state = self.balancer.state_dict()
        return {key: value.clone() for key, value in state.items() if key not in ("_extra_state", "last_weights")}


def places(name: str) -> list[str]:
    """Return the places at which a method is defined; one empty name if it reads no gradients."""
    method = get(name)
    if not issubclass(method, GradientBalancer):
        return [""]
    return [place for place in ("features", "layer", "parameters") if place not in method.undefined_for]


def methods(*only: str, where: Callable[[type[LossBalancer]], bool] = lambda method: True) -> pytest.MarkDecorator:
    """Run a test for each method, or those named, at each place; a slow test but where the method's paper measures."""
    found = [
        pytest.param(
            n, place, id="-".join(filter(None, (n, place))), marks=[] if at_home(n, place) else pytest.mark.slow
        )
        for n in only or names()
        if where(get(n))
        for place in places(n)
    ]
    return pytest.mark.parametrize(("name", "place"), found)


def at_home(name: str, place: str) -> bool:
    """Whether the method's paper measures at this place, or, where the method is not defined there, at none."""
    home = getattr(get(name), "default_wrt", "")
    return place == home or home not in places(name)


# Steps that are not valid.


@methods("imtl", "imtl-l")
@pytest.mark.filterwarnings("ignore:imtl.* is made for nonnegative losses:RuntimeWarning")
@pytest.mark.parametrize("optimizer", others_slow(["adam", "sgd"], "adam"))
@pytest.mark.parametrize("bad", [-1.0, -1e-30, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("task", [0, 2])
def test_imtl_scales_stay_at_a_loss_that_is_negative_or_not_finite(
    name: str, place: str, optimizer: str, bad: float, task: int
) -> None:
    problem, calm = Problem(name, place, optimizer=optimizer), Problem(name, place, optimizer=optimizer)
    for t in range(4):
        values = [1.5, 2.0, 0.5 + t]
        for each in (problem, calm):
            each.step(values)
        before = problem.state()
        values[task] = bad
        problem.step(values)
        assert_bit_equal(problem.state(), before)
    assert not calm.balancer.log_scales.eq(0).any()
    assert_bit_equal(problem.state(), calm.state())


@methods("imtl", "imtl-l")
def test_imtl_scales_learn_from_a_loss_of_zero(name: str, place: str) -> None:
    """Its slope is that of the paper's objective, as autograd finds it, and the other tasks learn as ever."""
    problem = Problem(name, place, optimizer="sgd", lr=0.1)
    scales = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([scales], lr=0.1)
    with without_warnings():
        for t in range(20):
            values = torch.tensor([0.0 if t % 2 else 1.5, 2.0, 0.5 + t], dtype=torch.float64)
            problem.step(values)
            optimizer.zero_grad()
            (scales.exp() * values - scales).sum().backward()
            optimizer.step()
            torch.testing.assert_close(problem.balancer.log_scales, scales.detach(), rtol=1e-12, atol=1e-12)


@methods("imtl", "imtl-l")
def test_the_weight_of_a_loss_that_stays_zero_never_becomes_infinite(name: str, place: str) -> None:
    """Infinity times zero is not a number, and would be the end of the network."""
    problem = Problem(name, place, without([0]))
    problem.step([0.0, 2.0, 3.0])
    problem.balancer.log_scales[0] = 1e4
    for _ in range(3):
        problem.step([0.0, 2.0, 3.0])
        assert problem.balancer.weights.isfinite().all()
        assert problem.net.trunk.isfinite().all()


@methods("imtl")
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
def test_imtl_scales_stay_at_gradients_that_are_not_finite(name: str, place: str, optimizer: str, bad: float) -> None:
    """The last of these values is finite, but its square is not."""
    problem, calm = Problem(name, place, optimizer=optimizer), Problem(name, place, optimizer=optimizer)
    for t in range(4):
        for each in (problem, calm):
            each.step([1.0, 2.0, 0.5 + t])
        before = problem.state()
        problem.net.gradients[t % 3, t % SHARED] = bad
        problem.step([1.0, 2.0, 3.0])
        assert not problem.net.trunk.isfinite().all() or bad == 1e200
        problem.net.gradients.copy_(GRADIENTS)
        assert_bit_equal(problem.state(), before)
    assert_bit_equal(problem.state(), calm.state())


@methods("imtl")
def test_imtl_scales_stay_where_the_pass_overflows(name: str, place: str) -> None:
    """A GradScaler's scale that is too large makes gradients infinite, not the losses."""
    problem = Problem(name, place)
    problem.step([1.0, 2.0, 3.0])
    before = problem.state()
    for scale in (math.inf, 1e308):
        losses = problem.net.losses([1.0, 2.0, 3.0], forks=place != "parameters")
        (scale * problem.balancer(losses)).backward()
        assert_bit_equal(problem.state(), before)


@methods(where=lambda method: method.needs_positive_losses)
@pytest.mark.parametrize("bad", [-1.0, 0.0])
def test_a_loss_out_of_the_domain_leaves_the_state_and_the_weights(name: str, place: str, bad: float) -> None:
    """A step's weights that do not depend on its losses are used all the same."""
    problem = Problem(name, place)
    for t in range(3):
        problem.step([1.0 + t, 2.0, 3.0])
    before, weights = problem.state(), problem.balancer.weights
    problem.step([1.0, bad, 3.0])
    assert_bit_equal(problem.state(), before)
    if problem.balancer.combines or "losses" in inspect.signature(problem.balancer.weigh).parameters:
        assert problem.balancer.weights.equal(weights)
    torch.testing.assert_close(problem.net.trunk, problem.balancer.weights @ GRADIENTS, rtol=1e-12, atol=1e-12)


# A satisfied task: its loss is exactly zero, or constant, and it has no gradient.

STAYS = ("db-mtl",)
"""Combining methods that a loss of zero is not valid for: they keep their last weights."""
STOPS = ("mgda",)
"""Methods whose direction is zero by definition: the shortest mean of gradients of which one is zero."""
SLOWS = ("moco",)
"""Methods that come to that in the course of time."""
MEAN = ("cagrad",)
"""Methods that go on along the mean gradient."""
COMPARES = ("vqgan",)
"""Methods that leave a task out where another one, to which they compare it, has no gradient."""
HALTS = ("m-config", "pcd")
"""Methods that follow one task, here the first, and stop where it has no gradient; or wait until each had a step."""


def combining(*, but: Sequence[str] = ()) -> pytest.MarkDecorator:
    return methods(where=lambda method: method.combines and method.name not in but)


SATISFIED: Mapping[str, tuple[float, ...]] = {"one": (0,), "another": (1,), "two": (0, 2)}


def without(satisfied: Sequence[int], gradients: Tensor = GRADIENTS) -> Tensor:
    """Return the gradients with those of some tasks set to zero."""
    zeroed = gradients.clone()
    zeroed[list(satisfied)] = 0.0
    return zeroed


def values_with(satisfied: Sequence[int], value: float) -> list[float]:
    return [value if i in satisfied else 1.0 + i for i in range(len(TASKS))]


def parallel(found: Tensor, expected: Tensor) -> None:
    """Check that two vectors have the same direction, and are not zero."""
    assert found.norm() > 0.1 * expected.norm() > 0
    torch.testing.assert_close(found / found.norm(), expected / expected.norm(), rtol=1e-7, atol=1e-7)


@combining(but=(*STAYS, *STOPS, *SLOWS, *MEAN, *HALTS))
@pytest.mark.parametrize("which", SATISFIED)
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_training_goes_on_for_the_others_as_without_the_satisfied_task(
    name: str, place: str, which: str, value: float
) -> None:
    """The trunk's direction is the one that the method takes for the other tasks alone."""
    satisfied = SATISFIED[which]
    rest = [i for i in range(len(TASKS)) if i not in satisfied]
    problem = Problem(name, place, without(satisfied))
    alone = Problem(name, place)
    for _ in range(3):
        problem.step(values_with(satisfied, value))
        alone.step(values_with(satisfied, 1.0), tasks=[TASKS[i] for i in rest])
        parallel(problem.net.trunk, alone.net.trunk)
        assert all(value.isfinite().all() for value in problem.balancer.state_dict().values())


@combining(but=(*STOPS, *SLOWS, *STAYS, *COMPARES, *HALTS))
@pytest.mark.parametrize("satisfied", [0, 1])
def test_of_two_tasks_the_other_goes_on_along_its_gradient(name: str, place: str, satisfied: int) -> None:
    problem = Problem(name, place, without([satisfied])[:2])
    for _ in range(5):
        problem.step([0.0, 1.0] if satisfied == 0 else [1.0, 0.0])
        parallel(problem.net.trunk, GRADIENTS[1 - satisfied])


@methods("lr-annealing")
def test_lr_annealing_goes_on_where_its_reference_is_satisfied(name: str, place: str) -> None:
    """Multipliers that bring the others' gradients down to the reference's size would end all training."""
    problem = Problem(name, place, without([0]))
    for _ in range(60):
        problem.step([0.0, 1.0, 1.0])
    parallel(problem.net.trunk, without([0]).sum(0))


@methods(*MEAN)
@pytest.mark.parametrize("which", SATISFIED)
@pytest.mark.parametrize("c", [0.0, 0.4, 0.9])
def test_cagrad_goes_on_along_the_mean(name: str, place: str, which: str, c: float) -> None:
    """As its official code does; the mean is over all tasks, the satisfied ones included."""
    gradients = without(SATISFIED[which])
    problem = Problem(name, place, gradients, c=c)
    for _ in range(3):
        problem.step(values_with(SATISFIED[which], 0.0))
        torch.testing.assert_close(problem.net.trunk, gradients.mean(0), rtol=1e-12, atol=1e-14)
        rest = [i for i in range(3) if i not in SATISFIED[which]]
        torch.testing.assert_close(problem.balancer.weights[rest], torch.full((len(rest),), 1 / 3).double())


def test_cagrad_still_stops_where_gradients_cancel() -> None:
    """No task is satisfied there, but the mean gradient is zero."""
    problem = Problem("cagrad", "parameters", torch.stack([GRADIENTS[0], -GRADIENTS[0]]))
    problem.step([1.0, 1.0])
    assert problem.net.trunk.norm() <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cagrad_with_a_task_that_is_almost_satisfied(dtype: torch.dtype) -> None:
    """A gradient far below the others' is no cause to stop either, and the others' training hardly depends on it."""
    solve = CAGrad(None, nn.Linear(1, 1), tasks=3).solve
    for tiny in (1e-3, 1e-6, 1e-12, 1e-20, 0.0):
        gradients = GRADIENTS.clone().to(dtype)
        gradients[0] *= tiny
        direction = solve(gradients @ gradients.mT) @ gradients
        assert torch.dot(direction, gradients.mean(0)) > 0.1 * gradients.mean(0).norm().square()


@methods(*STOPS)
@pytest.mark.parametrize("which", SATISFIED)
def test_mgda_stops_by_definition(name: str, place: str, which: str) -> None:
    """The shortest mean of gradients, of which one is zero, is zero; the weights are still in the simplex."""
    problem = Problem(name, place, without(SATISFIED[which]))
    problem.step(values_with(SATISFIED[which], 0.0))
    weights = problem.balancer.weights
    torch.testing.assert_close(problem.net.trunk, torch.zeros(SHARED).double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(weights.sum(), torch.ones(()).double())
    assert weights.min() >= 0
    if place != "parameters":  # the heads are trained on
        assert all(head.grad == 1 for head in problem.net.heads)


@methods(*SLOWS)
@pytest.mark.parametrize("which", SATISFIED)
def test_moco_stays_in_the_simplex(name: str, place: str, which: str) -> None:
    problem = Problem(name, place, without(SATISFIED[which]))
    for _ in range(20):
        problem.step(values_with(SATISFIED[which], 0.0))
        shares = problem.balancer.shares
        assert shares.min() >= 0
        torch.testing.assert_close(shares.sum(), torch.ones(()).double())
        assert problem.net.trunk.isfinite().all()


@methods(*STAYS)
@pytest.mark.parametrize("which", SATISFIED)
def test_training_goes_on_with_the_last_weights(name: str, place: str, which: str) -> None:
    """Where a loss of zero is not valid; all state stays, and a valid step goes on from there."""
    satisfied = SATISFIED[which]
    problem = Problem(name, place)
    for _ in range(3):
        problem.step([1.0, 2.0, 3.0])
    weights, before = problem.balancer.weights, problem.state()
    problem.net.gradients.copy_(without(satisfied))
    problem.step(values_with(satisfied, 0.0))
    torch.testing.assert_close(problem.net.trunk, weights @ without(satisfied), rtol=1e-10, atol=1e-12)
    assert_bit_equal(problem.state(), before)


@methods("imtl", *STAYS)
def test_a_constant_loss_without_a_gradient_is_valid(name: str, place: str) -> None:
    """Here the loss is positive, so that only its gradient is missing."""
    problem = Problem(name, place, without([0]))
    before = problem.state()
    for _ in range(3):
        problem.step([0.7, 2.0, 3.0])
        assert problem.net.trunk.isfinite().all()
        assert problem.net.trunk.norm() > 1e-3
    assert any(not before[key].equal(value) for key, value in problem.state().items())


@combining()
def test_when_all_tasks_are_satisfied_nothing_moves_and_nothing_breaks(name: str, place: str) -> None:
    problem = Problem(name, place)
    for value in (0.7, 0.0):
        problem.net.gradients.copy_(without([0, 1, 2]))
        for _ in range(3):
            with collected():  # some methods warn of losses that stay zero
                problem.step([value] * 3)
            if name not in ("m-config", "moco", "db-mtl"):  # of which the direction is a moving average
                assert torch.equal(problem.net.trunk, torch.zeros(SHARED).double())
            assert all(part.isfinite().all() for part in problem.balancer.state_dict().values())
        problem.net.gradients.copy_(GRADIENTS)
        problem.step([1.0, 2.0, 3.0])
        assert problem.net.trunk.isfinite().all()
        assert problem.net.trunk.norm() > 1e-6


@methods("gradnorm")
def test_gradnorm_with_a_satisfied_task(name: str, place: str) -> None:
    """A loss of zero is valid: the task has no gradient norm to raise, and the others go on."""
    problem = Problem(name, place, without([0]))
    for _ in range(5):
        problem.step([0.0, 2.0, 3.0])
        assert problem.balancer.next_weights.isfinite().all()
    assert not problem.balancer.next_weights[1:].eq(1).any()
    after = problem.state()
    problem.net.gradients.copy_(without([0, 1, 2]))
    problem.step([0.0, 0.0, 0.0])
    assert all(value.isfinite().all() for value in problem.balancer.state_dict().values())
    assert problem.balancer.next_weights.isfinite().all()
    problem.net.gradients.copy_(GRADIENTS)
    problem.step([1.0, 2.0, 3.0])
    assert not problem.balancer.next_weights.equal(after["next_weights"])


# A task whose loss stays out of the domain: one warning.

STEPS = 30
LIMITED = {name: -1.0 for name in names() if get(name).expects_nonnegative_losses}
LIMITED |= {
    name: -1.0 for name in names() if get(name).needs_positive_losses or get(name).needs_nonnegative_losses is True
}
OPTIONS: Mapping[str, Mapping[str, Any]] = {"softadapt": {"loss_weighted": True}}
"""Options under which a method that takes any loss does not."""


@contextmanager
def collected() -> Iterator[list[str]]:
    """Collect the messages of RuntimeWarnings."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    messages += [str(each.message) for each in caught if issubclass(each.category, RuntimeWarning)]


@contextmanager
def without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def values_at(t: int, **changed: float) -> list[float]:
    """Return the losses of step ``t``, which vary, with some replaced."""
    values = {"a": 1.0 + 0.1 * math.sin(t), "b": 2.0 + 0.1 * math.cos(t), "c": 0.5 + 0.01 * (t % 7)}
    return list((values | changed).values())


def limited() -> pytest.MarkDecorator:
    """Run a test for each of these methods, at the place that its paper measures at."""
    return pytest.mark.parametrize(("name", "place"), [(name, places(name)[-1]) for name in LIMITED], ids=[*LIMITED])


def test_the_methods_of_the_issue_have_a_domain() -> None:
    assert {"gradnorm", "uncertainty", "revised-uncertainty", "imtl-l", "imtl", "famo", "gls", "db-mtl"} <= {*LIMITED}


@limited()
@pytest.mark.parametrize("stays", ["negative", "rarely positive"])
def test_a_loss_that_stays_below_zero_is_told_once(name: str, place: str, stays: str) -> None:
    """The warning names the task and the method, says what follows, and does not come again."""
    problem = Problem(name, place)
    with collected() as messages:
        for t in range(STEPS):
            problem.step(values_at(t, b=0.1 if stays != "negative" and t % 9 == 5 else -1.0))
    assert len(messages) == 1
    assert messages[0].startswith(f"{name} is made for ")
    assert "task 'b'" in messages[0]
    assert "task 'a'" not in messages[0]
    assert "task 'c'" not in messages[0]


@limited()
def test_the_warning_comes_early(name: str, place: str) -> None:
    """Before much of the training is lost."""
    problem = Problem(name, place)
    with collected() as messages:
        for t in range(24):
            problem.step(values_at(t, b=-1.0))
    assert len(messages) == 1


@methods(*(name for name in LIMITED if get(name).needs_positive_losses))
def test_a_loss_that_stays_zero_is_told_once_too(name: str, place: str) -> None:
    problem = Problem(name, place)
    with collected() as messages:
        for t in range(STEPS):
            problem.step(values_at(t, c=0.0))
    assert len(messages) == 1
    assert "task 'c'" in messages[0]


@methods(*(name for name in LIMITED if not get(name).needs_positive_losses))
def test_a_loss_of_zero_is_no_cause_where_it_is_valid(name: str, place: str) -> None:
    problem = Problem(name, place)
    with without_warnings():
        for t in range(STEPS):
            problem.step(values_at(t, c=0.0))


@limited()
def test_all_such_tasks_are_named(name: str, place: str) -> None:
    problem = Problem(name, place)
    with collected() as messages:
        for t in range(STEPS):
            problem.step(values_at(t, a=-0.5, c=-1.0))
    assert len(messages) == 1
    assert "task 'a'" in messages[0]
    assert "task 'c'" in messages[0]
    assert "task 'b'" not in messages[0]


@pytest.mark.parametrize("name", ["gradnorm", "uncertainty", "scale-invariant"])
def test_a_single_stray_value_is_not_told(name: str) -> None:
    """At whatever step it comes."""
    for stray in range(24):
        problem = Problem(name, places(name)[0])
        with without_warnings():
            for t in range(24):
                problem.step(values_at(t, b=-1.0 if t == stray else 2.0))


@methods("scale-invariant", "imtl-l", "cov", "gradnorm", "uncertainty", "dwa")
@pytest.mark.parametrize("every", [2, 3])
def test_a_loss_that_is_out_of_the_domain_now_and_then_is_told(name: str, place: str, every: int) -> None:
    """As that of batches without positives, of which there are never three in a row."""
    problem = Problem(name, place)
    with collected() as messages:
        for t in range(STEPS):
            problem.step(values_at(t, b=2.0 if t % every else LIMITED[name]))
    [message] = messages
    assert "task 'b'" in message
    assert "task 'a'" not in message


def test_the_warning_says_what_such_losses_do() -> None:
    """Each effect is seen in the weights of the same steps."""
    effects = {
        "dwa": "the task may count as constant",
        "uncertainty": "its weight grows",
        "imtl-l": "no weight changes",
    }
    for name, effect in effects.items():
        problem = Problem(name, "", **({"period": 1} if name == "dwa" else {}))
        with collected() as messages:
            shown = []
            for t in range(8):
                problem.step([1.0, -1.0 - t, 1.0])
                shown.append(problem.balancer.weights[1].item())
        [message] = messages
        assert f"in such steps {effect}" in message
        if name == "uncertainty":
            assert shown == sorted(set(shown))
        else:
            assert set(shown) == {1.0}


@limited()
def test_losses_within_the_domain_are_not_told(name: str, place: str) -> None:
    problem = Problem(name, place)
    with without_warnings():
        for t in range(STEPS):
            problem.step(values_at(t))


@methods(where=lambda method: method.name not in LIMITED and not method.combines)
def test_methods_that_weigh_any_loss_say_nothing(name: str, place: str) -> None:
    """And their weights stay finite."""
    problem = Problem(name, place)
    with without_warnings():
        for t in range(STEPS):
            problem.step(values_at(t, b=-1.0, c=0.0))
    assert problem.balancer.weights.isfinite().all()


def test_softadapt_says_so_only_if_it_weighs_by_the_losses() -> None:
    for options, number in (({}, 0), ({"loss_weighted": True}, 1)):
        problem = Problem("softadapt", "", period=2, **options)
        with collected() as messages:
            for t in range(STEPS):
                problem.step(values_at(t, b=-1.0))
        assert len(messages) == number


@methods(where=lambda method: method.name not in LIMITED and method.combines)
def test_methods_that_combine_do_not_care_about_the_losses(name: str, place: str) -> None:
    """Neither value nor sign makes a difference to the trunk."""
    problem, other = Problem(name, place), Problem(name, place)
    with without_warnings():
        for t in range(STEPS // 2):
            problem.step(values_at(t, b=-1.0, c=0.0))
            other.step(values_at(t))
            assert problem.net.trunk.equal(other.net.trunk)


@limited()
def test_the_methods_that_the_warning_names_fit(name: str, place: str) -> None:
    """Each takes the same losses, moves or holds its weights as it should, and says nothing."""
    problem = Problem(name, place)
    with collected() as messages:
        for t in range(STEPS):
            problem.step(values_at(t, b=-1.0))
    [message] = messages
    advice = message[message.index("Methods that take any loss") :]
    named = [other for other in names() if re.search(rf"(?<![\w-]){re.escape(other)}(?![\w-])", advice)]
    assert len(named) >= 2
    assert not {*named} & {*LIMITED}
    for other in {"dwa", "softadapt"} & {*named}:
        # A loss that falls from -1 towards -2 learns well: it must not count as one that rises.
        advised = Problem(other, "", period=2)
        for t in range(8):
            advised.step([1.0, -1.0 - 0.3 * (t // 2), 1.0])
        falling, constant = advised.balancer.next_weights[:2].flip(0)
        assert falling <= constant, f"{other} is no method for losses below zero"


@methods("gradnorm", "uncertainty", "imtl")
def test_an_advised_shift_works(name: str, place: str) -> None:
    """The warning's other advice: shift the loss by a lower bound of its values."""
    problem = Problem(name, place)
    with without_warnings():
        for t in range(STEPS):
            problem.step(values_at(t, b=-1.0 + 3.0))


@limited()
def test_a_task_seen_in_turns_is_told_as_well(name: str, place: str) -> None:
    """Two tasks take turns, so that each look at the losses could meet the same one."""
    for bad in "ab":
        problem = Problem(name, place)
        with collected() as messages:
            for t in range(40):
                problem.step(values_at(t, **{bad: -1.0}), tasks=("a", "c") if t % 2 else ("b", "c"))
        assert sum(f"task {bad!r}" in message for message in messages) == 1
        assert len(messages) == 1


@methods("gradnorm", "uncertainty", "imtl-l")
def test_within_windows_and_turns(name: str, place: str) -> None:
    for options in ({"accumulate": 2}, *([{"update_every": 2}] if place else [])):
        problem = Problem(name, place, **options)
        with collected() as messages:
            for t in range(2 * STEPS):
                problem.step(values_at(t, b=-1.0))
        assert len(messages) == 1


@pytest.mark.parametrize(("name", "place"), [("gradnorm", "layer"), ("uncertainty", ""), ("scale-invariant", "")])
@pytest.mark.parametrize("mode", ["eval", "no_grad"])
def test_what_does_not_learn_says_nothing(name: str, place: str, mode: str) -> None:
    problem = Problem(name, place)
    problem.step(values_at(0))
    with without_warnings():
        if mode == "eval":
            problem.balancer.eval()
            for t in range(STEPS):
                losses = problem.net.losses(values_at(t, b=-1.0), forks=place != "parameters")
                problem.balancer(losses).backward()
        else:
            with torch.no_grad():
                for t in range(STEPS):
                    problem.balancer(problem.net.losses(values_at(t, b=-1.0), forks=place != "parameters"))


@limited()
def test_the_warning_is_not_saved_with_the_state(name: str, place: str) -> None:
    """A balancer that goes on from a checkpoint tells its user anew; a copy that knows does not."""
    problem = Problem(name, place)
    with collected():
        for t in range(STEPS):
            problem.step(values_at(t, b=-1.0))
    loaded = Problem(name, place)
    loaded.balancer.load_state_dict(problem.balancer.state_dict())
    twin = copy.deepcopy(problem)
    for each, number in ((loaded, 1), (twin, 0)):
        with collected() as messages:
            for t in range(STEPS):
                each.step(values_at(t, b=-1.0))
        assert len(messages) == number


@limited()
def test_the_value_is_polled_and_never_waited_for(name: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device whose answer takes long, the warning comes when it is there, and no step waits."""
    arrived = [False]
    monkeypatch.setattr(HostCopy, "is_known", lambda self: arrived[0])
    problem = Problem(name, place)
    with without_warnings():
        for t in range(STEPS):
            problem.step(values_at(t, b=-1.0))
    arrived[0] = True
    with collected() as messages:
        for t in range(STEPS):
            problem.step(values_at(t, b=-1.0))
    assert len(messages) == 1


@limited()
def test_an_error_made_of_the_warning_leaves_a_balancer_that_works(name: str, place: str) -> None:
    """With ``-W error`` the warning is raised amid a step. It is raised once, and training can go on."""
    problem = Problem(name, place)
    raised = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for t in range(STEPS):
            try:
                problem.step(values_at(t, b=-1.0))
            except RuntimeWarning:
                raised += 1
        assert raised == 1
        for t in range(5):
            problem.step(values_at(t))
    assert problem.net.trunk.isfinite().all()


@methods("gls", "scale-invariant", "gradnorm", "uncertainty", "imtl-l", "analytic-uncertainty", "cov", "relobralo")
def test_nothing_is_read_from_a_device_without_answers(name: str, place: str) -> None:
    """On ``meta``, reading a value raises; a step with losses of any sign runs."""
    with torch.device("meta"):
        trunk, fork = nn.Linear(3, 4), Fork(3)
        heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(3))
        x = torch.randn(5, 3)
    make: Callable[..., LossBalancer] = get(name)
    positional = {"": [3], "features": [fork], "layer": [fork, trunk], "parameters": [None, trunk]}[place]
    balancer = make(*positional, **({"tasks": 3} if place == "parameters" else {}))
    balancer.to("meta")
    with without_warnings():
        for _ in range(STEPS // 2):
            aliases = fork(trunk(x)) if place != "parameters" else [trunk(x)] * 3
            losses = [head(z).mean() - 1 for head, z in zip(heads, aliases, strict=True)]
            balancer(losses).backward()
    assert balancer.weights.device.type == "meta"


# One task a step (what `accumulate` is for) is another matter than a domain.


@methods("uncertainty", "revised-uncertainty", "imtl-l")
def test_methods_whose_tasks_learn_by_themselves_may_see_one_task_a_step(name: str, place: str) -> None:
    """They compare no tasks, so there is nothing to warn of: each learns what it learns from its own losses."""
    problem, alone = Problem(name, place), Problem(name, place)
    with without_warnings():
        for t in range(30):
            problem.step(values_at(t), tasks=[TASKS[t % 3]])
            if t % 3 == 1:
                alone.step(values_at(t), tasks=["b"])
    state = "log_scales" if name == "imtl-l" else "log_variances"
    assert getattr(problem.balancer, state).ne(0).all()


BY_THEMSELVES = (
    *("uncertainty", "revised-uncertainty", "imtl-l", "scale-invariant", "self-adaptive"),
    *("unit-norm", "encodec"),  # each task by its own norm
    "auto-lambda",  # by what a task's gradient does for the primary tasks
)
"""Methods that weigh a task as they would without the others, up to a common factor."""
OVER_STEPS = ("dwa", "softadapt", "m-config")
"""Methods that compare what tasks showed in steps of their own."""
BLIND = ("equal", "static", "random")
EACH_STEP = {"ntk": {"update_every": 1}}
"""Options with which each step is an update."""
BY_WINDOWS = ("gradnorm", "cov")
"""Methods that compare tasks in their updates alone, so that a window of passes will do."""


@methods()
def test_a_method_that_compares_tasks_is_told_where_each_step_has_one(name: str, place: str) -> None:
    problem = Problem(name, place, **EACH_STEP.get(name, {}))
    with collected() as messages:
        for t in range(12):
            problem.step(values_at(t), tasks=[TASKS[t % 3]])
    if name in BY_THEMSELVES + OVER_STEPS + BLIND:
        assert messages == []
        return
    [message] = messages  # once
    assert f"{name} compares tasks" in message
    assert ("accumulate=3" if name in BY_WINDOWS else "several tasks in one call") in message


@methods()
def test_a_step_with_two_tasks_in_between_is_enough(name: str, place: str) -> None:
    problem = Problem(name, place)
    with without_warnings():
        for t in range(24):
            problem.step(values_at(t), tasks=[TASKS[t % 3]] if t % 4 else TASKS[:2])


@methods(*BY_WINDOWS)
def test_the_remedy_is_one(name: str, place: str) -> None:
    told = Problem(name, place, accumulate=3)
    with without_warnings():
        for t in range(30):
            told.step(values_at(t), tasks=[TASKS[t % 3]])
    assert told.balancer.weights.unique().numel() > 1


# Steps of which none is valid.


@methods(where=lambda method: method.name not in BLIND)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_losses_that_are_never_finite_are_told_of_once(name: str, place: str, bad: float) -> None:
    problem = Problem(name, place, **EACH_STEP.get(name, {}))
    with collected() as messages:
        for _ in range(2 * INVALID):
            problem.step([1.0, bad, 3.0])
    [message] = messages
    assert f"{name} skipped its first {INVALID} updates" in message
    assert "the loss of task 'b' was not finite" in message


@methods()
def test_an_overflow_in_the_first_steps_is_nothing_to_tell(name: str, place: str) -> None:
    """A GradScaler's first steps, and a single bad step later on."""
    problem = Problem(name, place, **EACH_STEP.get(name, {}))
    with without_warnings():
        for _ in range(INVALID - 1):
            problem.step([1.0, math.nan, 3.0])
        for t in range(3):
            problem.step(values_at(t))
        for _ in range(2 * INVALID):
            problem.step([1.0, math.nan, 3.0])


@methods("gradnorm", "mgda")
def test_gradients_that_are_never_finite_are_told_of(name: str, place: str) -> None:
    problem = Problem(name, place)
    problem.net.gradients[1, 2] = math.nan
    with collected() as messages:
        for t in range(INVALID):
            losses = problem.net.losses(values_at(t), forks=place != "parameters")
            problem.balancer({task: loss.nan_to_num(1.0) for task, loss in losses.items()}).backward()
    assert len(messages) == 1
    assert "a gradient" in messages[0]


def test_a_method_that_stopped_learning_skips_nothing() -> None:
    """A checkpoint of one that has settled is loaded: no update is made from then on, and nothing is wrong."""
    problem = Problem("inverse-loss", "")
    for t in range(5):
        problem.step(values_at(t))
    loaded = Problem("inverse-loss", "")
    loaded.balancer.load_state_dict(problem.balancer.state_dict())
    with without_warnings():
        for t in range(2 * INVALID):
            loaded.step(values_at(t))


@methods("gradnorm")
def test_flags_are_polled_and_never_waited_for(name: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived = [False]
    monkeypatch.setattr(HostCopy, "is_known", lambda self: arrived[0])
    problem = Problem(name, place)
    with without_warnings():
        for _ in range(2 * INVALID):
            problem.step([1.0, math.nan, 3.0])
    arrived[0] = True
    with collected() as messages:
        for _ in range(INVALID):
            problem.step([1.0, math.nan, 3.0])
    assert len(messages) == 1
