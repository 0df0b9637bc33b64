"""Weights can be held for several evaluations of one step, and windows end at an optimiser's steps.

The losses are quadratic, so that the value, the gradient and the minimum of any weighted sum of them are known.
"""

import copy
import gc
import inspect
import itertools
import pickle
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from balancers import MGDA, Fork, GradientBalancer, GradNorm, LinearHeads, LossBalancer, get, names

from ..slow_params import others_slow
from .integration import (
    SCALES,
    GradNormReference,
    Net,
    Trajectory,
    assert_bit_equal,
    assert_same,
    flat_gradients,
    in_parts,
    make_batches,
    run_reference,
    sgd,
)
from .needs import supply

TASKS, SHARED, ROWS = 3, 4, 5


class Shared(nn.Module):
    """The shared parameters, as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.5, -1.0, 0.25, 2.0], dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.theta * 1.0


class Quadratics(nn.Module):
    r"""Losses :math:`L_i = \tfrac12 s_i \lVert A_i \theta + h_i - b_i \rVert^2 + 0.1` with heads of one number each."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(47)  # of which tasks conflict, and each is the worst at some point
        self.matrices = torch.randn(TASKS, ROWS, SHARED, generator=generator, dtype=torch.float64)
        self.targets = 3 * torch.randn(TASKS, ROWS, generator=generator, dtype=torch.float64)
        self.scales = torch.tensor([1.0, 0.6, 1.5], dtype=torch.float64)
        self.shared = Shared()
        self.fork = Fork(TASKS)
        self.heads = nn.ParameterList(torch.zeros((), dtype=torch.float64) for _ in range(TASKS))

    def losses(self, forks: bool = True) -> list[Tensor]:
        theta = self.shared()
        aliases = self.fork(theta) if forks else [theta] * TASKS
        residuals = [A @ z + h - b for A, z, h, b in zip(self.matrices, aliases, self.heads, self.targets, strict=True)]
        return [0.5 * s * r.square().sum() + 0.1 for s, r in zip(self.scales, residuals, strict=True)]

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return the least-squares problem of each loss in all parameters, ``(T, R, P)`` and ``(T, R)``."""
        heads = torch.eye(TASKS, dtype=torch.float64)[:, None].expand(TASKS, ROWS, TASKS)
        root = self.scales.sqrt()
        return torch.cat([self.matrices, heads], -1) * root[:, None, None], self.targets * root[:, None]

    def minimum(self, weights: Tensor) -> Tensor:
        """Return the parameters ``(P,)`` that minimise the weighted sum of the losses."""
        A, b = self.rows()
        root = weights.sqrt()
        return torch.linalg.lstsq((A * root[:, None, None]).flatten(0, 1), (b * root[:, None]).flatten()).solution

    def exact(self) -> tuple[Tensor, Tensor]:
        """Return the losses ``(T,)`` and their gradients ``(T, P)`` in closed form."""
        A, b = self.rows()
        residuals = torch.einsum("trp,p->tr", A, self.flat()) - b
        return 0.5 * residuals.square().sum(1) + 0.1, torch.einsum("trp,tr->tp", A, residuals)

    def flat(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters()])

    def gradient(self) -> Tensor:
        return flat_gradients(self)

    @torch.no_grad()
    def put(self, values: Tensor) -> None:
        """Set the parameters to ``values``, ``(P,)``."""
        sizes = [parameter.numel() for parameter in self.parameters()]
        for parameter, part in zip(self.parameters(), values.split(sizes), strict=True):
            parameter.copy_(part.view_as(parameter))

    def move(self, seed: int) -> None:
        """Set the parameters to random numbers."""
        self.put(torch.randn(SHARED + TASKS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


class Problem:
    """Quadratic losses and a balancer of one method at one place."""

    def __init__(self, name: str, place: str, **options: Any) -> None:
        self.net, self.place = Quadratics(), place
        make: Callable[..., LossBalancer] = get(name)
        positional: Mapping[str, Sequence[Any]] = {
            "features": [self.net.fork],
            "layer": [self.net.fork, self.net.shared],
            "parameters": [None, self.net.shared],
            "": [[0.5, 1.0, 2.0]] if name == "static" else [],
        }
        self.balancer = make(*positional[place], **{"tasks": TASKS} | dict(OPTIONS.get(name, {})) | options)
        supply(self.balancer, lambda: self.net.losses(forks=False))

    def losses(self) -> list[Tensor]:
        return self.net.losses(forks=self.place in ("features", "layer"))

    def evaluate(self, factor: float = 1.0) -> Tensor:
        """Run one forward and one backward pass, and return the value."""
        self.net.zero_grad()
        total = self.balancer(self.losses())
        (factor * total).backward()
        return total.detach()

    def after_step(self) -> None:
        """Give the losses after a step to a method that looks at them."""
        if self.balancer.looks_again:
            self.balancer.after_step([loss * 0.9 ** (i + 1) for i, loss in enumerate(self.losses())])

    def begin(self) -> None:
        """Train one ordinary step and one block, after which the weights shown are those of the next step."""
        self.evaluate()
        self.after_step()
        with self.balancer.held():
            self.evaluate()
        self.after_step()

    def state(self) -> dict[str, Tensor]:
        """Return a copy of all that is saved but the weights shown."""
        return {key: value.clone() for key, value in self.balancer.state_dict().items() if key != "last_weights"}


OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "coba": {"window": 4, "warm_up": 1},
    "dwa": {"period": 2},
    "ntk": {"update_every": 1},
    "sdmgrad": {"lr": 0.1},
    "softadapt": {"period": 2, "beta": 2.0},
}
"""Options with which few steps change the weights."""
REPLACING = [name for name in names() if get(name).replaces_gradients]
SOME = ("gradnorm", "mgda", "imtl", "uncertainty", "scale-invariant", "gradvac")
"""One method of each kind: it learns for the next step, solves, does both, reads losses, is a formula, draws."""


def places(name: str) -> list[str]:
    """Return the places at which a method is defined; one empty name if it reads no gradients."""
    method = get(name)
    if not issubclass(method, GradientBalancer):
        return [""]
    return [place for place in ("features", "layer", "parameters") if place not in method.undefined_for]


def methods(
    *only: str, where: Callable[[type[LossBalancer]], bool] = lambda method: not method.replaces_gradients
) -> pytest.MarkDecorator:
    """Run a test for each method, or those named, at each place."""
    chosen = [name for name in only or names() if where(get(name))]
    found = [(name, place) for name in chosen for place in places(name)]
    return pytest.mark.parametrize(("name", "place"), found, ids=["-".join(filter(None, pair)) for pair in found])


def weighs_by_state(balancer: LossBalancer) -> bool:
    """Return whether a step's weights are known before the step."""
    by_state = not balancer.combines and "losses" not in inspect.signature(balancer.weigh).parameters
    return by_state and balancer.when != "forward"


