"""Every method keeps the contract at every place it is defined for, and the checks can fail.

The methods are those of the registry, so that a new one is tested by being registered, and those that
`contract_plugins` defines as a plugin would. `contract`, `contract_state` and `contract_passes` have the checks.

With ``--method my_method.py``, they are those that this file registers, and nothing else is tested.

Each method is checked where its paper measures; checks of what the base classes do run for some methods that stand for
their kinds. All other methods, places, sets of options and windows of passes are slow tests.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from balancers import (
    MGDA,
    AnalyticUncertaintyWeighting,
    EqualWeighting,
    GradNorm,
    GradVac,
    LearningRateAnnealing,
    LossBalancer,
    Read,
    Result,
    State,
    get,
    names,
)
from balancers import UncertaintyWeighting as Uncertainty

from . import contract, contract_passes, contract_state
from .contract import COPIES, REPRESENTATIVES, Case, Subject
from .contract_plugins import OWN, PLUGINS

pytestmark = pytest.mark.on_device

REGISTERED = names()  # now: other tests register methods of their own while they run
CASES = list(contract.cases(OWN or [*map(get, REGISTERED), *PLUGINS]))
FAILS = (AssertionError, pytest.fail.Exception)


def every_step(case: Case) -> bool:
    return case.mode == ""


def is_representative(case: Case) -> bool:
    """Whether each step is learnt from, by one of `REPRESENTATIVES` or by a method that ``--method`` names."""
    return every_step(case) and (case.method.name in REPRESENTATIVES or case.method in OWN)


def each(*conditions: Callable[[Case], bool]) -> pytest.MarkDecorator:
    """Run a test once for each case that meets all conditions."""
    chosen = [case for case in CASES if all(condition(case) for condition in conditions)]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.label)


def each_at_home(
    *conditions: Callable[[Case], bool], fast: Callable[[Case], bool] = lambda case: True
) -> pytest.MarkDecorator:
    """Run a test once for each case that meets all conditions; those that are not `Case.at_home` and fast are slow."""
    chosen = [case for case in CASES if all(condition(case) for condition in conditions)]
    slow = [[] if case.at_home and fast(case) else [pytest.mark.slow] for case in chosen]
    marked = [pytest.param(case, marks=marks, id=case.label) for case, marks in zip(chosen, slow, strict=True)]
    return pytest.mark.parametrize("case", marked)


def has_windows(case: Case) -> bool:
    return case.passes > 1


def test_every_method_has_a_case():
    assert {case.method.name for case in CASES} == {*REGISTERED, *(method.name for method in PLUGINS)}
    assert {"equal", "static", "uncertainty", "gradnorm"} <= {*REGISTERED}
    assert len({case.label for case in CASES}) == len(CASES)


# State


@each_at_home(every_step, fast=is_representative)
def test_saves_every_buffer_that_steps_change(case: Case):
    contract.saves_what_steps_change(case)


@pytest.mark.parametrize("how", COPIES)
@each_at_home(fast=every_step)
def test_goes_on_to_the_bit(case: Case, how: str):
    contract.goes_on_to_the_bit(case, how)


@each_at_home(has_windows)
def test_a_state_saved_in_a_window_begins_it_anew(case: Case):
    contract.begins_its_window_anew(case)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@each(has_windows)
def test_a_copy_goes_on_in_its_window(case: Case, how: str):
    contract.copies_go_on_in_a_window(case, how)


@each_at_home(every_step, fast=is_representative)
def test_saves_tensors_alone(case: Case):
    contract_state.saves_tensors_alone(case)


@each_at_home(every_step, fast=is_representative)
def test_survives_safetensors(case: Case):
    safetensors = pytest.importorskip("safetensors.torch")
    contract_state.survives_as(case, lambda saved: safetensors.load(safetensors.save(saved)))


@each_at_home(every_step, fast=is_representative)
def test_survives_averaging(case: Case):
    contract_state.survives_averaging(case)


@pytest.mark.parametrize("how", ["reset", "assign"])
@each_at_home(every_step, fast=is_representative)
def test_begins_on_meta(case: Case, how: str):
    contract_state.begins_on_meta(case, how)


@each_at_home(fast=is_representative)
def test_resets(case: Case):
    contract_state.resets(case)


def test_a_frozen_balancer_resets():
    contract_state.resets(Case(GradNorm, "layer", {"freeze_after": 1}))


@pytest.mark.parametrize("how", COPIES)
def test_a_frozen_balancer_goes_on_to_the_bit(how: str):
    contract.goes_on_to_the_bit(Case(GradNorm, "layer", {"freeze_after": 4}), how)


def test_a_frozen_balancer_that_loads_an_earlier_state_learns_again():
    steps = contract.sequence(6)
    case = Case(GradNorm, "layer", {"freeze_after": 3})
    earlier, frozen = Subject(case), Subject(case)
    earlier.run(steps[:1])
    frozen.run(steps)
    frozen.balancer.load_state_dict(earlier.balancer.state_dict())
    contract.assert_traces(frozen.run(steps[1:]), earlier.run(steps[1:]), "after loading")


@each_at_home(fast=is_representative)
def test_what_it_holds_does_not_grow(case: Case):
    contract_state.does_not_grow(case)


@each_at_home(fast=is_representative)
def test_buffers_keep_their_addresses(case: Case):
    contract_state.keeps_addresses(case)


@each_at_home(every_step, fast=is_representative)
def test_shows_copies_of_its_weights(case: Case):
    contract_state.shows_copies_of_its_weights(case)


# Steps that are not valid


@pytest.mark.filterwarnings("ignore:.* is made for:RuntimeWarning")
@each_at_home(fast=every_step)
def test_an_invalid_step_leaves_no_trace(case: Case):
    contract.leaves_no_trace(case)


@each_at_home(fast=every_step)
def test_check_finite_raises(case: Case):
    contract.check_finite_raises(case)


# Weights and tasks


@each_at_home(fast=every_step)
def test_shows_the_weights_it_used(case: Case):
    contract.shows_the_weights_it_used(case)


@pytest.mark.filterwarnings("ignore:.* compares tasks:RuntimeWarning")
@each_at_home(contract.keeps_absent_tasks, fast=every_step)
def test_a_task_left_out_keeps_its_state(case: Case):
    contract.left_out_tasks_keep_their_state(case)


@each_at_home(every_step, contract.sees_tasks_alone)
def test_a_task_left_out_takes_no_part(case: Case):
    contract.left_out_tasks_take_no_part(case)


# Windows and turns


@each(has_windows, lambda case: case.by_state)
def test_weights_hold_in_a_window(case: Case):
    contract.holds_in_a_window(case)


@each_at_home(every_step, lambda case: case.combines)
def test_accumulation_changes_nothing_for_methods_that_combine(case: Case):
    contract.accumulation_changes_nothing(case)


@each_at_home(lambda case: case.mode == "update_every")
def test_learns_at_its_turn_alone(case: Case):
    contract.learns_at_its_turn_alone(case)


# Single passes


@each_at_home(fast=is_representative)
def test_eval_mode_only_weighs(case: Case):
    contract_passes.eval_mode_only_weighs(case)


@each_at_home(lambda case: case.measures, fast=is_representative)
def test_the_networks_mode_does_not_matter(case: Case):
    contract_passes.network_mode_does_not_matter(case)


@each_at_home(fast=is_representative)
def test_a_second_pass_changes_nothing(case: Case):
    contract_passes.a_second_pass_changes_nothing(case)


@each_at_home(every_step, fast=is_representative)
def test_a_differentiated_pass_is_no_step(case: Case):
    contract_passes.a_differentiated_pass_is_no_step(case)


@each_at_home(fast=is_representative)
def test_an_exception_ends_its_own_pass_alone(case: Case):
    contract_passes.an_exception_ends_its_own_pass_alone(case)


@each_at_home(fast=is_representative)
def test_held_weights_hold(case: Case):
    contract_passes.held_weights_hold(case)


# The checks can fail


class LearnsFromInvalidSteps(Uncertainty):
    def update(self, read: Read, state: State) -> Result:
        state["log_variances"].add_(torch.where(read.losses.isfinite().all(), 0.0, 0.1))
        return super().update(read, state)


class LearnsFromInvalidGradients(GradVac):
    def commit(self, new: State, index: Tensor | None, valid: Tensor) -> None:
        super().commit(new, index, torch.ones_like(valid))


class WritesItsState(LearningRateAnnealing):
    def update(self, read: Read, state: State) -> Result:
        result = super().update(read, state)
        state["multipliers"].copy_(result.state["multipliers"].nan_to_num(nan=1.0))
        return result


class SavesTooLittle(Uncertainty):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("updates", torch.zeros(()), persistent=False)

    def weigh(self, state: State) -> Tensor:
        return super().weigh(state) / (1 + self.updates)

    def update(self, read: Read, state: State) -> Result:
        self.updates.add_(1)
        return super().update(read, state)


class SharesItsState(Uncertainty):
    def __deepcopy__(self, memo: dict[int, Any]) -> "SharesItsState":
        return copy.copy(self)


class SavesOneTensorTwice(Uncertainty):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("log_variances_too", self.log_variances)


class SavesANumber(Uncertainty):
    def get_extra_state(self) -> Any:
        return 3


class SavesIntegers(Uncertainty):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("tasks_seen", torch.zeros((), dtype=torch.int64))


class HasABufferThatIsNotReset(Uncertainty):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("factor", torch.ones(()), persistent=False)

    def weigh(self, state: State) -> Tensor:
        return super().weigh(state) * self.factor


class KeepsATensorOfEachStep(Uncertainty):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen: list[Tensor] = []

    def update(self, read: Read, state: State) -> Result:
        self.seen.append(read.losses)
        return super().update(read, state)


class KeepsATensorOfEachStepElsewhere(Uncertainty):
    kept: ClassVar[list[Tensor]] = []

    def update(self, read: Read, state: State) -> Result:
        self.kept.append(read.losses)
        return super().update(read, state)


class KeepsTheGraph(EqualWeighting):
    def forward(self, losses: Any) -> Tensor:
        self.last_total = super().forward(losses)
        return self.last_total


class RebindsABuffer(Uncertainty):
    def update(self, read: Read, state: State) -> Result:
        result = super().update(read, state)
        self.log_variances = self.log_variances.clone()
        return result


class ShowsItsOwnTensor(EqualWeighting):
    weights = property(lambda self: self.last_weights)


class TeachesAbsentTasks(Uncertainty):
    sees_all_tasks = True


class WeighsAbsentTasks(LearningRateAnnealing):
    def update(self, read: Read, state: State) -> Result:
        self.multipliers.mul_(torch.where(read.losses.isfinite().all(), 0.9, 1.0))
        return super().update(read, state)


class CountsAbsentTasks(MGDA):
    def solve(self, gramian: Tensor) -> Tensor:
        return super().solve(gramian) * gramian.shape[-1] / self.num_tasks


class CountsAbsentTasksInItsWeights(AnalyticUncertaintyWeighting):
    def weigh(self, losses: Tensor) -> Tensor:
        return super().weigh(losses) * losses.shape[-1] / self.num_tasks


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


class LearnsInEvalMode(Uncertainty):
    def train(self, mode: bool = True) -> "LearnsInEvalMode":
        return super().train()


class LearnsFromEachPass(Uncertainty):
    def forward(self, losses: Any) -> Tensor:
        total = super().forward(losses)
        if total.requires_grad:
            total.register_hook(self.learn)
        return total

    def learn(self, _: Tensor) -> None:
        self.log_variances.add_(0.1)


class HoldsNoWeights(MGDA):
    def held(self) -> Any:
        return nullcontext(self)


class FollowsTheModeOfItsNetwork(MGDA):
    def forward(self, losses: Any) -> Tensor:
        training = self.training
        self.train(training and self.fork.training)
        total = super().forward(losses)
        self.train(training)
        return total


FAULTY: list[tuple[type[LossBalancer], str, str, Callable[[Case], None]]] = [
    (LearnsFromInvalidSteps, "", "", contract.leaves_no_trace),
    (LearnsFromInvalidSteps, "", "accumulate", contract.leaves_no_trace),
    (LearnsFromInvalidGradients, "layer", "", contract.leaves_no_trace),
    (LearnsFromInvalidGradients, "parameters", "update_every", contract.leaves_no_trace),
    (WritesItsState, "layer", "", contract.leaves_no_trace),
    (WritesItsState, "parameters", "update_every", contract.leaves_no_trace),
    (SavesTooLittle, "", "", contract.saves_what_steps_change),
    (SavesTooLittle, "", "", lambda case: contract.goes_on_to_the_bit(case, "loaded")),
    (SavesTooLittle, "", "", lambda case: contract.goes_on_to_the_bit(case, "loaded by a used one")),
    (SavesTooLittle, "", "", contract_state.resets),
    (SharesItsState, "", "", lambda case: contract.goes_on_to_the_bit(case, "deepcopy")),
    (SavesOneTensorTwice, "", "", contract_state.saves_tensors_alone),
    (SavesANumber, "", "", contract_state.saves_tensors_alone),
    (SavesIntegers, "", "", contract_state.saves_tensors_alone),
    (HasABufferThatIsNotReset, "", "", lambda case: contract_state.begins_on_meta(case, "reset")),
    (KeepsATensorOfEachStep, "", "", contract_state.does_not_grow),
    (KeepsATensorOfEachStep, "", "accumulate", contract_state.does_not_grow),
    (KeepsATensorOfEachStepElsewhere, "", "", contract_state.does_not_grow),
    (KeepsTheGraph, "", "", contract_state.does_not_grow),
    (RebindsABuffer, "", "", contract_state.keeps_addresses),
    (RebindsABuffer, "", "accumulate", contract_state.keeps_addresses),
    (ShowsItsOwnTensor, "", "", contract_state.shows_copies_of_its_weights),
    (TeachesAbsentTasks, "", "", contract.left_out_tasks_keep_their_state),
    (WeighsAbsentTasks, "parameters", "", contract.left_out_tasks_keep_their_state),
    (CountsAbsentTasks, "features", "", contract.left_out_tasks_take_no_part),
    (CountsAbsentTasksInItsWeights, "", "", contract.left_out_tasks_take_no_part),
    (ShowsOtherWeights, "", "", contract.shows_the_weights_it_used),
    (HidesInvalidSteps, "", "", contract.check_finite_raises),
    (LearnsInTheMidstOfWindows, "", "accumulate", contract.holds_in_a_window),
    (LearnsOutOfTurn, "features", "update_every", contract.learns_at_its_turn_alone),
    (LearnsInEvalMode, "", "", contract_passes.eval_mode_only_weighs),
    (FollowsTheModeOfItsNetwork, "features", "", contract_passes.network_mode_does_not_matter),
    (LearnsFromEachPass, "", "", contract_passes.a_second_pass_changes_nothing),
    (LearnsFromEachPass, "", "", contract_passes.a_differentiated_pass_is_no_step),
    (LearnsFromEachPass, "", "", contract_passes.an_exception_ends_its_own_pass_alone),
    (LearnsFromEachPass, "", "", contract_passes.held_weights_hold),
    (HoldsNoWeights, "features", "", contract_passes.held_weights_hold),
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
