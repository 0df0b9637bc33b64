"""Checks of single backward passes: in eval mode, a second time, ended by an exception, and with the weights held."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from .contract import (
    Case,
    Fault,
    Step,
    Subject,
    Trace,
    assert_state,
    assert_traces,
    given_in,
    rows,
    sequence,
    state_of,
)


def _assert_weighted(case: Case, step: Step, trace: Trace, weights: Tensor, why: str) -> None:
    """Check that a pass showed these weights, and had the value and gradients of the losses weighted by them."""
    given = given_in(step)
    assert torch.equal(trace.weights, weights), f"{why}: {trace.weights} are shown, not {weights}"
    weights = weights[given]
    torch.testing.assert_close(trace.total, weights @ (step.values * step.factors)[given], rtol=1e-12, atol=0)
    torch.testing.assert_close(trace.trunk, weights @ rows(case, step)[given], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(trace.heads[given], weights * step.factors[given], rtol=1e-12, atol=0)
    assert trace.reached.equal(given), why


# Modes


def eval_mode_only_weighs(case: Case) -> None:
    """Check that a balancer in eval mode uses and shows its last weights, and goes on afterwards as if nothing was."""
    subject, calm = Subject(case), Subject(case)
    steps = sequence(8)
    for begin in (0, 4):
        found, expected = (each.run(steps[begin : begin + 4]) for each in (subject, calm))
        for t, (trace, usual) in enumerate(zip(found, expected, strict=True), begin):
            _assert_close_to(trace, usual, f"step {t}, after evaluations")
        before, weights = state_of(subject.balancer), subject.balancer.weights
        subject.balancer.eval()
        for step in (*sequence(2, seed=5), sequence(3, seed=5)[2].without("b")):
            _assert_weighted(case, step, subject.backward(step), weights, "in eval mode")
            assert torch.equal(subject.look(step), weights)
        subject.backward(Fault("loss", math.nan).spoil(steps[0]))
        assert_state(subject.balancer, before, why="in eval mode")
        subject.balancer.train()
    _assert_close(state_of(subject.balancer), state_of(calm.balancer), "after evaluations")


def network_mode_does_not_matter(case: Case) -> None:
    """Check that a balancer that trains measures alike whether the network is in train or in eval mode."""
    subject, other = Subject(case), Subject(case)
    subject.net.eval()
    steps = sequence(8)
    assert_traces(subject.run(steps), other.run(steps), "with the network in eval mode")
    assert_state(subject.balancer, state_of(other.balancer), why="with the network in eval mode")


# Passes that are no steps


def a_second_pass_changes_nothing(case: Case) -> None:
    """Check that a second pass through a loss gives the gradients of the first, or is refused, and is no step."""
    subject, calm = Subject(case), Subject(case)
    steps = list(sequence(8))
    steps[5] = steps[5].without("b")
    for t, step in enumerate(steps):
        total = subject.weighed(step)
        first, expected = subject.differentiated(total, retain_graph=True), calm.backward(step)
        assert_traces([first], [expected], f"step {t}")
        state = state_of(subject.balancer)
        if case.method.replaces_gradients:
            with pytest.raises(RuntimeError, match="second backward pass"):
                subject.differentiated(total)
        else:
            # Of a whole trunk, the first pass sums the tasks' gradients of parameters, the second those of features.
            why = f"the second pass of step {t}"
            assert_traces(
                [subject.differentiated(total)], [first], why, lambda a, b: torch.allclose(a, b, 1e-10, 1e-13)
            )
        assert_state(subject.balancer, state, why="in a second pass")
        if (t + 1) % case.passes == 0:
            subject.after_step(step)
            calm.after_step(step)
    assert_state(subject.balancer, state_of(calm.balancer), why="after second passes")


def a_differentiated_pass_is_no_step(case: Case) -> None:
    """Check that a pass with ``create_graph=True`` gives the weighted gradients, or is refused, and is no step."""
    subject, calm = Subject(case), Subject(case)
    for t, step in enumerate(sequence(6)):
        total = subject.weighed(step)
        state, leaves = state_of(subject.balancer), [*subject.net.shared, *subject.net.heads]
        if case.combines:
            with pytest.raises(RuntimeError, match="create_graph"):
                torch.autograd.grad(total, leaves, create_graph=True, allow_unused=True)
        else:
            found = torch.autograd.grad(total, leaves, create_graph=True, allow_unused=True)
            for leaf, gradient in zip(leaves, found, strict=True):
                leaf.grad = None if gradient is None else gradient.detach()
            _assert_weighted(case, step, subject.trace(total), subject.balancer.weights, "in a differentiated pass")
        assert_state(subject.balancer, state, why="in a differentiated pass")
        assert_traces([subject.backward(step)], [calm.backward(step)], f"after differentiated passes, step {t}")
        if (t + 1) % case.passes == 0:
            subject.after_step(step)
            calm.after_step(step)
    assert_state(subject.balancer, state_of(calm.balancer), why="after differentiated passes")


class StopError(Exception):
    """Ends a backward pass."""


def _stopped(subject: Subject, step: Step, parameter: Tensor) -> None:
    """Run a backward pass that ends with an exception where it reaches a parameter."""

    def stop(_: Tensor) -> None:
        raise StopError

    handle = parameter.register_hook(stop)
    with pytest.raises(StopError):
        subject.backward(step)
    handle.remove()


def an_exception_ends_its_own_pass_alone(case: Case) -> None:
    """Check that after an exception in a backward pass, plain passes are plain, and the balancer goes on as before.

    The exception is raised at a head's parameter, or at one of the trunk's.
    """
    subject, calm, plain = Subject(case), Subject(case), Subject(case)
    ended, leaves = sequence(8, seed=6), [*subject.net.heads, subject.net.layer.bias]
    for t, step in enumerate(sequence(8)):
        _stopped(subject, ended[t], leaves[t % len(leaves)])
        found, expected = subject.plain(step), plain.plain(step)
        assert torch.equal(found.trunk, expected.trunk), f"the plain gradient after step {t}"
        assert torch.equal(found.heads, expected.heads), f"the heads' plain gradients after step {t}"
        _assert_close_to(subject.backward(step), calm.backward(step), f"step {t}, after an exception")
        if (t + 1) % case.passes == 0:
            subject.after_step(step)
            calm.after_step(step)
    _assert_close(state_of(subject.balancer), state_of(calm.balancer), "after exceptions")


# Held weights


def held_weights_hold(case: Case) -> None:
    """Check that weights hold in a block of ``held()``, and that the balancer learns from its first evaluation alone.

    What it learns is what it would learn from a normal step. The weights after the block are those of that step where
    the method finds them in the step, and otherwise those of the step after it.
    """
    subject = Subject(case)
    if case.method.replaces_gradients:
        _refuses_to_hold(subject)
        return
    steps = sequence(19)
    subject.run(steps[:4])
    for block in range(5):
        first, *others = steps[3 * block + 4 : 3 * block + 7]
        if block == 2:
            first, *others = (step.without("b") for step in (first, *others))
        if block == 3:
            first = Fault("loss", math.nan, 1).spoil(first)
        normal, held = copy.deepcopy(subject), subject.balancer.weights
        expected = normal.backward(first).weights
        with subject.balancer.held() as same:
            assert same is subject.balancer
            traces = [subject.backward(step) for step in (first, *others)]
            assert torch.equal(subject.look(first), held)
        for step, trace in list(zip((first, *others), traces, strict=True))[block == 3 :]:
            _assert_weighted(case, step, trace, held, f"in block {block}")
        subject.after_step(first)
        normal.after_step(first)
        if case.ahead:
            expected = normal.look(first)
        weights = subject.balancer.weights
        assert torch.allclose(weights, expected, rtol=1e-8, atol=1e-10), (
            f"after block {block}: {weights}, not {expected}"
        )
        _assert_close(state_of(subject.balancer), state_of(normal.balancer), f"after block {block}")


def _refuses_to_hold(subject: Subject) -> None:
    steps = sequence(4)
    subject.run(steps)
    before = state_of(subject.balancer)
    with pytest.raises(TypeError, match="can't hold"), subject.balancer.held():
        subject.backward(steps[0])
    assert_state(subject.balancer, before, why="by a refusal")


def _assert_close_to(found: Trace, expected: Trace, why: str) -> None:
    """Check that a step showed what the same step shows without passes that the balancer does not measure.

    Not to the bit: where features of such passes went through the fork as well, a layer's gradients are added up before
    their norm is taken.
    """
    _assert_close(found._asdict(), expected._asdict(), why)


def _assert_close(found: dict[str, Any], expected: dict[str, Any], why: str) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, Tensor):
            assert torch.allclose(found[key], value, rtol=1e-8, atol=1e-10), (
                f"{why}: {key} is {found[key]}, not {value}"
            )
        else:
            assert found[key] == value, f"{why}: {key} is {found[key]}, not {value}"
