"""Test the comparison of step costs: subjects, the analysis of times, the counts, and their bounds."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from balancers import Fork, LinearHeads
from bench.cost import step_comparison
from bench.cost.bounds import bounds
from bench.cost.cases import regression
from bench.cost.subject import Subject, SubjectError, features, make, task_names
from bench.cost.timed_methods import AGAIN, EQUAL, EVERY_TEN, FEATURES, LAYER

CPU = torch.device("cpu")


class Net(nn.Module):
    """A trunk of one layer and two heads, separate or as one product."""

    def __init__(self, layer: nn.Module, heads: nn.Module) -> None:
        super().__init__()
        self.trunk = layer
        self.heads = heads

    def forward(self, x: Tensor) -> Any:
        return self.heads(self.trunk(x))


def linear_net() -> Subject:
    net, x = Net(nn.Linear(3, 4), LinearHeads(2, 4, 1)), torch.randn(5, 3)
    return Subject(net, lambda: net(x).square().mean((0, 2)), net.trunk)


def test_each_copy_begins_alike() -> None:
    ours, theirs = (make(linear_net).model.state_dict() for _ in range(2))
    for name, values in ours.items():
        torch.testing.assert_close(values, theirs[name], rtol=0, atol=0)
    other = make(linear_net, seed=1).model.state_dict()
    assert not torch.equal(ours["trunk.weight"], other["trunk.weight"])


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: nn.Linear(1, 1), r"returned a Linear; expected \(model, losses\) or \(model, losses, wrt\)"),
        (lambda: (nn.Linear(1, 1),), "returned a tuple of 1"),
        (lambda: (3, list), "model is a int, not a Module"),
        (lambda: (nn.Linear(1, 1), [1.0]), "losses is a list; expected a function"),
        (lambda: (nn.Linear(1, 1).eval(), list), "in eval mode"),
        (lambda: (nn.ReLU(), list), "no parameter that requires grad"),
    ],
)
def test_what_is_no_subject_is_refused(made: Callable[[], Any], message: str) -> None:
    with pytest.raises(SubjectError, match=message):
        make(made)


def test_an_iterator_of_parameters_can_be_used_more_than_once() -> None:
    subject = make(lambda: (*linear_net()[:2], iter([nn.Parameter(torch.ones(2))])))
    assert [len(parameter) for parameter in subject.layer + subject.layer] == [2, 2]


def test_losses_are_those_of_several_tasks() -> None:
    one = torch.ones((), requires_grad=True)
    assert task_names({"size": one, "kind": one}) == ["size", "kind"]
    assert task_names([one, one]) == task_names(torch.stack([one, one])) == ["task 0", "task 1"]
    for losses, message in [
        (one, "one scalar; .* don't sum them"),
        ([one], "of one task"),
        ([one, one.expand(3)], r"task 1 has shape \(3,\); expected a scalar"),
        (3, "of type int"),
    ]:
        with pytest.raises(SubjectError, match=message):
            task_names(losses)


def test_features_are_what_the_fork_is_given() -> None:
    net, x = Net(nn.Linear(3, 4), LinearHeads(2, 4, 1)), torch.randn(5, 3)
    [z], losses = features(Subject(net, lambda: net(x).square().mean((0, 2))))
    torch.testing.assert_close(z, net.trunk(x))
    torch.testing.assert_close(losses, net.heads(z).square().mean((0, 2)))

    fork = Fork(2)
    p = nn.Parameter(torch.ones(3))
    nested = Subject(fork, lambda: [part["a"].sum() + part["b"][0].sum() for part in fork({"a": p * 2, "b": [p * 3]})])
    assert [leaf.tolist() for leaf in features(nested)[0]] == [[2.0] * 3, [3.0] * 3]
    assert not fork._forward_pre_hooks


def test_several_forks_are_refused() -> None:
    model = nn.Sequential(Fork(2), Fork(2))
    with pytest.raises(SubjectError, match=r"has 2 forks \(0, 1\)"):
        _ = Subject(model, list).fork


def test_times_are_compared_round_by_round() -> None:
    equal = np.random.default_rng(1).uniform(0.001, 0.1, size=100)
    row = step_comparison.time_row(1.5 * equal, equal, cycle=1)
    assert [row[name] for name in ("ratio", "ratio_low", "ratio_high")] == pytest.approx([1.5] * 3)
    assert row["median_ms"] == pytest.approx(1500 * np.median(equal))
    assert row["extra_ms"] == pytest.approx(500 * np.median(equal))


def test_a_cycle_counts_as_one() -> None:
    """Nine steps as long as equal weighting's and one twice as long make 1.1; a median of steps would be 1."""
    equal = np.ones(75)
    own = np.where(np.arange(75) % 10 == 4, 2.0, 1.0)
    row = step_comparison.time_row(own, equal, cycle=10)
    assert row["ratio"] == row["ratio_low"] == row["ratio_high"] == pytest.approx(1.1)
    assert row["extra_ms"] == pytest.approx(100)
    few = step_comparison.time_row(own[:9], equal[:9], cycle=10)
    assert np.isnan([few["ratio"], few["median_ms"], few["ratio_low"]]).all()


@pytest.mark.parametrize("heads", [0, 1])
def test_gradnorm_adds_the_arithmetic_of_its_bound(heads: int) -> None:
    num_tasks, batch = 3, 150  # so many rows that norms are those of products
    case = list(regression(num_tasks, batch, CPU))[heads]
    methods = (EQUAL, AGAIN, LAYER, FEATURES, EVERY_TEN)
    trainings = step_comparison.start(case.make_step, methods, num_tasks)
    step_comparison.warm_up(trainings, 10)  # then the method that measures at every tenth step measures in the next one
    table = step_comparison.counts(trainings)
    table.index = [method.name for method in methods]

    of_layer = 2 * batch * 100 * 100
    least = bounds(case.make_step, num_tasks)
    assert table["extra_flops"].tolist() == [0, 0, num_tasks * of_layer, 0, 0]
    assert least.flops == num_tasks * of_layer
    assert least.feature_bytes == (num_tasks + 1) * batch * 100 * 4
    assert least.layer_bytes == least.feature_bytes + 2 * (100 * 100 + 100) * 4
    assert table.loc[AGAIN.name, "extra_operator_calls"] == table.loc[AGAIN.name, "extra_peak_bytes"] == 0
    calls = table["extra_operator_calls"]
    assert 0 <= calls[EVERY_TEN.name] < calls[FEATURES.name] < calls[LAYER.name]


def test_the_bound_of_a_convolution() -> None:
    def make_step() -> Subject:
        net, x = Net(nn.Conv2d(3, 4, 3, padding=1), Fork(5)), torch.randn(2, 3, 8, 8)
        return Subject(net, lambda: [z.mean() for z in net(x)], net.trunk)

    least = bounds(make_step, num_tasks=5)
    assert least.flops == 5 * 2 * (2 * 8 * 8) * (3 * 4 * 3 * 3)
    assert least.layer_bytes == 6 * (2 * 4 * 8 * 8) * 4 + 2 * (3 * 4 * 3 * 3 + 4) * 4
