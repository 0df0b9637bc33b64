"""The examples in the problems' docstrings run, and leave what their comments say."""

import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import balancers
import tasks
from balancers import Fork
from tasks import problem_registry

from ..docstring_examples import TOML_BLOCKS, examples, public_classes
from .dense_files import write

Names = dict[str, Any]

FOLDERS = "dense.npy_files"
"""Its block shows how files lie in folders."""
EXAMPLES = {place: code for place, code in examples(tasks).items() if place != FOLDERS}
TOML = examples(tasks, TOML_BLOCKS)


def _trains(left: Names) -> bool:
    return len(left["losses"]) == 2 and all(loss.isfinite() for loss in left["losses"])


def _registered(left: Names) -> bool:
    return tasks.get("my-problem") is left["MyProblem"]


def _shared(left: Names) -> bool:
    model = nn.Module()
    model.trunk, model.fork = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)), Fork(2)
    shared = left["shared"](None, model)
    return shared.fork is model.fork and shared.layer is model.trunk[1] and len(shared.parameters) == 4


def _helmholtz(left: Names) -> bool:
    torch.manual_seed(0)
    losses = left["problem"].losses(left["problem"].model(), left["batch"])
    torch.manual_seed(0)
    residuals = left["problem"].residuals(left["problem"].model(), left["batch"])
    return all(loss.isclose(r.square().mean()) for loss, r in zip(losses, residuals, strict=True))


HOLDS: dict[str, Callable[[Names], object]] = {
    "__init__": _trains,
    "apart.Apart": lambda left: left["scores"]["relative loss"] == pytest.approx(1),
    "burgers.Burgers": lambda left: left["u"].shape == (100,) and left["balancer"].num_tasks == 3,
    "cityscapes.Cityscapes": lambda left: left["problem"].augment,
    "conflict_2d.Conflict2D": lambda left: left["balancer"]([left["first"], left["second"]]).isfinite(),
    "digit_pairs.DigitPairs": lambda left: (
        left["left"].shape == left["right"].shape == (8, 10) and left["sums"].shape == (8,)
    ),
    "flights.Flights": lambda left: (
        sum(left["problem"].static_weights["inverse-constant"]) == pytest.approx(3, abs=1e-3)
    ),
    "helmholtz.Helmholtz": _helmholtz,
    "image_codec.ImageCodec": lambda left: left["decoded"].images.shape == (8, 28, 28),
    "multi_token.MultiToken": lambda left: left["logits"].shape == (2, 32, 4, 80),
    "nyuv2.NYUv2": lambda left: left["problem"].full.steps == 200 * 714 // 2,
    "poisson_l_shape.PoissonLShape": lambda left: left["scores"][left["problem"].primary] > 0,
    "problem.MissingDataError": lambda left: "root" in left["said"][0],
    "problem.Metric": lambda left: left["metric"].unit == "m",
    "problem.Problem": lambda left: left["scores"][left["problem"].primary] > 0,
    "problem.Recipe": lambda left: left["full"].steps == 10 * left["recipe"].steps,
    "problem.Shared": _shared,
    "problem_registry": _registered,
    "reaction_diffusion.ReactionDiffusion": lambda left: len(left["balancer"].measured_parameters()) > 0,
    "recommender.Recommender": lambda left: left["problem"].ceiling(left["data"])[left["problem"].primary] < 1,
    "regression.Regression": lambda left: left["balancer"].num_tasks == 10,
    "same_tasks.SameTasks": lambda left: left["second"].isclose(100 * left["first"]),
    "scenes.scenes_problem.Scenes": lambda left: (
        left["classes"].shape == (4, 5, 32, 48)
        and left["depth"].shape == (4, 1, 32, 48)
        and left["normals"].shape == (4, 3, 32, 48)
    ),
}
"""What holds after each example."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that examples run in, which has small files of the data sets that are not installed."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("place", public_classes(tasks))
def test_every_public_class_has_an_example(place: str) -> None:
    assert place in EXAMPLES


def test_every_example_of_the_docstrings_has_a_place_to_run() -> None:
    assert sorted(EXAMPLES) == sorted(HOLDS)


@pytest.mark.parametrize("place", HOLDS)
def test_an_example_of_a_docstring_runs(place: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem_registry, "_classes", dict(problem_registry._classes))
    if place == "cityscapes.Cityscapes":
        write(folder / "data" / "cityscapes", normals=False)
    if place == "nyuv2.NYUv2":
        write(folder / "data" / "nyuv2")
    torch.manual_seed(0)
    public: Names = {name: getattr(package, name) for package in (balancers, tasks) for name in package.__all__}
    public |= {"tasks": tasks, "torch": torch, "nn": nn, "replace": replace, "MyData": SimpleNamespace}
    said = list[str]()
    names: Names = {"said": said, "print": lambda error: said.append(str(error))}
    code = EXAMPLES[place]
    if place == "__init__":  # its loop has no end
        code = code.replace("    ...", "    break")

    exec(code, public | names, names)

    assert HOLDS[place](names)


@pytest.mark.parametrize("place", TOML)
def test_an_example_of_toml_can_be_read(place: str) -> None:
    assert tomllib.loads(TOML[place])
