"""Every registered method keeps the contract at every place it is defined for, and the checks can fail.

The methods come from the registry, so that a new one, or a plugin's, is tested by being registered. `contract` has the
checks, and the options of the methods that need some.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from balancers import (
    MGDA,
    EqualWeighting,
    GradNorm,
    GradVac,
    GramianBalancer,
    LearningRateAnnealing,
    LossBalancer,
    names,
)
from balancers import UncertaintyWeighting as Uncertainty

from . import contract
from .contract import COPIES, KNOWN_FAULTS, LEARNS_BETWEEN, Case

CASES = list(contract.cases())
REGISTERED = set(names())  # now: other tests register methods of their own while they run
FAILS = (AssertionError, pytest.fail.Exception)


def each(*conditions: Callable[[Case], bool]) -> pytest.MarkDecorator:
    """Run a test once for each case that meets all conditions."""
    chosen = [case for case in CASES if all(condition(case) for condition in conditions)]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.label)


def every_step(case: Case) -> bool:
    return case.mode == ""


def has_windows(case: Case) -> bool:
    return case.passes > 1


def has_known_faults(case: Case) -> bool:
    return case.method.name in KNOWN_FAULTS and every_step(case) and not case.options


def test_every_method_has_a_case():
    assert {case.method.name for case in CASES} == REGISTERED >= {"equal", "static", "uncertainty", "gradnorm"}
    assert len({case.label for case in CASES}) == len(CASES)


# State


@each(every_step)
def test_saves_every_buffer_that_steps_change(case: Case):
    contract.saves_what_steps_change(case)


@pytest.mark.parametrize("how", COPIES)
@each()
def test_goes_on_to_the_bit(case: Case, how: str, request: pytest.FixtureRequest):
    if case.method is GradNorm and case.mode == "update_every" and how in ("deepcopy", "pickle"):
        reason = "a copy made after a measured step goes on with the weights of that step, not the next one's"
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    contract.goes_on_to_the_bit(case, how)


@each(has_windows)
def test_a_state_saved_in_a_window_begins_it_anew(case: Case):
    contract.begins_its_window_anew(case)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@each(has_windows)
def test_a_copy_goes_on_in_its_window(case: Case, how: str):
    contract.copies_go_on_in_a_window(case, how)


# Steps that are not valid


@each()
def test_an_invalid_step_leaves_no_trace(case: Case):
    contract.leaves_no_trace(case)


@each()
def test_check_finite_raises(case: Case):
    contract.check_finite_raises(case)


known_faults = pytest.mark.xfail(
    strict=True,
    raises=FAILS,
    reason="its scales change with gradients that are not valid, and its weights with losses that are not",
)


@known_faults
@each(has_known_faults)
def test_known_faults_leave_no_trace(case: Case):
    contract.leaves_no_trace(case, known=True)


@known_faults
@each(has_known_faults)
def test_check_finite_raises_at_known_faults(case: Case):
    contract.check_finite_raises(case, known=True)


# Weights and tasks


@each()
def test_shows_the_weights_it_used(case: Case):
    contract.shows_the_weights_it_used(case)


@each()
def test_a_task_left_out_keeps_its_state(case: Case):
    contract.left_out_tasks_keep_their_state(case)


@each(every_step, lambda case: issubclass(case.method, GramianBalancer))
def test_a_task_left_out_takes_no_part(case: Case):
    contract.left_out_tasks_take_no_part(case)


# Windows and turns


@each(has_windows, lambda case: case.ahead)
def test_weights_hold_in_a_window(case: Case):
    contract.holds_in_a_window(case)


@each(every_step, lambda case: case.combines)
def test_accumulation_changes_nothing_for_methods_that_combine(case: Case):
    contract.accumulation_changes_nothing(case)


@each(lambda case: case.mode == "update_every", lambda case: case.method.name not in LEARNS_BETWEEN)
def test_learns_at_its_turn_alone(case: Case):
    contract.learns_at_its_turn_alone(case)


# The checks can fail


class LearnsFromInvalidSteps(Uncertainty):
    def update(self, losses: Tensor, given: Tensor | None) -> Tensor:
        valid = super().update(losses, given)
        self.log_variances.add_(torch.where(valid, 0.0, 0.1))
        return valid


class LearnsFromInvalidGradients(GradVac):
    def decide(self, gramian: Tensor, valid: Tensor) -> Tensor:
        return super().decide(gramian, torch.ones_like(valid))


class SavesTooLittle(Uncertainty):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("updates", torch.zeros(()), persistent=False)

    def weigh(self, losses: Tensor) -> Tensor:
        return super().weigh(losses) / (1 + self.updates)

    def update(self, losses: Tensor, given: Tensor | None) -> Tensor:
        valid = super().update(losses, given)
        self.updates.add_(valid)
        return valid


class SharesItsState(Uncertainty):
    def __deepcopy__(self, memo: dict[int, Any]) -> "SharesItsState":
        return copy.copy(self)


class TeachesAbsentTasks(Uncertainty):
    def update(self, losses: Tensor, given: Tensor | None) -> Tensor:
        return super().update(losses, None)


class WeighsAbsentTasks(LearningRateAnnealing):
    def combine(self, gradients: Any, losses: Tensor) -> Any:
        made = super().combine(gradients, losses)
        self.multipliers.mul_(torch.where(made.valid, 0.9, 1.0))
        return made


class CountsAbsentTasks(MGDA):
    def solve(self, gramian: Tensor) -> Tensor:
        return super().solve(gramian) * gramian.shape[-1] / self.num_tasks


class ShowsOtherWeights(EqualWeighting):
    def forward(self, losses: Any) -> Tensor:
        return 2 * super().forward(losses)


class HidesInvalidSteps(EqualWeighting):
    def __init__(self, *args: Any, check_finite: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)


class LearnsInTheMidstOfWindows(Uncertainty):
    def __init__(self, *args: Any, accumulate: int = 1, **options: Any) -> None:
        super().__init__(*args, **options)


class LearnsOutOfTurn(MGDA):
    def __init__(self, *args: Any, update_every: int = 1, **options: Any) -> None:
        super().__init__(*args, **options)


FAULTY: list[tuple[type[LossBalancer], str, str, Callable[[Case], None]]] = [
    (LearnsFromInvalidSteps, "", "", contract.leaves_no_trace),
    (LearnsFromInvalidSteps, "", "accumulate", contract.leaves_no_trace),
    (LearnsFromInvalidGradients, "layer", "", contract.leaves_no_trace),
    (LearnsFromInvalidGradients, "parameters", "update_every", contract.leaves_no_trace),
    (SavesTooLittle, "", "", contract.saves_what_steps_change),
    (SavesTooLittle, "", "", lambda case: contract.goes_on_to_the_bit(case, "loaded")),
    (SavesTooLittle, "", "", lambda case: contract.goes_on_to_the_bit(case, "loaded by a used one")),
    (SharesItsState, "", "", lambda case: contract.goes_on_to_the_bit(case, "deepcopy")),
    (TeachesAbsentTasks, "", "", contract.left_out_tasks_keep_their_state),
    (WeighsAbsentTasks, "parameters", "", contract.left_out_tasks_keep_their_state),
    (CountsAbsentTasks, "features", "", contract.left_out_tasks_take_no_part),
    (ShowsOtherWeights, "", "", contract.shows_the_weights_it_used),
    (HidesInvalidSteps, "", "", contract.check_finite_raises),
    (LearnsInTheMidstOfWindows, "", "accumulate", contract.holds_in_a_window),
    (LearnsOutOfTurn, "features", "update_every", contract.learns_at_its_turn_alone),
]


@pytest.mark.parametrize(
    ("method", "place", "mode", "check"),
    FAULTY,
    ids=lambda value: value.__name__ if isinstance(value, type) else value if isinstance(value, str) else "",
)
def test_the_checks_catch(method: type[LossBalancer], place: str, mode: str, check: Callable[[Case], None]):
    """A check fails for a faulty method, and passes for the method that it was made from."""
    check(Case(method.__base__, place, mode=mode))
    with pytest.raises(FAILS):
        check(Case(method, place, mode=mode))
