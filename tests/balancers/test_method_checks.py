"""A method that returns what can't be used is told so in its first step; the message names class and function."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from balancers import GradientBalancer, LossBalancer, Read, Result, State, state

TASKS = ("a", "b", "c")


class Weighs(LossBalancer):
    """Weighs by a number for each task, and by nothing else."""

    name, summary = "weighs", "A test."
    returns: Any

    def weigh(self, losses: Tensor) -> Any:
        return type(self).returns(losses)


class Learns(LossBalancer):
    name, summary = "learns", "A test."
    means: Tensor = state(1.0)
    pairs: Tensor = state(shape="TT")
    steps: Tensor = state(shape="")
    returns: Any

    def weigh(self, state: State) -> Tensor:
        return state["means"]

    def update(self, read: Read) -> Any:
        return type(self).returns(read.losses)


class Combines(GradientBalancer):
    name, summary, reads = "combines", "A test.", "gramian"
    returns: Any

    def update(self, read: Read) -> Any:
        return type(self).returns(read.gramian)


class Solves(GradientBalancer):
    name, summary, reads = "solves", "A test.", "gramian"
    returns: Any

    def solve(self, gramian: Tensor) -> Any:
        return type(self).returns(gramian)


def step(method: type[LossBalancer], returns: Any, tasks: tuple[str, ...] = TASKS) -> LossBalancer:
    """Make a step of the method whose function returns what ``returns`` does of what it reads."""
    own = type("Mine", (method,), {"returns": staticmethod(returns)})
    layer = nn.Linear(2, 1)
    made = own(None, wrt=layer, tasks=TASKS) if issubclass(method, GradientBalancer) else own(TASKS)
    total = made({task: layer(torch.ones(2)).square().sum() + i for i, task in enumerate(tasks)})
    total.backward()
    return made


SHAPE = r"of shape \(\); expected \(3,\)"
WRONG: list[tuple[type[LossBalancer], Any, str]] = [
    (Weighs, lambda losses: losses.mean(), f"Mine.weigh returned weights {SHAPE}"),
    (Weighs, lambda losses: losses.unsqueeze(0), r"Mine.weigh returned weights of shape \(1, 3\); expected \(3,\)"),
    (Weighs, lambda losses: 1.0, "Mine.weigh returned an object of type float; expected a tensor"),
    (Learns, lambda losses: {"means": losses}, "Mine.update returned an object of type dict; expected Result"),
    (Learns, lambda losses: None, "Mine.update returned an object of type NoneType; expected Result"),
    (
        Learns,
        lambda losses: Result(state={"mean": losses}),
        "Mine.update returned new values of 'mean'; its state is means, pairs, steps",
    ),
    (Learns, lambda losses: Result(state={"means": losses.mean()}), rf"Mine.update returned state\['means'\] {SHAPE}"),
    (Learns, lambda losses: Result(state={"pairs": losses}), r"of shape \(3,\); expected \(3, 3\)"),
    (Learns, lambda losses: Result(state={"steps": losses}), r"of shape \(3,\); expected \(\)"),
    (Learns, lambda losses: Result(state={"steps": 1}), r"of type int as state\['steps'\]; expected a tensor"),
    (Learns, lambda losses: Result(gradient=losses.mean()), f"Mine.update returned gradient {SHAPE}"),
    (Combines, lambda gramian: Result(), "Mine.update returned no weights; a method that reads the Gramian returns"),
    (Combines, lambda gramian: Result(gramian), r"Mine.update returned weights of shape \(3, 3\); expected \(3,\)"),
    (Solves, lambda gramian: gramian.trace(), f"Mine.solve returned weights {SHAPE}"),
]


@pytest.mark.parametrize(("method", "returns", "message"), WRONG)
def test_what_can_not_be_used_is_refused_in_the_first_step(method: type[LossBalancer], returns: Any, message: str):
    with pytest.raises((TypeError, ValueError), match=message):
        step(method, returns)


def test_rows_are_those_of_the_tasks_that_take_part():
    step(Learns, lambda losses: Result(state={"means": losses, "pairs": torch.outer(losses, losses)}), ("a", "c"))
    with pytest.raises(ValueError, match=r"state\['means'\] of shape \(3,\); expected \(2,\)"):
        step(Learns, lambda losses: Result(state={"means": torch.ones(3)}), ("a", "c"))
    with pytest.raises(ValueError, match=r"weights of shape \(3,\); expected \(2,\)"):
        step(Weighs, lambda losses: torch.ones(3), ("a", "c"))


def test_a_first_step_with_all_tasks_is_not_the_only_one_that_is_checked():
    made = step(Learns, lambda losses: Result(state={"means": torch.ones(3)}))
    layer = nn.Linear(2, 1)
    with pytest.raises(ValueError, match=r"expected \(2,\)"):
        made({task: layer(torch.ones(2)).sum() for task in "ab"}).backward()
