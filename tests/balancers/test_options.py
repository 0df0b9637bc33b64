"""Options: the numbers they take, how they are set on a balancer that is there, and the names that are not free."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from balancers import (
    FAMO,
    MGDA,
    AutoLambda,
    CoBa,
    DynamicWeightAverage,
    Fork,
    GradNorm,
    InverseGradientNorm,
    LossBalancer,
    MoCo,
    MoDo,
    NTKWeighting,
    SoftAdapt,
    Tchebycheff,
)
from balancers.engine import option, state

NAMES = ["near", "far"]


@pytest.mark.parametrize("values", [[1.0, 3.0], torch.tensor([1.0, 3.0]), np.array([1, 3]), (np.float32(1), 3)])
def test_one_number_for_each_task_may_be_any_sequence(values):
    assert Tchebycheff(2, preferences=values).preferences == [1, 3]
    assert FAMO(NAMES, min_losses=values).min_losses == [1, 3]


def test_numbers_of_numpy_are_numbers():
    balancer = DynamicWeightAverage(2, temperature=np.float32(0.5), period=np.int64(50))
    assert (balancer.temperature, balancer.period) == (0.5, 50)
    assert type(balancer.temperature) is float
    assert type(balancer.period) is int


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftAdapt(2, normalized="yes"), "normalized is 'yes'; expected True or False"),
        (lambda: SoftAdapt(2, normalized=1), "normalized is 1; expected True or False"),
        (lambda: Tchebycheff(2, preferences={0: 1.0, 1: 2.0}), "preferences goes by names, .* without names"),
        (lambda: Tchebycheff(NAMES, preferences={0: 1.0, 1: 2.0}), r"preferences names \(0, 1\), .* \(near, far\)"),
        (lambda: Tchebycheff(2, preferences=torch.ones(3)), "preferences has 3 entries"),
        (lambda: Tchebycheff(2, preferences=torch.ones(2, 2)), "expected finite numbers"),
        (lambda: GradNorm(Fork(2), alpha=torch.tensor([1.0])), "alpha is .*; expected a finite number, 0 or more"),
    ],
)
def test_what_is_no_value_is_refused_in_the_callers_words(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_option_that_is_set_later_is_checked_and_used():
    balancer = GradNorm(Fork(2), alpha=1.0)
    balancer.alpha = np.float64(0.5)
    assert balancer.alpha == 0.5
    assert "alpha=0.5" in repr(balancer)
    for name, value, message in [
        ("alpha", -1, "alpha is -1; expected a finite number, 0 or more"),
        ("lr", "high", "lr is 'high'"),
        ("accumulate", 0, "accumulate is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            setattr(balancer, name, value)
    assert balancer.alpha == 0.5


def test_freeze_after_can_be_set_later():
    trunk, fork = nn.Linear(3, 3), Fork(2)
    heads = nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1)])
    balancer = GradNorm(fork, wrt=trunk)

    def step() -> Tensor:
        losses = [head(z).square().mean() for head, z in zip(heads, fork(trunk(torch.ones(4, 3))), strict=True)]
        balancer(losses).backward()
        return balancer.next_weights.clone()

    step()
    balancer.freeze_after = 1
    frozen = step()
    assert torch.equal(frozen, step())
    balancer.freeze_after = 3
    assert not torch.equal(frozen, step())
    frozen = step()
    assert torch.equal(frozen, step())
    balancer.freeze_after = None
    assert not torch.equal(frozen, step())


def test_a_period_that_is_shortened_ends_with_the_next_step():
    balancer = DynamicWeightAverage(2, period=5)

    def step() -> float:
        balancer([torch.tensor(1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)]).backward()
        return balancer.steps.item()

    assert [step() for _ in range(4)] == [1, 2, 3, 4]
    balancer.period = 2
    assert [step() for _ in range(4)] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (lambda: Tchebycheff(2), "preferences", [9, 1]),
        (lambda: FAMO(2), "min_losses", 0.1),
        (lambda: FAMO(2), "process_group", False),
        (lambda: MGDA(Fork(2)), "averaging", 0.9),
        (lambda: GradNorm(Fork(2)), "optimizer", "sgd"),
        (lambda: SoftAdapt(2), "loss_weighted", True),
        (lambda: CoBa(2), "window", 9),
        (lambda: InverseGradientNorm(Fork(2)), "first_steps", 20),
        (lambda: AutoLambda(None, wrt=nn.Linear(2, 2), tasks=NAMES), "primary", "far"),
    ],
)
def test_options_from_which_others_follow_are_fixed(make, name, value):
    """They have become tensors, state or other facts, which would go on as they are."""
    balancer = make()
    before = getattr(balancer, name)
    with pytest.raises(AttributeError, match=f"{name} is fixed when a balancer is made"):
        setattr(balancer, name, value)
    assert getattr(balancer, name) == before


def test_options_that_do_not_go_together_are_refused_and_not_set():
    balancer = MoCo(None, wrt=nn.Linear(2, 2), tasks=NAMES)
    with pytest.raises(ValueError, match="update_every is 5; expected 1: every step changes what is tracked"):
        balancer.update_every = 5
    assert balancer.update_every == 1


@pytest.mark.parametrize(
    ("name", "declared", "owner"),
    [
        ("index", option(1.0), "DeclaredState"),
        ("weights", state(), "LossBalancer"),
        ("turn", option(0), "DeclaredState"),
        ("training", option(False), "Module"),
        ("register_buffer", option(1), "Module"),
    ],
)
def test_a_method_may_not_declare_a_name_that_is_taken(name, declared, owner):
    with pytest.raises(TypeError, match=f"Mine declares '{name}', which {owner} has for something else"):
        type("Mine", (LossBalancer,), {"name": "mine", name: declared})


@pytest.mark.parametrize("name", ["combines", "looks_again", "heads", "tunable"])
def test_a_method_may_not_set_what_follows_from_its_declarations(name):
    with pytest.raises(TypeError, match=f"Mine sets {name}, which follows from what it reads and when it learns"):
        type("Mine", (LossBalancer,), {"name": "mine", name: True})


class TestAutoLambda:
    def test_one_primary_task_may_be_given_by_itself(self):
        net = nn.Linear(2, 2)
        for primary in ("far", 1, ["far"], [1]):
            assert AutoLambda(None, wrt=net, tasks=NAMES, primary=primary).counts == (False, True)

    def test_parameters_that_the_optimiser_does_not_train_are_told_once(self):
        net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
        balancer = AutoLambda(None, wrt=net, tasks=NAMES)
        optimizer = torch.optim.SGD(net[0].parameters(), lr=0.1)
        balancer.follow(optimizer)
        balancer.second_batch(lambda: list(net(torch.ones(1, 2))[0].square()))
        with pytest.warns(RuntimeWarning, match="does not train 2 of the 4 parameters of wrt, which count as fixed"):
            balancer(list(net(torch.ones(1, 2))[0].square())).backward()
        balancer(list(net(torch.ones(1, 2))[0].square())).backward()  # warnings are errors here


@pytest.mark.parametrize("method", [AutoLambda, MoDo, NTKWeighting])
def test_methods_that_differentiate_when_they_are_called_take_no_fork(method):
    with pytest.raises(ValueError, match=rf"{method.__name__} .*"):
        method(Fork(2), wrt=nn.Linear(2, 2))
    assert "wrt='parameters'" in repr(method(None, wrt=nn.Linear(2, 2), tasks=2))
    assert "wrt='features'" in repr(MGDA(Fork(2)))
