"""Cityscapes, on small files of the same layout, where it differs from NYUv2. NYUv2's tests cover what they share."""

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from balancers import GradNorm
from bench.run.spec import Method, RunSpec
from bench.run.training import Training
from tasks import MissingDataError
from tasks.cityscapes import Cityscapes
from tasks.dense.folder_problem import Found

from .dense_files import write

FILES = {"classes": 7, "labels": "label_7", "normals": False, "farthest": 0.5}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("cityscapes"), train=45, val=6, **FILES)


def made(root: Path, **options: object) -> Cityscapes:
    problem = Cityscapes(**{"root": str(root), "width": 8, "num_workers": 0, **options})
    problem.check()
    return problem


@pytest.fixture(scope="module")
def problem(root: Path) -> Cityscapes:
    return made(root)


@pytest.fixture(scope="module")
def data(problem: Cityscapes) -> Found:
    return problem.data(seeded(0), "cpu")


def training(problem: Cityscapes, method: Method, steps: int) -> Training:
    options = {"root": str(problem.root), "width": 8, "num_workers": 0}
    recipe = replace(problem.recipe, lr=1e-2, steps=steps)
    done = Training(RunSpec(problem.name, options, recipe, method, 1, "reported", "cpu", 2))
    done.run()
    assert done.result.status == "ok", done.result.reason
    return done


@pytest.fixture(scope="module")
def equal(problem: Cityscapes) -> Training:
    return training(problem, Method("equal", None, {}), 60)


def test_there_are_no_normals(problem, data):
    batch = next(problem.batches(data, seeded(1), 8))
    assert batch.normal is None
    assert batch.label.shape == (8, 32, 64)
    assert problem.sizes(data) == {"train": 40, "validation": 5, "test": 6}
    assert len(problem.losses(problem.model(), batch)) == len(problem.tasks) == 2
    assert {metric.task for metric in problem.metrics} == {None, "segmentation", "depth"}
    assert {metric.unit for metric in problem.metrics if metric.task == "depth"} == {""}


@pytest.mark.parametrize("names", [["label_7"], ["label"], ["label_7", "label"]])
def test_labels_of_seven_classes_are_preferred(tmp_path, names):
    for name in reversed(names):
        write(tmp_path, train=6, val=1, **{**FILES, "labels": name})
    problem = made(tmp_path)
    files = problem.data(seeded(0), "cpu").train[0]
    assert files["label"].parent.name == names[0]


def test_missing_data_are_named(tmp_path):
    with pytest.raises(MissingDataError, match=r"cityscapes needs the option root, .*github\.com/lorenmt/mtan"):
        Cityscapes().require()
    write(tmp_path, train=6, val=1, **{**FILES, "labels": "label_2"})
    with pytest.raises(MissingDataError, match=re.escape(f"no folder {tmp_path / 'train' / 'label_7'}")):
        made(tmp_path).require()


def test_augmentation_enlarges_inverse_depth(root, data):
    def deepest(problem):
        batches = itertools.islice(problem.batches(data, seeded(3), 8), 15)
        return {round(float(one.depth.max()), 3) for batch in batches for one in batch.split(1)}

    assert deepest(made(root)) == {0.5}
    found = deepest(made(root, augment=True))
    assert {0.5, 0.6, 0.75} <= found  # other values come from crops without the nearest wall
    assert (min(found), max(found)) == (0.5, 0.75)


def test_a_balancer_finds_each_loss_behind_its_own_alias(problem, data):
    torch.manual_seed(0)
    model = problem.model()
    shared = problem.shared(model)
    balancer = GradNorm(shared.fork, wrt=shared.layer, tasks=problem.tasks)
    balancer(problem.losses(model, next(problem.batches(data, seeded(2), 4)))).backward()
    assert (balancer.statistics["gradient_norms"] > 0).all()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_constant_predictor_scores_one(problem, data, split):
    constant = problem.constant(data)
    assert problem.evaluate(constant, data, split)["relative error"] == pytest.approx(1)
    assert len(constant.values) == 2


def test_inverse_chance_weights():
    weights = Cityscapes().static_weights["inverse-chance"]
    np.testing.assert_allclose(weights[0] * math.log(7), weights[1] / 8)
    assert sum(weights) == pytest.approx(2)


@pytest.mark.slow
def test_every_task_is_learned(equal):
    scores = {score.checkpoint: score.metrics for score in equal.result.scores if score.split == "test"}
    assert scores["last"]["mIoU"] > 2 * scores["constant"]["mIoU"]
    for error in ("relative error", "absolute depth error"):
        assert scores["last"][error] < 0.7 * scores["constant"][error]


@pytest.mark.slow
@pytest.mark.parametrize("method", [Method("uncertainty", None, {}), Method("gradnorm", "layer", {})])
def test_it_trains_with_other_balancers(problem, method):
    done = training(problem, method, 6)
    assert np.isfinite(done.result.losses).all()


@pytest.mark.slow
def test_the_same_seeds_give_the_same_bits(problem):
    first, second = (training(problem, Method("equal", None, {}), 4) for _ in range(2))
    np.testing.assert_array_equal(first.result.losses, second.result.losses)
    assert first.result.scores == second.result.scores


@pytest.mark.slow
@pytest.mark.parametrize("with_model", [False, True])
def test_draw(problem, data, equal, with_model):
    figure = Figure((9, 5), layout="constrained")
    caption = problem.draw(figure, data, equal.model if with_model else None)
    assert ("predicts" in caption) == with_model
    assert "normal" not in caption
    assert len(figure.axes) == 3 * (5 if with_model else 3) + 1
    assert figure.axes[-1].get_ylabel() == "inverse depth"
    figure.draw_without_rendering()
