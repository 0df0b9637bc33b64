"""Each of six weightings before each of six combining methods keeps the contract of a single method."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from torch import nn

from balancers import (
    FAMO,
    MGDA,
    DynamicWeightAverage,
    Fork,
    GradDrop,
    GradientBalancer,
    GradNorm,
    InverseDirichlet,
    LossBalancer,
    MoCo,
    NashMTL,
    PCGrad,
    StaticWeighting,
    UncertaintyWeighting,
    UnitNorm,
)

from . import contract, contract_passes, contract_state
from .contract import COPIES, PLACES, TASKS, Case

pytestmark = pytest.mark.on_device
WEIGHTINGS: Mapping[type[LossBalancer], Mapping[str, Any]] = {
    StaticWeighting: {"weights": {"a": 0.5, "b": 1.0, "c": 1.5}},
    UncertaintyWeighting: {},
    DynamicWeightAverage: {"period": 1},
    FAMO: {},
    GradNorm: {},
    UnitNorm: {},
}
COMBINING = (MGDA, PCGrad, NashMTL, GradDrop, InverseDirichlet, MoCo)


def paired(weighting: type[LossBalancer], method: type[GradientBalancer]) -> type[GradientBalancer]:
    """Return the method with the weighting before it, as a method of its own."""

    class Paired(method):  # type: ignore[misc, valid-type]
        name = f"{weighting.name}, {method.name}"
        needs_positive_losses = method.needs_positive_losses or weighting.needs_positive_losses
        needs_nonnegative_losses = weighting.needs_nonnegative_losses
        random = method.random

        def __init__(
            self, fork: Fork | None, wrt: Any = None, *, tasks: int | Sequence[str] | None = None, **options: Any
        ) -> None:
            own: dict[str, Any] = {"tasks": tasks} | dict(WEIGHTINGS[weighting])
            if "weights" in own:
                assert isinstance(tasks, Sequence)
                own["weights"] = [own["weights"][task] for task in tasks]
            if issubclass(weighting, GradientBalancer):
                before: LossBalancer = weighting(fork, wrt, **own)
            else:
                before = weighting(**own)
            super().__init__(fork, wrt, tasks=tasks, weighting=before, **options)

    return Paired


def pairs() -> list[Case]:
    """Return a case of each pair where the combining method's paper measures."""
    found = []
    for weighting in WEIGHTINGS:
        for method in COMBINING:
            place = method.default_wrt if method.default_wrt in PLACES else "features"
            found.append(Case(paired(weighting, method), place, label=f"{weighting.name}-{method.name}"))
    return found


def copies(how: str) -> Callable[[Case], None]:
    return lambda case: contract.goes_on_to_the_bit(case, how)


CHECKS: Mapping[str, Callable[[Case], None]] = {
    "saves what steps change": contract.saves_what_steps_change,
    **{f"goes on to the bit, {how}": copies(how) for how in COPIES if how != "pickle"},
    "an invalid step leaves no trace": contract.leaves_no_trace,
    "check_finite raises": contract.check_finite_raises,
    "shows the weights it used": contract.shows_the_weights_it_used,
    "a task left out keeps its state": contract.left_out_tasks_keep_their_state,
    "accumulation changes nothing": contract.accumulation_changes_nothing,
    "eval mode only weighs": contract_passes.eval_mode_only_weighs,
    "the network's mode does not matter": contract_passes.network_mode_does_not_matter,
    "a second pass changes nothing": contract_passes.a_second_pass_changes_nothing,
    "a differentiated pass is no step": contract_passes.a_differentiated_pass_is_no_step,
    "an exception ends its own pass alone": contract_passes.an_exception_ends_its_own_pass_alone,
    "held weights hold": contract_passes.held_weights_hold,
    "saves tensors alone": contract_state.saves_tensors_alone,
    "survives averaging": contract_state.survives_averaging,
    "resets": contract_state.resets,
    "does not grow": contract_state.does_not_grow,
    "keeps addresses": contract_state.keeps_addresses,
    "shows copies of its weights": contract_state.shows_copies_of_its_weights,
}


@pytest.mark.slow  # not each of them, but together
@pytest.mark.filterwarnings("ignore:.* is made for:RuntimeWarning")
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", pairs(), ids=lambda case: case.label)
def test_pair(case: Case, check: str):
    CHECKS[check](case)


@pytest.mark.parametrize(
    "case",
    [case for case in pairs() if not case.label.startswith(("dwa", "gradnorm"))],  # whose weights sum to T
    ids=lambda case: case.label,
)
def test_a_task_left_out_takes_no_part(case: Case):
    contract.left_out_tasks_take_no_part(case)


def test_every_pair_has_a_case():
    assert len(pairs()) == len(WEIGHTINGS) * len(COMBINING) == 36
    assert all(isinstance(case.make(contract.Net(len(TASKS)), TASKS), nn.Module) for case in pairs())