def same(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def assert_is_weighted_sum(problem: Problem, value: Tensor, weights: Tensor) -> None:
    """Check value and gradient against the closed form."""
    losses, gradients = problem.net.exact()
    torch.testing.assert_close(value, weights @ losses, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(problem.net.gradient(), weights @ gradients, rtol=1e-10, atol=1e-10)


# held()


@methods()
def test_inside_a_block_the_objective_is_one_function(name: str, place: str) -> None:
    """At every point, value and gradient are those of the weighted sum with the weights shown before the block."""
    problem = Problem(name, place)
    problem.begin()
    shown = []
    for block in range(5):
        weights = problem.balancer.weights
        shown.append(weights)
        with problem.balancer.held() as balancer:
            assert balancer is problem.balancer
            for point in range(3):
                problem.net.move(10 * block + point)
                assert_is_weighted_sum(problem, problem.evaluate(), weights)
                assert balancer.weights.equal(weights)
        problem.after_step()
    moved = any(not weights.equal(shown[0]) for weights in shown)
    assert (
        moved == (name not in ("equal", "static")) or name == "dual-proj"
    )  # whose weights are equal without a conflict


@methods()
def test_a_block_learns_as_an_ordinary_step_from_its_first_evaluation_alone(name: str, place: str) -> None:
    held, plain = Problem(name, place), Problem(name, place)
    for problem in (held, plain):
        problem.begin()
    for block in range(4):
        for problem in (held, plain):
            problem.net.move(10 * block)
        plain.evaluate()
        with held.balancer.held():
            held.evaluate()
            same(held.state(), plain.state())
            before = held.state()
            for further in range(1, 3):
                held.net.move(10 * block + further)
                held.evaluate()
                assert_bit_equal(held.state(), before)
        for problem in (held, plain):
            problem.net.move(10 * block + 9)
            problem.after_step()
        same(held.state(), plain.state())


@methods()
def test_what_a_block_learnt_applies_after_it(name: str, place: str) -> None:
    """The next block has the weights that an ordinary step at this block's first point has; or those that such a step
    makes for the next one, if they are known ahead. A block with one evaluation of GradNorm is an ordinary step.
    """
    held, plain = Problem(name, place), Problem(name, place)
    for problem in (held, plain):
        problem.begin()
    for block in range(4):
        for problem in (held, plain):
            problem.net.move(10 * block)
        plain.evaluate()
        with held.balancer.held():
            held.evaluate()
            held.net.move(10 * block + 1)
            held.evaluate()
        expected = plain.balancer.weights
        if weighs_by_state(plain.balancer):
            ahead = copy.deepcopy(plain.balancer)
            with torch.no_grad():
                ahead(plain.losses())
            expected = ahead.weights
        same(held.balancer.weights, expected)
        for problem in (held, plain):
            problem.net.move(10 * block + 9)
            problem.after_step()


@methods()
def test_lbfgs_converges_within_a_block(name: str, place: str) -> None:
    """Its closure is one fixed function, so it reaches the minimum of the weighted sum, which is known."""
    problem = Problem(name, place)
    problem.begin()
    weights = problem.balancer.weights
    if weights.min() < 1e-3:  # the sum has no minimum, or hardly one
        weights = weights.abs() + 0.1
        problem.balancer.last_weights.copy_(weights)
    optimizer = torch.optim.LBFGS(
        problem.net.parameters(), max_iter=300, tolerance_change=0, tolerance_grad=1e-11, line_search_fn="strong_wolfe"
    )
    with problem.balancer.held():
        optimizer.step(problem.evaluate)
    torch.testing.assert_close(problem.net.flat(), problem.net.minimum(weights), rtol=1e-6, atol=1e-6)


@methods(*SOME)
def test_lbfgs_improves_in_each_of_several_blocks(name: str, place: str) -> None:
    """In each block the objective falls, although the weights change from block to block."""
    problem = Problem(name, place)
    problem.begin()
    optimizer = torch.optim.LBFGS(problem.net.parameters(), max_iter=5, line_search_fn="strong_wolfe")
    for _ in range(5):
        weights = problem.balancer.weights
        before = weights @ problem.net.exact()[0]
        with problem.balancer.held():
            optimizer.step(problem.evaluate)
        assert weights @ problem.net.exact()[0] <= before


@methods(*SOME)
def test_sam_is_that_of_the_weighted_sum(name: str, place: str) -> None:
    """Sharpness-aware minimisation: the second pass has the first one's weights, and teaches the balancer nothing."""
    problem = Problem(name, place)
    problem.begin()
    for _ in range(4):
        weights, start = problem.balancer.weights, problem.net.flat()
        with problem.balancer.held():
            assert_is_weighted_sum(problem, problem.evaluate(), weights)
            ascent, taught = problem.net.gradient(), problem.state()
            problem.net.put(start + 0.05 * ascent / ascent.norm())
            assert_is_weighted_sum(problem, problem.evaluate(), weights)
            assert_bit_equal(problem.state(), taught)
        problem.net.put(start - 0.01 * problem.net.gradient())


@pytest.mark.parametrize("name", REPLACING)
def test_methods_that_replace_gradients_refuse(name: str) -> None:
    assert {"graddrop", "moco", "db-mtl"} <= set(REPLACING)
    problem = Problem(name, places(name)[0])
    before = problem.state()
    method = type(problem.balancer).__name__
    with pytest.raises(TypeError, match=f"{method} can't hold its weights"), problem.balancer.held():
        raise AssertionError("the block was entered")
    assert_bit_equal(problem.state(), before)
    problem.evaluate()  # and goes on


def test_blocks_of_one_balancer_do_not_nest_and_those_of_two_do() -> None:
    one, other = Problem("gradnorm", "layer"), Problem("uncertainty", "")
    for problem in (one, other):
        problem.begin()
    with one.balancer.held(), other.balancer.held():
        with pytest.raises(RuntimeError, match=r"held\(\) is already in use"), one.balancer.held():
            raise AssertionError("the block was entered")
        for problem in (one, other):  # the outer blocks go on
            weights = problem.balancer.weights
            for seed in range(2):
                problem.net.move(seed)
                assert_is_weighted_sum(problem, problem.evaluate(), weights)
    with one.balancer.held():
        one.evaluate()


@methods(*SOME)
@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_an_exception_ends_the_block(name: str, place: str, when: str) -> None:
    """Before the first backward pass nothing is learnt; after it, what it taught stays. The next block works."""
    problem, calm = Problem(name, place), Problem(name, place)
    for each in (problem, calm):
        each.begin()
    before = copy.deepcopy(problem.balancer.state_dict())

    def fail() -> None:
        with problem.balancer.held():
            if when == "between":
                problem.balancer(problem.losses())
            if when == "after":
                problem.evaluate()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    if when == "after":
        with calm.balancer.held():
            calm.evaluate()
    if when == "before":
        assert_bit_equal(problem.balancer.state_dict(), before)
    assert_bit_equal(problem.state(), calm.state())
    for seed in range(2):
        for each in (problem, calm):
            each.net.move(seed)
            each.evaluate()
            with each.balancer.held():
                each.evaluate()
        assert_bit_equal(problem.balancer.state_dict(), calm.balancer.state_dict())
        assert problem.net.gradient().equal(calm.net.gradient())


@methods(*SOME)
def test_an_exception_in_the_first_backward_pass(name: str, place: str) -> None:
    """Out of memory, caught within the block and tried again: value and gradient stay those of the weighted sum."""
    problem = Problem(name, place)
    problem.begin()
    weights = problem.balancer.weights
    fails = [True]

    def hook(gradient: Tensor) -> None:
        if fails[0]:
            raise torch.OutOfMemoryError("planted")

    handle = problem.net.shared.theta.register_hook(hook)
    with problem.balancer.held():
        with pytest.raises(torch.OutOfMemoryError, match="planted"):
            problem.evaluate()
        fails[0] = False
        for seed in range(2):
            problem.net.move(seed)
            assert_is_weighted_sum(problem, problem.evaluate(), weights)
    handle.remove()
    problem.net.zero_grad()
    sum(problem.losses()).backward()  # a plain pass afterwards is plain
    torch.testing.assert_close(problem.net.gradient(), problem.net.exact()[1].sum(0), rtol=1e-10, atol=1e-10)


@methods(where=lambda method: method.combines and not method.replaces_gradients)
def test_weights_of_zero_are_measured_all_the_same(name: str, place: str) -> None:
    """The first evaluation sees each loss's own gradient, whatever weight is held for it."""
    held, plain = Problem(name, place), Problem(name, place)
    for problem in (held, plain):
        problem.begin()
        problem.balancer.last_weights.copy_(torch.tensor([0.0, 1.0, 0.0]))
        problem.net.move(4)
    plain.evaluate()
    with held.balancer.held():
        held.evaluate()
        torch.testing.assert_close(held.net.gradient(), held.net.exact()[1][1], rtol=1e-10, atol=1e-11)
        assert held.net.gradient()[SHARED] == held.net.gradient()[SHARED + 2] == 0
    same(held.balancer.weights, plain.balancer.weights)
    same(held.state(), plain.state())
    if "gramian" in plain.balancer.statistics:
        same(held.balancer.statistics["gramian"], plain.balancer.statistics["gramian"])


def test_weights_of_zero_with_linear_heads() -> None:
    """One product computes all heads; their gradients of the features are told apart although two have no weight."""
    torch.manual_seed(2)
    trunk, heads = nn.Linear(5, 4).double(), LinearHeads(TASKS, 4, 2).double()
    balancer = MGDA(heads.fork)
    x = torch.randn(6, 5, dtype=torch.float64)
    balancer((heads(trunk(x)) - 1).square().mean((0, 2))).backward()
    balancer.last_weights.copy_(torch.tensor([0.0, 1.0, 0.0]))
    z = trunk(x).detach().requires_grad_()
    losses = (torch.einsum("nf,tof->nto", z, heads.weight) + heads.bias - 1).square().mean((0, 2))
    rows = torch.stack([torch.autograd.grad(loss, z, retain_graph=True)[0].flatten() for loss in losses])
    heads.zero_grad()
    with balancer.held():
        balancer((heads(trunk(x)) - 1).square().mean((0, 2))).backward()
    torch.testing.assert_close(balancer.statistics["gramian"], rows @ rows.mT, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(balancer.weights, balancer.solve(rows @ rows.mT), rtol=1e-8, atol=1e-8)
    assert heads.weight.grad[0].count_nonzero() == heads.weight.grad[2].count_nonzero() == 0
    assert heads.weight.grad[1].count_nonzero() > 0


def test_a_task_gains_weight_again_after_a_block_without_any() -> None:
    """MGDA gives a task next to no weight, holds that, and finds its gradient all the same."""
    problem = Problem("mgda", "parameters")
    problem.begin()
    shown = []
    for seed in range(30):
        problem.net.move(seed)
        with problem.balancer.held():
            problem.evaluate()
            shared = problem.net.exact()[1][:, :SHARED]
        same(problem.balancer.statistics["gramian"], shared @ shared.mT)
        shown.append(problem.balancer.weights)
    assert any(
        before[i] < 1e-6 and after[i] > 0.01 for before, after in itertools.pairwise(shown) for i in range(TASKS)
    )


@methods()
def test_a_new_balancers_first_step_may_be_a_block(name: str, place: str) -> None:
    """Losses wider than float32 widen the state on first sight; values are exact from the first evaluation on."""
    problem = Problem(name, place)
    with problem.balancer.held():
        for seed in range(2):
            problem.net.move(seed)
            value = problem.evaluate()
            weights = problem.balancer.weights
            assert weights.dtype == torch.float64
            assert_is_weighted_sum(problem, value, weights)
    problem.after_step()


def starts_with_a_step(method: type[LossBalancer]) -> bool:
    """Return whether a first block has the weights of a first step: nothing need be measured before it."""
    return not method.combines and method.when != "forward"


@methods(where=starts_with_a_step)
def test_a_first_block_has_the_weights_of_a_first_step(name: str, place: str) -> None:
    """Also where they follow from the losses of a call: there is no call before it whose weights could be held."""
    held, plain = Problem(name, place), Problem(name, place)
    for _ in range(2):
        for problem in (held, plain):
            problem.net.move(1)
        value = plain.evaluate()
        weights = plain.balancer.weights
        with held.balancer.held():
            same(held.evaluate(), value)
            assert held.balancer.weights.equal(weights)
            held.net.move(2)
            assert_is_weighted_sum(held, held.evaluate(), weights)
        same(held.state(), plain.state())
        for problem in (held, plain):
            problem.balancer.reset_parameters()


@methods("gls", "scale-invariant", "famo")
def test_the_first_block_after_a_checkpoint_holds_its_weights(name: str, place: str) -> None:
    problem, loaded = Problem(name, place), Problem(name, place)
    problem.evaluate()
    loaded.balancer.load_state_dict(problem.balancer.state_dict())
    loaded.net.move(1)
    with loaded.balancer.held():
        assert_is_weighted_sum(loaded, loaded.evaluate(), problem.balancer.weights)


@methods(where=lambda method: not issubclass(method, GradientBalancer) and method.name != "static")
def test_a_new_balancer_shows_the_weights_that_it_starts_with(name: str, place: str) -> None:
    """Those of a first step in which all losses are 1."""
    problem = Problem(name, place)
    shown = problem.balancer.weights
    problem.balancer([torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(TASKS)])
    torch.testing.assert_close(problem.balancer.weights, shown.double(), rtol=1e-6, atol=0)


def test_a_first_step_that_is_not_valid_uses_the_weights_that_a_new_balancer_shows() -> None:
    balancer = get("famo")(4)
    balancer(torch.tensor([0.0, 1.0, 1.0, 1.0], requires_grad=True)).backward()
    assert balancer.weights.tolist() == [0.25] * 4


@pytest.mark.parametrize(
    ("name", "preferences", "expected"),
    [
        ("pbi", [3.0, 4.0], [0.6, 0.8]),
        ("cosmos", [3.0, 4.0], [3.0, 4.0]),
        ("tchebycheff", [3.0, 4.0], [1.5, 2.0]),
        ("stch", [3.0, 4.0], [1.5, 2.0]),
    ],
)
def test_a_new_balancer_shows_its_preferences(name: str, preferences: list[float], expected: list[float]) -> None:
    torch.testing.assert_close(get(name)(2, preferences=preferences).weights, torch.tensor(expected))


def test_held_weights_are_those_given_to_the_last_digit() -> None:
    """A third in float32 is another number."""
    problem = Problem("equal", "")
    exact = get("static")([1 / 3, 0.2, 0.7])
    with exact.held():
        value = exact(problem.losses()).detach()
    expected = torch.tensor([1 / 3, 0.2, 0.7], dtype=torch.float64) @ problem.net.exact()[0]
    torch.testing.assert_close(value, expected, rtol=1e-14, atol=0)


@methods(*SOME)
def test_an_evaluation_without_gradients_is_not_the_first(name: str, place: str) -> None:
    """A value computed for a log, before the first backward pass, does not keep that from teaching."""
    held, plain = Problem(name, place), Problem(name, place)
    for problem in (held, plain):
        problem.begin()
        problem.net.move(1)
    plain.evaluate()
    weights = held.balancer.weights
    with held.balancer.held():
        with torch.no_grad():
            value = held.balancer(held.losses())
        torch.testing.assert_close(value, weights @ held.net.exact()[0], rtol=1e-12, atol=0)
        held.evaluate()
    same(held.state(), plain.state())
    assert not held.balancer.weights.equal(weights)


@methods(*SOME)
def test_a_block_without_evaluations_changes_nothing(name: str, place: str) -> None:
    problem = Problem(name, place)
    for _ in range(2):
        problem.evaluate()
    before = copy.deepcopy(problem.balancer.state_dict())
    with problem.balancer.held():
        assert problem.balancer.weights.equal(before["last_weights"])
    assert_bit_equal(problem.balancer.state_dict(), before)


@methods(*SOME)
def test_eval_mode_in_a_block_learns_nothing(name: str, place: str) -> None:
    problem = Problem(name, place)
    problem.begin()
    before = copy.deepcopy(problem.balancer.state_dict())
    problem.balancer.eval()
    with problem.balancer.held():
        problem.net.move(3)
        assert_is_weighted_sum(problem, problem.evaluate(), before["last_weights"])
    assert_bit_equal(problem.balancer.state_dict(), before)


@methods(where=lambda method: not method.replaces_gradients and not method.looks_again)
@pytest.mark.parametrize("factor", [0.25, 2.0**14])
def test_a_scaled_loss_teaches_the_same(name: str, place: str, factor: float) -> None:
    """By a GradScaler, or divided by the number of accumulated passes."""
    scaled, plain = Problem(name, place), Problem(name, place)
    for problem in (scaled, plain):
        problem.begin()
    for seed in range(3):
        for problem, its in ((scaled, factor), (plain, 1.0)):
            problem.net.move(seed)
            with problem.balancer.held():
                problem.evaluate(its)
        same(scaled.balancer.weights, plain.balancer.weights)
        torch.testing.assert_close(scaled.net.gradient(), factor * plain.net.gradient(), rtol=1e-8, atol=1e-9)


@methods(*SOME, "relobralo", "cov", "lr-annealing")
def test_a_first_evaluation_that_is_not_finite_changes_nothing(name: str, place: str) -> None:
    problem = Problem(name, place)
    problem.begin()
    before = copy.deepcopy(problem.balancer.state_dict())
    with problem.balancer.held():
        losses = problem.losses()
        problem.balancer([losses[0] * float("nan"), *losses[1:]]).backward()
    found = problem.balancer.state_dict()
    counters = {"_extra_state"} if problem.balancer.random else set()
    assert_bit_equal(*({key: state[key] for key in before.keys() - counters} for state in (found, before)))


@methods(where=lambda method: issubclass(method, GradientBalancer) and method.name in (*SOME, "lr-annealing"))
def test_update_every_measures_blocks_at_its_turns_alone(name: str, place: str) -> None:
    held, plain = Problem(name, place, update_every=3), Problem(name, place, update_every=3)
    for problem in (held, plain):
        problem.begin()
    for seed in range(8):
        for problem in (held, plain):
            problem.net.move(seed)
        plain.evaluate()
        with held.balancer.held():
            held.evaluate()
            held.evaluate()
        same(held.state(), plain.state())
        if plain.balancer.combines:
            same(held.balancer.weights, plain.balancer.weights)


@methods("gradnorm", "uncertainty", "dwa", "cov")
def test_blocks_accumulate_to_windows(name: str, place: str) -> None:
    """Each block is one pass of a window: its further evaluations don't count."""
    held, plain = Problem(name, place, accumulate=2), Problem(name, place, accumulate=2)
    for problem in (held, plain):
        problem.begin()
    for seed in range(8):
        for problem in (held, plain):
            problem.net.move(seed)
        plain.evaluate()
        with held.balancer.held():
            held.evaluate()
            held.evaluate()
        same(held.state(), plain.state())


@methods(*SOME)
def test_a_task_left_out_of_a_block_keeps_its_weight(name: str, place: str) -> None:
    problem = Problem(name, place, tasks=["a", "b", "c"])

    def evaluate(tasks: str) -> Tensor:
        problem.net.zero_grad()
        total = problem.balancer({t: loss for t, loss in zip("abc", problem.losses(), strict=True) if t in tasks})
        total.backward()
        return total.detach()

    for _ in range(2):
        with problem.balancer.held():
            evaluate("abc")
    weights = problem.balancer.weights
    with problem.balancer.held():
        for seed in range(3):
            problem.net.move(seed)
            value = evaluate("ac")
            losses, gradients = problem.net.exact()
            torch.testing.assert_close(value, weights[[0, 2]] @ losses[[0, 2]], rtol=1e-12, atol=0)
            expected = weights[[0, 2]] @ gradients[[0, 2]]
            torch.testing.assert_close(problem.net.gradient(), expected, rtol=1e-10, atol=1e-10)
    assert problem.balancer.weights[1] == weights[1]


def test_famo_compares_with_the_first_evaluation() -> None:
    held, plain = Problem("famo", ""), Problem("famo", "")
    for problem in (held, plain):
        problem.begin()
    for seed in range(3):
        for problem in (held, plain):
            problem.net.move(seed)
        plain.evaluate()
        with held.balancer.held():
            held.evaluate()
            held.net.move(100 + seed)
            held.evaluate()
        plain.net.move(100 + seed)
        for problem in (held, plain):
            problem.balancer.after_step(problem.losses())
        same(held.state(), plain.state())


def test_check_finite_raises_in_a_block_and_the_next_one_works() -> None:
    problem = Problem("gradnorm", "layer", check_finite=True)
    problem.begin()
    losses = problem.losses()
    with pytest.raises(FloatingPointError, match="the loss of task 1 is not finite"), problem.balancer.held():
        problem.balancer([losses[0], losses[1] / 0, losses[2]])
    with problem.balancer.held():
        problem.evaluate()


@methods(*SOME)
def test_a_checkpoint_written_in_a_block(name: str, place: str) -> None:
    """What is saved within a block, after its first evaluation, goes on as the balancer does after the block."""
    problem, loaded = Problem(name, place), Problem(name, place)
    problem.begin()
    with problem.balancer.held():
        problem.net.move(1)
        problem.evaluate()
        saved = copy.deepcopy(problem.balancer.state_dict())
    loaded.balancer.load_state_dict(saved)
    assert_bit_equal(loaded.state(), problem.state())
    for each in (problem, loaded):
        each.net.move(2)
        each.evaluate()
    assert loaded.net.gradient().equal(problem.net.gradient())
    assert_bit_equal(loaded.balancer.state_dict(), problem.balancer.state_dict())


# Eval mode


@pytest.mark.parametrize("name", ["scale-invariant", "db-mtl"])
def test_in_eval_mode_the_value_says_how_good_the_losses_are(name: str) -> None:
    """In training these methods return T whatever the losses; in eval mode, the losses in units of the last step's."""
    problem = Problem(name, places(name)[0])
    assert problem.evaluate() == pytest.approx(TASKS)
    weights = problem.balancer.weights
    problem.balancer.eval()
    values = []
    for seed in range(3):
        problem.net.move(seed)
        with torch.no_grad():
            values.append(problem.balancer(problem.losses()))
        torch.testing.assert_close(values[-1], weights @ problem.net.exact()[0], rtol=1e-12, atol=0)
        assert problem.balancer.weights.equal(weights)
    assert len({round(value.item(), 6) for value in values}) == 3
    problem.balancer.train()
    assert problem.evaluate() == pytest.approx(TASKS)


@methods(where=lambda method: True)
def test_eval_mode_uses_and_shows_the_last_weights_and_commits_nothing(name: str, place: str) -> None:
    """Whatever the method, value and gradient are those of the weighted sum; the fork's mode is no matter."""
    problem = Problem(name, place)
    problem.evaluate()
    problem.after_step()
    before, weights = copy.deepcopy(problem.balancer.state_dict()), problem.balancer.weights
    problem.balancer.eval()
    for seed in range(2):
        problem.net.move(seed)
        assert_is_weighted_sum(problem, problem.evaluate(), weights)
        assert problem.balancer.weights.equal(weights)
        assert_bit_equal(problem.balancer.state_dict(), before)
    problem.balancer.train()
    problem.net.eval()
    problem.evaluate()
    problem.after_step()
    after = problem.balancer.state_dict()
    learns = any(not after[key].equal(before[key]) for key in after)
    assert (
        learns == (name not in ("equal", "static")) or name == "dual-proj"
    )  # whose weights are equal without a conflict


# follow()

ACCUMULATE = 4


def epochs(lengths: Sequence[int]) -> list[list[Any]]:
    """Return the windows of epochs of these numbers of batches; the last window of an epoch may be short."""
    batches = iter(make_batches(sum(lengths)))
    return [w for length in lengths for w in in_parts([next(batches) for _ in range(length)], ACCUMULATE)]


def run_following(net: Net, balancer: LossBalancer, windows: list[list[Any]], follows: bool = True) -> Trajectory:
    """Train as Lightning does: the optimiser steps after each window, and nothing else is said to the balancer."""
    optimizer = sgd(net)
    if follows:
        balancer.follow(optimizer)
    steps = []
    for window in windows:
        optimizer.zero_grad()
        for part in window:
            torch.manual_seed(part.seed)
            (balancer(net.losses(part.batch)) / len(window)).backward()
        steps.append((balancer.weights.clone(), flat_gradients(net)))
        optimizer.step()
    return Trajectory.of(steps)


@pytest.mark.parametrize("wrt", ["layer", "features", "parameters"])
def test_a_shorter_last_window_does_not_drift(wrt: str) -> None:
    windows = epochs([10, 10, 9, 11])
    net = Net()
    found = run_following(net, GradNorm(**net.wrt(wrt), accumulate=ACCUMULATE), windows)
    assert_same(found, run_reference(Net(), GradNormReference(), windows, wrt))


@pytest.mark.slow
def test_without_follow_it_drifts() -> None:
    """The test above would notice."""
    windows = epochs([10, 10, 9, 11])
    net = Net()
    found = run_following(net, GradNorm(**net.wrt("layer"), accumulate=ACCUMULATE), windows, follows=False)
    with pytest.raises(AssertionError):
        assert_same(found, run_reference(Net(), GradNormReference(), windows))


@pytest.mark.parametrize("name", ["uncertainty", "imtl-l", "dwa", "cov", "random"])
def test_each_window_is_one_update_of_the_means(name: str) -> None:
    """Of a method that reads losses, what it learns from a window is what it learns from its mean losses at once."""
    windows = epochs([6, 7, 5])
    options = OPTIONS.get(name, {})
    make: Callable[..., LossBalancer] = get(name)
    following, single = make(len(SCALES), accumulate=ACCUMULATE, **options), make(len(SCALES), **options)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    following.follow(optimizer)
    for window in windows:
        means = torch.stack([torch.stack(net.losses(part.batch)) for part in window]).mean(0)
        single(means).backward()
        for part in window:
            following(net.losses(part.batch)).backward()
        optimizer.step()
        for key, value in single.state_dict().items():
            if key != "last_weights" or weighs_by_state(single):
                torch.testing.assert_close(following.state_dict()[key], value, rtol=1e-10, atol=1e-12)


def run_with_a_scaler(
    net: Net, balancer: LossBalancer, windows: list[list[Any]], skipped: Sequence[int], **options: Any
) -> Trajectory:
    """Train with a GradScaler that skips some windows, for an overflow in a head that the balancer does not see."""
    scaler = GradScaler("cpu", init_scale=2.0**20, growth_interval=1000)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, **options)
    balancer.follow(optimizer)
    overflows, steps = [False], []
    handle = net.heads[0][-1].bias.register_hook(lambda g: torch.full_like(g, torch.inf) if overflows[0] else None)
    for t, window in enumerate(windows):
        optimizer.zero_grad()
        for k, part in enumerate(window):
            overflows[0] = t in skipped and k == 0
            scaler.scale(balancer(net.losses(part.batch)) / len(window)).backward()
        scale = scaler.get_scale()
        scaler.unscale_(optimizer)
        if t not in skipped:
            steps.append((balancer.weights.clone(), flat_gradients(net)))
        scaler.step(optimizer)
        scaler.update()
        assert (scaler.get_scale() < scale) == (t in skipped)
    handle.remove()
    return Trajectory.of(steps)


@pytest.mark.parametrize("wrt", ["layer", "features", "parameters"])
@pytest.mark.parametrize("accumulate", [1, ACCUMULATE])
@pytest.mark.parametrize("skipped", [(0,), (1, 2), (0, 3, 4)], ids=str)
@pytest.mark.parametrize("fused", others_slow([False, True], True), ids=["plain", "fused"])
def test_a_window_that_a_scaler_skipped_is_dropped(
    wrt: str, accumulate: int, skipped: Sequence[int], fused: bool
) -> None:
    """A fused optimiser makes its step whatever the scaler found, and decides on the device that nothing changes."""
    windows = in_parts(make_batches(7 * accumulate), accumulate)
    net = Net()
    found = run_with_a_scaler(net, GradNorm(**net.wrt(wrt), accumulate=accumulate), windows, skipped, fused=fused)
    kept = [window for t, window in enumerate(windows) if t not in skipped]
    assert_same(found, run_reference(Net(), GradNormReference(), kept, wrt))


@pytest.mark.xfail(strict=True, reason="no public hook says that a step was skipped; only a whole window tells")
def test_a_shorter_window_that_a_scaler_skipped_is_dropped() -> None:
    windows = epochs([10, 10, 8])
    assert [len(window) for window in windows] == [4, 4, 2, 4, 4, 2, 4, 4]
    net = Net()
    found = run_with_a_scaler(net, GradNorm(**net.wrt("layer"), accumulate=ACCUMULATE), windows, skipped=[2])
    assert_same(found, run_reference(Net(), GradNormReference(), windows[:2] + windows[3:]))


CLOSURES: Mapping[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": sgd,
    "adam": lambda net: torch.optim.Adam(net.parameters(), lr=0.01),
    "fused adam": lambda net: torch.optim.Adam(net.parameters(), lr=0.01, fused=True),
}


@pytest.mark.parametrize("kind", CLOSURES)
def test_an_optimiser_that_calls_a_closure(kind: str) -> None:
    """The window's last pass runs within the optimiser's step, as in Lightning's automatic optimisation."""
    windows = epochs([6, 7])
    nets = [Net(), Net()]
    balancers = [GradNorm(**net.wrt("layer"), accumulate=ACCUMULATE) for net in nets]
    optimizers = [CLOSURES[kind](net) for net in nets]
    balancers[0].follow(optimizers[0])
    for window in windows:
        for net, balancer, optimizer in zip(nets, balancers, optimizers, strict=True):

            def closure(part: Any, net: Net = net, balancer: GradNorm = balancer, size: int = len(window)) -> Tensor:
                loss = balancer(net.losses(part.batch)) / size
                loss.backward()
                return loss

            optimizer.zero_grad()
            for part in window[:-1]:
                closure(part)
            if balancer is balancers[0]:
                optimizer.step(lambda: closure(window[-1]))  # noqa: B023
            else:
                closure(window[-1])
                balancer.close_window()
                optimizer.step()
        assert_bit_equal(balancers[0].state_dict(), balancers[1].state_dict())
        assert_bit_equal(flat_gradients(nets[0]), flat_gradients(nets[1]))
    assert balancers[0].weights.ne(1).any()


def test_lbfgs_in_held_blocks_that_follow_it() -> None:
    """Each block is one step of the optimiser, and so one window, of its first evaluation."""
    following, plain = Problem("gradnorm", "layer", accumulate=1), Problem("gradnorm", "layer")
    for problem in (following, plain):
        problem.begin()
    optimizers = [torch.optim.LBFGS(p.net.parameters(), max_iter=4) for p in (following, plain)]
    following.balancer.follow(optimizers[0])
    for _ in range(4):
        for problem, optimizer in zip((following, plain), optimizers, strict=True):
            with problem.balancer.held():
                optimizer.step(problem.evaluate)
        assert_bit_equal(following.state(), plain.state())
    assert not following.state()["next_weights"].eq(1).all()


@pytest.mark.parametrize("method", ["gradnorm", "mgda"])
def test_follow_with_update_every(method: str) -> None:
    """Every k-th window is measured, whatever its length; a method that combines goes by its passes."""
    windows = epochs([6, 7, 5, 4, 4])
    runs = []
    for follows in (True, False):
        net = Net()
        options = {"accumulate": ACCUMULATE} if method == "gradnorm" else {}
        balancer = get(method)(**net.wrt("layer"), update_every=2, **options)
        optimizer = sgd(net)
        if follows:
            balancer.follow(optimizer)
        shown = []
        for window in windows:
            optimizer.zero_grad()
            for part in window:
                (balancer(net.losses(part.batch)) / len(window)).backward()
            optimizer.step()
            if not follows and len(window) < ACCUMULATE:
                balancer.close_window()
            shown.append(balancer.weights)
        runs.append((shown, balancer.state_dict()))
    assert_bit_equal(*runs)
    assert not runs[0][0][0].equal(runs[0][0][-1])


def test_only_an_optimiser_can_be_followed() -> None:
    net = Net()
    balancer = GradNorm(**net.wrt("layer"))
    with pytest.raises(TypeError, match="optimizer is of type StepLR; expected an optimiser"):
        balancer.follow(torch.optim.lr_scheduler.StepLR(sgd(net), 1))
    with pytest.raises(TypeError, match="optimizer is of type Net"):
        balancer.follow(net)


def test_another_optimiser_may_be_followed_later() -> None:
    """The first one's steps then end no window."""
    windows = epochs([10, 10])
    net = Net()
    balancer = GradNorm(**net.wrt("layer"), accumulate=ACCUMULATE)
    abandoned = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    balancer.follow(abandoned)
    optimizer = sgd(net)
    balancer.follow(optimizer)
    steps = []
    for window in windows:
        optimizer.zero_grad()
        for part in window:
            (balancer(net.losses(part.batch)) / len(window)).backward()
            abandoned.step()
        steps.append((balancer.weights.clone(), flat_gradients(net)))
        optimizer.step()
    assert_same(Trajectory.of(steps), run_reference(Net(), GradNormReference(), windows))


def test_following_twice_is_following_once() -> None:
    windows = epochs([6, 6, 6])
    net = Net()
    balancer = GradNorm(**net.wrt("layer"), accumulate=ACCUMULATE)
    optimizer = sgd(net)
    balancer.follow(optimizer)
    balancer.follow(optimizer)
    steps = []
    for window in windows:
        optimizer.zero_grad()
        for part in window:
            (balancer(net.losses(part.batch)) / len(window)).backward()
        steps.append((balancer.weights.clone(), flat_gradients(net)))
        optimizer.step()
    assert_same(Trajectory.of(steps), run_reference(Net(), GradNormReference(), windows))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
def test_a_copy_of_a_balancer_that_follows(copied: Callable[[Any], Any]) -> None:
    """It goes on by itself: as one that follows the optimiser that was copied with it, or none."""
    net = Net()
    balancer = GradNorm(**net.wrt("layer"), accumulate=2)
    balancer.follow(sgd(net))
    twin_net, twin = copied((net, balancer))
    before = twin.weights
    for part in epochs([8])[0]:
        twin(twin_net.losses(part.batch)).backward()
    assert not twin.next_weights.eq(1).all(), "a copy must not stop learning in silence"
    assert balancer.next_weights.eq(1).all()
    assert before.eq(1).all()


@pytest.mark.slow
def test_an_optimiser_does_not_keep_the_balancer_alive() -> None:
    """The model may be trained on without it."""
    net = Net()
    optimizer = sgd(net)
    balancer = GradNorm(**net.wrt("layer"))
    balancer.follow(optimizer)
    dead = weakref.ref(balancer)
    del balancer
    gc.collect()
    assert dead() is None
    optimizer.step()


def test_lightning_ends_windows_at_its_optimisers_steps() -> None:
    lightning = pytest.importorskip("lightning")
    windows = epochs([10])

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()
            self.balancer = GradNorm(**self.net.wrt("layer"), accumulate=ACCUMULATE)
            self.steps: list[tuple[Tensor, Tensor]] = []

        def training_step(self, batch: Any, index: int) -> Tensor:
            return self.balancer(self.net.losses(batch))

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            self.steps.append((self.balancer.weights.clone(), flat_gradients(self.net)))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = sgd(self)
            self.balancer.follow(optimizer)
            return optimizer

    module = Module()
    trainer = lightning.Trainer(
        accumulate_grad_batches=ACCUMULATE,
        max_epochs=3,
        accelerator="cpu",
        precision="64-true",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )
    loader = torch.utils.data.DataLoader([part.batch for w in windows for part in w], batch_size=None)
    trainer.fit(module, loader)
    expected = run_reference(Net(), GradNormReference(), windows * 3)
    for t in (2, 5, 8):
        expected.gradients[t] *= len(windows[-1]) / ACCUMULATE  # Lightning divides by 4 here, too
    found = Trajectory.of(module.steps)
    torch.testing.assert_close(found.weights[:3], expected.weights[:3], rtol=0, atol=1e-9)
    torch.testing.assert_close(found.gradients[:3], expected.gradients[:3], rtol=1e-12, atol=1e-12)
    assert len(module.steps) == 9


def test_an_optimiser_that_lightning_wrapped() -> None:
    """`self.optimizers()` returns the wrapper, whose steps are the optimiser's own."""
    wrapper = pytest.importorskip("lightning.pytorch.core.optimizer").LightningOptimizer
    net = Net()
    optimizer = sgd(net)
    balancer = GradNorm(**net.wrt("layer"), accumulate=ACCUMULATE)
    balancer.follow(wrapper(optimizer))
    balancer(net.losses(make_batches(1)[0])).backward()
    optimizer.step()
    assert not balancer.next_weights.eq(1).all()


def test_an_optimiser_that_accelerate_wrapped() -> None:
    accelerate = pytest.importorskip("accelerate")
    windows = epochs([10])
    net = Net()
    balancer = GradNorm(**net.wrt("layer"), accumulate=ACCUMULATE)
    steps = []
    try:
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
        loader = torch.utils.data.DataLoader([part.batch for window in windows for part in window], batch_size=None)
        prepared, optimizer, loader = accelerator.prepare(net, sgd(net), loader)
        balancer.follow(optimizer)
        for _ in range(2):
            for batch in loader:
                with accelerator.accumulate(prepared):
                    accelerator.backward(balancer(prepared.losses(batch)))
                    if accelerator.sync_gradients:
                        steps.append((balancer.weights.clone(), flat_gradients(net)))
                    optimizer.step()
                    optimizer.zero_grad()
    finally:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate.state.GradientState._reset_state()
    expected = run_reference(Net(), GradNormReference(), windows * 2)
    torch.testing.assert_close(Trajectory.of(steps).weights[:3], expected.weights[:3], rtol=0, atol=1e-9)
    assert len(steps) == 6
