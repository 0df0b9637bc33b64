"""The optimiser of what a balancer learns counts each task's own steps, with tasks left out and after a restart."""

import copy
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from balancers import IMTLLoss, LossBalancer, Read, RevisedUncertaintyWeighting, UncertaintyWeighting
from balancers.engine.loss_input import Entries

TASKS = ("a", "b", "c")
ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}


class AheadUncertainty(UncertaintyWeighting):
    """Learns before the step is weighed."""

    when = "forward"

    def look(self, read: Read, losses: Entries, given: tuple[bool, ...] | None) -> None:
        """Read nothing but the losses."""


CLASSES = [UncertaintyWeighting, RevisedUncertaintyWeighting, IMTLLoss, AheadUncertainty]
each_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def step(balancer: LossBalancer, losses: Mapping[str, float]) -> None:
    given = {task: torch.tensor(loss, dtype=torch.float64, requires_grad=True) for task, loss in losses.items()}
    balancer(given).backward()


def learnt(balancer: LossBalancer) -> Tensor:
    assert isinstance(balancer, UncertaintyWeighting | RevisedUncertaintyWeighting | IMTLLoss)
    return balancer.get_buffer(balancer.learns).clone()


def numbers(steps: int, seed: int = 0) -> list[list[float]]:
    generator = torch.Generator().manual_seed(seed)
    rows: list[list[float]] = torch.randn(steps, len(TASKS), generator=generator).exp().tolist()
    return rows


@each_class
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_task_a_step_equals_a_balancer_for_each_task(cls: type[LossBalancer], optimizer: str) -> None:
    balancer = cls(TASKS, lr=0.01, optimizer=optimizer)
    alone = {task: cls([task], lr=0.01, optimizer=optimizer) for task in TASKS}
    for t, row in enumerate(numbers(40)):
        task = TASKS[t % 3]
        step(balancer, {task: row[0]})
        step(alone[task], {task: row[0]})
    expected = torch.cat([learnt(each) for each in alone.values()])
    torch.testing.assert_close(learnt(balancer), expected, rtol=1e-9, atol=1e-12)


@each_class
def test_a_task_that_comes_late_starts_at_the_learning_rate(cls: type[LossBalancer]) -> None:
    balancer = cls(TASKS, lr=0.01)
    for _ in range(30):
        step(balancer, {"a": 2.0, "b": 3.0})
    before = learnt(balancer)
    step(balancer, {"a": 2.0, "b": 3.0, "c": 5.0})
    moved = (learnt(balancer) - before).abs()[2].item()
    assert moved == pytest.approx(0.01, rel=1e-5)


@pytest.mark.slow
def test_a_compiled_update_counts_each_tasks_steps() -> None:
    found = []
    for compiles in (False, True):
        balancer = UncertaintyWeighting(TASKS, lr=0.01, compile=compiles)
        for t, row in enumerate(numbers(20)):
            step(balancer, dict(zip(TASKS[: 1 + t % 3], row, strict=False)))
        found.append(learnt(balancer))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_with_all_tasks_it_is_the_fused_optimiser_of_torch() -> None:
    balancer = IMTLLoss(TASKS, lr=0.01)
    values = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([values], lr=0.01, fused=True, **ADAM)
    for row in numbers(30):
        losses = torch.tensor(row, dtype=torch.float64)
        step(balancer, dict(zip(TASKS, row, strict=True)))
        values.grad = values.detach().exp() * losses - 1
        optimizer.step()
    assert torch.equal(learnt(balancer), values.detach())


PATTERNS: Mapping[str, Sequence[tuple[str, bool]]] = {
    "tasks left out": [("abc", True), ("a", True), ("bc", True), ("abc", True)],
    "tasks left out of a step that is not valid": [("abc", True), ("ab", False), ("abc", True), ("abc", True)],
    "all in turn": [("a", True), ("b", True), ("c", True), ("abc", True)],
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loaded_state_goes_on_to_the_bit(dtype: torch.dtype, pattern: str) -> None:
    def run(balancer: LossBalancer, seed: int) -> None:
        for (tasks, valid), row in zip(PATTERNS[pattern] * 2, numbers(8, seed), strict=True):
            given = {
                task: torch.tensor(row[TASKS.index(task)] if valid else torch.nan, dtype=dtype, requires_grad=True)
                for task in tasks
            }
            balancer(given).backward()

    balancer = RevisedUncertaintyWeighting(TASKS, lr=0.01)
    run(balancer, 0)
    for saved_after in range(4):
        other = RevisedUncertaintyWeighting(TASKS, lr=0.01)
        other.load_state_dict(copy.deepcopy(balancer.state_dict()))
        run(other, saved_after + 1)
        run(balancer, saved_after + 1)
        for name, value in balancer.named_buffers():
            assert torch.equal(other.get_buffer(name), value), f"{name} after run {saved_after}"
