"""Every problem can hold out part of its training set, for methods that learn from a second batch."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import tasks
from tasks.held_out import seen_data, selected, split_data, split_indices
from tasks.problem import Problem

from ..slow_params import others_slow

OPTIONS: dict[str, dict[str, Any]] = {
    "regression": {"sigmas": "T=2", "train_samples": 400},
    "scenes": {"size": [16, 16], "train_scenes": 40},
}
FOLDERS = ("nyuv2", "cityscapes")
"""Problems that read files which are not there."""
WITHOUT_FOLDERS = [name for name in tasks.names() if name not in FOLDERS]
QUICK = ("regression", "burgers", "apart")


class Samples(NamedTuple):
    inputs: Tensor
    label: Tensor | None = None


@dataclass(frozen=True)
class Data:
    train: Samples
    test: Samples


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_parts_are_disjoint_and_complete():
    kept, held = split_indices(95, generator(), 4)
    assert len(held) == 9
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(95))
    again = split_indices(95, generator(), 4)
    torch.testing.assert_close(again, (kept, held))


def test_as_many_are_held_out_as_a_batch_needs():
    kept, held = split_indices(40, generator(), 16)
    assert (len(kept), len(held)) == (24, 16)
    with pytest.raises(ValueError, match="a second batch of 21 samples can't be held out of a training set of 40"):
        split_indices(40, generator(), 21)


def test_only_the_training_set_is_split():
    data = Data(Samples(torch.arange(50)), Samples(torch.arange(3)))
    rest, held = split_data(data, generator(), 2)
    assert rest.test is data.test
    assert held.test is data.test
    assert rest.train.label is None
    assert torch.cat([rest.train.inputs, held.train.inputs]).sort().values.equal(torch.arange(50))


def test_a_dict_of_splits_is_data_too():
    data = {"train": (torch.arange(30), (torch.arange(30) + 1, None)), "test": 3}
    rest, held = split_data(data, generator(), 2)
    inputs, (targets, missing) = rest["train"]
    assert targets.equal(inputs + 1)
    assert missing is None
    assert rest["test"] == 3
    assert len(held["train"][0]) == 3


def test_files_are_split_too():
    assert selected(["a", "b", "c"], torch.tensor([2, 0])) == ["c", "a"]


def test_data_without_a_training_set_are_refused():
    with pytest.raises(TypeError, match="data of type int have no training set by the name train"):
        split_data(3, generator(), 1)
    with pytest.raises(TypeError, match="a training set of type set can't be split"):
        selected({1, 2}, torch.tensor([0]))


@pytest.mark.parametrize("name", others_slow(WITHOUT_FOLDERS, *QUICK))
def test_a_problem_trains_on_both_parts(name: str):
    problem: Problem[Any] = tasks.create(name, **OPTIONS.get(name, {}))
    data = problem.data(generator(), "cpu")
    size = min(problem.recipe.batch_size, 16)
    rest, held = problem.split(data, generator(), size)
    torch.manual_seed(0)
    model = problem.model()
    for part in (rest, held):
        losses = problem.losses(model, next(problem.batches(part, generator(), size)))
        assert all(loss.isfinite() for loss in losses)
    sizes = [problem.sizes(part).get("train", 0) for part in (data, rest, held)]
    assert sizes[0] == sizes[1] + sizes[2]
    assert problem.sizes(rest).get("test") == problem.sizes(data).get("test")


@pytest.mark.parametrize("name", others_slow(WITHOUT_FOLDERS, *QUICK))
def test_residuals_are_those_of_the_losses(name: str):
    problem: Problem[Any] = tasks.create(name, **OPTIONS.get(name, {}))
    data = problem.data(generator(), "cpu")
    batch = next(problem.batches(data, generator(), min(problem.recipe.batch_size, 16)))
    torch.manual_seed(0)
    model = problem.model()
    residuals = problem.residuals(model, batch)
    if residuals is None:
        assert name not in ("regression", "burgers", "helmholtz")
        return
    losses = list(problem.losses(model, batch))
    torch.testing.assert_close([each.square().mean() for each in residuals], losses)


def test_training_samples_can_take_the_place_of_validation() -> None:
    data = {"train": torch.arange(10), "validation": torch.arange(100, 104), "test": torch.arange(3)}
    seen = seen_data(data)
    assert seen is not None
    assert seen["validation"].tolist() == [0, 2, 5, 7]
    assert seen["train"] is data["train"]
    few = seen_data({"train": (torch.arange(2), torch.ones(2)), "validation": (torch.arange(9), torch.ones(9))})
    assert few is not None
    assert few["validation"][0].tolist() == [0, 1]
    assert seen_data({"train": torch.arange(3)}) is None
    assert seen_data({"train": {1, 2}, "validation": {3}}) is None
    assert seen_data(Data(Samples(torch.arange(3)), Samples(torch.arange(3)))) is None
