"""Options: the numbers they take, how they are set on a balancer that is there, and the names that are not free."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from balancers import (
    FAMO,
    MGDA,
    AutoLambda,
    DynamicWeightAverage,
    Fork,
    GradNorm,
    LossBalancer,
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
    assert torch.equal(step(), step())


@pytest.mark.parametrize(
    ("balancer", "name", "value"),
    [
        (Tchebycheff(2), "preferences", [9, 1]),
        (FAMO(2), "min_losses", 0.1),
    ],
)
def test_values_for_each_task_are_fixed(balancer, name, value):
    """They have become tensors, which would go on as they are."""
    before = getattr(balancer, name)
    with pytest.raises(AttributeError, match=f"{name} is fixed when a balancer is made"):
        setattr(balancer, name, value)
    assert getattr(balancer, name) == before


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
