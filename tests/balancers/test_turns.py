"""A method that takes turns trains each step on the next task, whatever else is done between two steps."""

import pytest
import torch
from torch import Tensor, nn

from balancers import CapturedStep, GradientBalancer, LossBalancer, MomentumConFIG, Read, Result
from balancers.engine.ranks import Ranks

TASKS = ("a", "b", "c")


class Plain(LossBalancer):
    """Learns nothing."""

    name, summary, reads = "plain-turns", "Train on one task a step.", "nothing"
    takes_turns = True

    def weigh(self) -> Tensor:
        return torch.ones(len(TASKS))


class ByNorms(GradientBalancer):
    """Learns from norms."""

    name, summary, reads = "turns-by-norms", "Train on one task a step.", "norms"
    takes_turns, compares_tasks = True, False

    def weigh(self) -> Tensor:
        return torch.ones(len(TASKS))

    def update(self, read: Read) -> Result:
        return Result(statistics={"gradient_norms": read.norms})


MAKES = {
    "plain": lambda shared, **options: Plain(TASKS, **options),
    "norms": lambda shared, **options: ByNorms(None, wrt=[shared], tasks=TASKS, **options),
    "m-config": lambda shared, **options: MomentumConFIG(None, wrt=[shared], tasks=TASKS, **options),
}
each_kind = pytest.mark.parametrize("kind", MAKES)


class Run:
    """A balancer of losses that are numbers times parameters of their own, so that gradients tell who took part."""

    def __init__(self, kind: str, **options: int) -> None:
        self.shared = nn.Parameter(torch.ones(()))
        self.own = nn.Parameter(torch.ones(len(TASKS)))
        self.balancer = MAKES[kind](self.shared, **options)

    def losses(self) -> list[Tensor]:
        return [self.shared * each for each in self.own]

    def took_part(self, total: Tensor) -> list[int]:
        self.own.grad = None
        total.backward()
        assert self.own.grad is not None
        return self.own.grad.nonzero().flatten().tolist()

    def step(self, form: str = "list") -> list[int]:
        losses = self.losses()
        given = dict(zip(TASKS, losses, strict=True)) if form == "dict" else losses
        return self.took_part(self.balancer(torch.stack(losses) if form == "tensor" else given))


class TwoRanks(Ranks):
    """Stands for two ranks with the same losses."""

    size = 2

    def sum(self, tensors: list[Tensor]) -> list[Tensor]:
        return [2 * tensor for tensor in tensors]

    def union(self, given: tuple[bool, ...], names: object) -> tuple[bool, ...]:
        return given


@each_kind
@pytest.mark.parametrize("form", ["list", "dict", "tensor"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_each_step_trains_on_the_next_task(ranks: int, form: str, kind: str) -> None:
    run = Run(kind)
    if ranks == 2:
        run.balancer._ranks = TwoRanks(None)
    assert [run.step(form) for _ in range(7)] == [[0], [1], [2], [0], [1], [2], [0]]


@each_kind
def test_an_evaluation_between_call_and_pass_takes_no_turn(kind: str) -> None:
    run, found = Run(kind), []
    for _ in range(4):
        total = run.balancer(run.losses())
        with torch.no_grad():
            assert run.balancer(run.losses()) == 3
        found.append(run.took_part(total))
        with torch.no_grad():
            run.balancer(run.losses())
    assert found == [[0], [1], [2], [0]]


@each_kind
def test_a_step_with_some_tasks_takes_no_turn(kind: str) -> None:
    run = Run(kind)
    assert run.step() == [0]
    assert run.took_part(run.balancer({"c": run.losses()[2], "a": run.losses()[0]})) == [0, 2]
    assert [run.step() for _ in range(3)] == [[1], [2], [0]]


@each_kind
def test_a_call_without_a_pass_takes_no_turn(kind: str) -> None:
    run = Run(kind)
    run.balancer(run.losses())
    assert [run.step(), run.step()] == [[0], [1]]


def test_each_pass_of_a_window_has_its_turn() -> None:
    run = Run("norms", accumulate=3)
    assert [run.step() for _ in range(3)] == [[0], [1], [2]]
    torch.testing.assert_close(run.balancer.statistics["gradient_norms"], torch.full((3,), 1 / 3))


def test_a_held_block_trains_on_one_task() -> None:
    run = Run("plain")
    for task in range(4):
        with run.balancer.held():
            assert [run.step() for _ in range(3)] == [[task % 3]] * 3


@each_kind
def test_the_turn_is_saved(kind: str) -> None:
    run, other = Run(kind), Run(kind)
    run.step()
    run.step()
    other.balancer.load_state_dict(run.balancer.state_dict())
    assert other.step() == [2]


@each_kind
def test_it_is_not_captured(kind: str) -> None:
    run = Run(kind)
    with pytest.raises(ValueError, match="it takes the tasks in turn"):
        CapturedStep(run.step, [run.balancer])


def test_update_every_is_refused() -> None:
    with pytest.raises(ValueError, match=r"update_every is 2; expected 1: each step trains on the next task"):
        Run("norms", update_every=2)
