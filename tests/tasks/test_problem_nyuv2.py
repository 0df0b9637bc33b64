"""NYUv2 reads, batches, trains on, scores and draws small files of the same layout."""

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.metrics import jaccard_score

from balancers import GradNorm
from bench.run.spec import Method, RunSpec
from bench.run.training import Training
from tasks import MissingDataError
from tasks.dense import folder_problem
from tasks.dense.dense_problem import target
from tasks.dense.folder_problem import Found
from tasks.dense.images import Images
from tasks.dense.network import SegNet
from tasks.dense.npy_files import BadDataError
from tasks.nyuv2 import NYUv2

from ..slow_params import others_slow
from .dense_files import write

TRAIN, VAL = 53, 6
SPLITS = pytest.mark.parametrize("split", ["validation", "test"])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("nyuv2"), train=TRAIN, val=VAL)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Write a data set that a test may break."""
    return write(tmp_path, train=12, val=2, size=(32, 32))


def made(root: Path, **options: object) -> NYUv2:
    problem = NYUv2(**{"root": str(root), "width": 8, "num_workers": 0, **options})
    problem.check()
    return problem


@pytest.fixture(scope="module")
def problem(root: Path) -> NYUv2:
    return made(root)


@pytest.fixture(scope="module")
def data(problem: NYUv2) -> Found:
    return problem.data(seeded(0), "cpu")


def initial_model(problem: NYUv2, seed: int = 0) -> SegNet:
    torch.manual_seed(seed)
    return problem.model()


def training(problem: NYUv2, method: Method, steps: int = 60) -> Training:
    options = {"root": str(problem.root), "width": 8, "num_workers": 0}
    recipe = replace(problem.recipe, lr=1e-2, batch_size=8, steps=steps)
    done = Training(RunSpec(problem.name, options, recipe, method, 1, "reported", "cpu", 2))
    done.run()
    assert done.result.status == "ok", done.result.reason
    return done


@pytest.fixture(scope="module")
def equal(problem: NYUv2) -> Training:
    return training(problem, Method("equal", None, {}))


def taken(problem: NYUv2, count: int, seed: int = 2, batch_size: int = 4) -> list[Images]:
    batches = problem.batches(problem.data(seeded(0), "cpu"), seeded(seed), batch_size)
    return list(itertools.islice(batches, count))


def same(first: Images, second: Images) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


# The data


def test_validation_is_part_of_train_and_test_is_val(problem, data, root):
    def numbers(split):
        return [int(files["image"].stem) for files in split]

    assert numbers(data.validation) == [0, 1, 2, 3, 4, 50, 51, 52]
    assert numbers(data.train) == list(range(5, 50))
    assert numbers(data.test) == list(range(VAL))
    for split, folder in ((data.train, "train"), (data.validation, "train"), (data.test, "val")):
        assert all(path.parent.parent == root / folder for files in split for path in files.values())
    assert problem.sizes(data) == {"train": 45, "validation": 8, "test": VAL}


def test_the_data_are_the_same_for_every_seed(problem, data):
    again = problem.data(seeded(9), "cpu")
    assert (again.train, again.validation, again.test) == (data.train, data.validation, data.test)


@SPLITS
def test_a_held_out_split_comes_in_order_and_as_it_is(problem, data, split):
    files = getattr(data, split)
    images = [one for part in made(problem.root, augment=True).held_out(data, split) for one in part.split(1)]
    assert len(images) == len(files)
    for one, its in zip(images, files, strict=True):
        np.testing.assert_array_equal(one.image[0].movedim(0, -1), np.load(its["image"]))
        np.testing.assert_array_equal(one.label[0], np.load(its["label"]))


def test_without_root_it_is_said_what_is_missing():
    problem = NYUv2()
    problem.check()
    for missing in (problem.require, problem.fingerprint, lambda: problem.data(seeded(0), "cpu")):
        with pytest.raises(MissingDataError, match=r"nyuv2 needs the option root, .*github\.com/lorenmt/mtan"):
            missing()


def test_a_missing_folder_is_named(small):
    (small / "val" / "normal").rename(small / "val" / "normals")
    problem = made(small)
    message = rf"nyuv2: there is no folder {re.escape(str(small / 'val' / 'normal'))}\. .*github\.com/lorenmt/mtan"
    for missing in (problem.require, problem.fingerprint, lambda: problem.data(seeded(0), "cpu")):
        with pytest.raises(MissingDataError, match=message):
            missing()


def test_a_broken_file_is_named_before_training(small):
    path = small / "val" / "depth" / "1.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadDataError, match=re.escape(str(path))):
        made(small).data(seeded(0), "cpu")


@pytest.mark.parametrize("num_workers", others_slow([0, 2], 0))  # which are slow to end after many tests
def test_a_broken_value_is_named_when_it_is_read(small, num_workers):
    path = small / "train" / "depth" / "8.npy"
    np.save(path, np.full((32, 32, 1), np.nan, np.float32))
    problem = made(small, num_workers=num_workers)
    with pytest.raises(BadDataError, match=re.escape(str(path))):
        next(problem.batches(problem.data(seeded(0), "cpu"), seeded(1), 7))


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(BadDataError, match="has 5 images; expected more than the 5 that are held out"):
        made(write(tmp_path, train=5, val=1)).data(seeded(0), "cpu")


@pytest.mark.slow
def test_the_fingerprint_tells_other_files(problem, small):
    assert problem.fingerprint() == problem.fingerprint()
    before = made(small).fingerprint()
    assert before != problem.fingerprint()
    np.save(small / "val" / "image" / "0.npy", np.zeros((32, 32, 3)))
    assert made(small).fingerprint() != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": 3}, "root is 3; expected the path of a folder"),
        ({"width": 0}, "width is 0; expected a whole number, 1 or more"),
        ({"width": 2.5}, r"width is 2\.5"),
        ({"num_workers": -1}, "num_workers is -1; expected a whole number, 0 or more"),
        ({"augment": "yes"}, "augment is 'yes'; expected true or false"),
    ],
)
def test_a_bad_option_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        NYUv2(**options)


# The batches


def test_an_epoch_is_the_training_set_in_a_new_order(problem, data):
    of = {np.load(files["image"]).tobytes(): i for i, files in enumerate(data.train)}
    batches = taken(problem, 18, batch_size=5)
    order = [of[image.movedim(0, -1).contiguous().numpy().tobytes()] for batch in batches for image in batch.image]
    assert sorted(order[:45]) == sorted(order[45:]) == list(range(45))
    assert order[:45] != order[45:]
    for field, shape in zip(batches[0], [(5, 3, 32, 64), (5, 32, 64), (5, 1, 32, 64), (5, 3, 32, 64)], strict=True):
        assert field.shape == shape
    with pytest.raises(ValueError, match="batch_size is 46; expected 1 to 45"):
        problem.batches(data, seeded(0), 46)


@pytest.mark.slow
@pytest.mark.parametrize("augment", [False, True])
def test_neither_workers_nor_prefetching_change_a_batch(root, augment):
    one, several = (taken(made(root, augment=augment, num_workers=n), 24) for n in (0, 2))
    assert all(same(first, second) for first, second in zip(one, several, strict=True))
    other = taken(made(root, augment=augment), 24, seed=3)
    assert not all(same(first, second) for first, second in zip(one, other, strict=True))


@pytest.mark.slow
def test_augmentation_is_of_training_images_alone_and_new_in_each_epoch(root, problem):
    augmented = made(root, augment=True)
    data = problem.data(seeded(0), "cpu")
    epochs = [
        [image for batch in taken(augmented, 90, batch_size=1)[i : i + 45] for image in batch.split(1)] for i in (0, 45)
    ]
    plain = {image.image.numpy().tobytes() for batch in taken(problem, 45, batch_size=1) for image in batch.split(1)}
    for epoch in epochs:
        untouched = sum(image.image.numpy().tobytes() in plain for image in epoch)
        assert 0 < untouched < 20  # a sixth of the 45 is expected to be neither enlarged nor mirrored
    seen = [{image.image.numpy().tobytes() for image in epoch} for epoch in epochs]
    assert len(seen[0] & seen[1]) < 20
    assert same(augmented.training_sample(data), problem.training_sample(data))


def test_batches_draw_nothing_from_the_global_generator(root):
    before = torch.get_rng_state()
    taken(made(root, augment=True, num_workers=1), 3)
    assert torch.equal(torch.get_rng_state(), before)


# The model and its losses


def test_the_network_is_that_of_the_literature():
    model = NYUv2().model()
    assert [stage[0].out_channels for stage in model.encoder] == [64, 128, 256, 512, 512]
    assert [sum(isinstance(m, torch.nn.Conv2d) for m in stage) for stage in model.encoder] == [2, 2, 3, 3, 3]
    assert [head.out_channels for head in model.heads] == [13, 1, 3]


def test_a_balancer_finds_each_loss_behind_its_own_alias(problem, data):
    model = initial_model(problem)
    batch = next(problem.batches(data, seeded(2), 4))
    shared = problem.shared(model)
    own = {id(p) for p in model.heads.parameters()}
    assert {id(p) for p in shared.parameters} == {id(p) for p in model.parameters()} - own
    losses = problem.losses(model, batch)
    for i, loss in enumerate(losses):
        weights = [head.weight for head in model.heads]
        found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
        assert [bool(gradient.any()) for gradient in found] == [j == i for j in range(3)]

    expected = [torch.autograd.grad(loss, shared.layer.weight, retain_graph=True)[0].norm() for loss in losses]
    balancer = GradNorm(shared.fork, wrt=shared.layer, tasks=problem.tasks)
    balancer(problem.losses(model, batch)).backward()
    torch.testing.assert_close(balancer.statistics["gradient_norms"], torch.stack(expected), rtol=1e-4, atol=0)
    with pytest.raises(TypeError, match=r"expected a model that NYUv2\.model made, got Linear"):
        problem.shared(torch.nn.Linear(2, 2))


def test_a_batch_without_targets_trains_nothing(problem):
    model = initial_model(problem)
    nothing = (torch.full((2, 32, 32), -1), torch.zeros(2, 1, 32, 32), torch.zeros(2, 3, 32, 32))
    losses = problem.losses(model, Images(torch.rand(2, 3, 32, 32), *nothing))
    assert [loss.item() for loss in losses] == [0, 0, 0]
    sum(losses).backward()
    assert all((p.grad == 0).all() for p in model.parameters())


def test_images_without_a_target_of_a_task_are_refused(problem):
    with pytest.raises(ValueError, match="images have no targets of normals"):
        target(Images(torch.rand(1, 3, 32, 32)), "normals")


# The scores


@SPLITS
def test_evaluate_against_an_independent_computation(problem, data, split):
    model = initial_model(problem).train()
    metrics = problem.evaluate(model, data, split)
    assert model.training
    assert list(metrics) == [metric.name for metric in problem.metrics]

    files = getattr(data, split)
    kinds = {kind: np.stack([np.load(one[kind]) for one in files]) for kind in ("image", "label", "depth", "normal")}
    with torch.no_grad():
        logits, depth, normal = model.eval()(torch.from_numpy(kinds["image"]).movedim(-1, 1))
    labelled, known, directed = kinds["label"] >= 0, kinds["depth"][..., 0] > 0, kinds["normal"].any(-1)
    true, predicted = kinds["label"][labelled].astype(int), logits.argmax(1).numpy()[labelled]
    occurring = sorted({*true, *predicted})
    miou = jaccard_score(true, predicted, labels=occurring, average="macro", zero_division=0)
    d, t = depth[:, 0].double().numpy()[known], kinds["depth"][..., 0].astype(float)[known]
    n, m = normal.movedim(1, -1).double().numpy()[directed], kinds["normal"].astype(float)[directed]
    cosine = (n * m).sum(-1) / np.linalg.norm(n, axis=-1)
    angles = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    expected = {
        "mIoU": 100 * miou,
        "pixel accuracy": 100 * np.mean(true == predicted),
        "absolute depth error": np.mean(np.abs(d - t)),
        "relative depth error": np.mean(np.abs(d - t) / t),
        "RMS depth error": np.sqrt(np.mean((d - t) ** 2)),
        "mean angle": angles.mean(),
        "median angle": np.median(angles),
        "normals within 11.25 deg": 100 * np.mean(angles < 11.25),
        "normals within 22.5 deg": 100 * np.mean(angles < 22.5),
        "normals within 30 deg": 100 * np.mean(angles < 30),
    }
    of_constant = problem.evaluate(problem.constant(data), data, split)
    errors = [1 - miou, expected["absolute depth error"], expected["mean angle"]]
    constants = [1 - of_constant["mIoU"] / 100, of_constant["absolute depth error"], of_constant["mean angle"]]
    ratios = np.array(errors) / np.array(constants)
    assert metrics == pytest.approx({"relative error": ratios.prod() ** (1 / 3), **expected}, rel=1e-4)


@SPLITS
def test_the_constant_predictor_scores_one(root, data, split):
    problem = made(root)
    assert problem.evaluate(problem.constant(data), data, split)["relative error"] == pytest.approx(1)
    initial = problem.evaluate(initial_model(problem), data, split)
    assert made(root).evaluate(initial_model(problem), data, split) == initial  # independent of earlier evaluations


def test_the_constant_predictor_is_the_best_one(problem, data):
    constant = problem.constant(data)
    images = problem.training_sample(data)
    assert len(images.image) == 45
    assert images.image.shape[1:] == (3, 32, 64)
    labels = images.label[images.label >= 0]
    depths = images.depth[images.depth > 0]
    normals = images.normal.movedim(1, -1)[images.normal.any(1)]
    logits, depth, normal = (value.detach() for value in constant.values)
    np.testing.assert_allclose(
        logits.exp() / labels.numel(), np.bincount(labels, minlength=13) / labels.numel(), rtol=1e-5
    )
    assert depth.item() == pytest.approx(np.median(depths), abs=0.02)
    np.testing.assert_allclose(normal, normals.mean(0) / np.linalg.norm(normals.mean(0)), atol=1e-5)

    best = [loss.item() for loss in problem.losses(constant, images)]
    for i, step in ((0, torch.randn(13)), (1, torch.ones(1)), (1, -torch.ones(1)), (2, torch.randn(3))):
        moved = problem.constant(problem.data(seeded(0), "cpu"))
        moved.values[i] += 0.3 * step
        assert problem.losses(moved, images)[i].item() > best[i]


def test_a_large_training_set_is_sampled_evenly(problem, data, monkeypatch):
    monkeypatch.setattr(folder_problem, "SAMPLE", 4)
    chosen = problem.training_sample(data)
    expected = [np.load(data.train[i]["image"]) for i in (0, 15, 29, 44)]
    np.testing.assert_array_equal(chosen.image.movedim(1, -1), np.stack(expected))


def test_a_split_without_a_target_is_refused(small):
    problem = made(small)
    for path in (small / "val" / "depth").iterdir():
        np.save(path, np.zeros((32, 32, 1), np.float32))
    with pytest.raises(ValueError, match="no pixel of the test images of nyuv2 has a target of depth"):
        problem.evaluate(initial_model(problem), problem.data(seeded(0), "cpu"), "test")
    for path in (small / "train" / "depth").iterdir():
        np.save(path, np.zeros((32, 32, 1), np.float32))
    with pytest.raises(ValueError, match="no pixel of the training images of nyuv2 has a target of depth"):
        problem.constant(problem.data(seeded(0), "cpu"))


def test_inverse_chance_weights():
    weights = NYUv2().static_weights["inverse-chance"]
    np.testing.assert_allclose(np.array(weights) * [math.log(13), 2.5, 1], weights[2])
    assert sum(weights) == pytest.approx(3)


# Training


@pytest.mark.slow
def test_every_task_is_learned(problem, equal):
    scores = {score.checkpoint: score.metrics for score in equal.result.scores if score.split == "test"}
    assert scores["last"]["mIoU"] > 2 * scores["constant"]["mIoU"]
    for error in ("relative error", "absolute depth error", "mean angle"):
        assert scores["last"][error] < 0.6 * scores["constant"][error]


@pytest.mark.slow
@pytest.mark.parametrize("method", [Method("uncertainty", None, {}), Method("gradnorm", "layer", {})])
def test_it_trains_with_other_balancers(problem, method):
    done = training(problem, method, steps=6)
    assert done.result.weights.shape == (6, 3)
    assert np.isfinite(done.result.losses).all()


@pytest.mark.slow
def test_the_same_seeds_give_the_same_bits(problem):
    first, second = (training(problem, Method("equal", None, {}), steps=4) for _ in range(2))
    for one, other in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    np.testing.assert_array_equal(first.result.losses, second.result.losses)
    assert first.result.scores == second.result.scores


# The picture


@pytest.mark.slow
@pytest.mark.parametrize("with_model", [False, True])
def test_draw(problem, data, equal, with_model):
    figure = Figure((9, 5), layout="constrained")
    caption = problem.draw(figure, data, equal.model if with_model else None)
    assert ("predicts" in caption) == with_model
    columns = 7 if with_model else 4
    assert len(figure.axes) == 3 * columns + 1
    assert figure.axes[-1].get_ylabel() == "depth (m)"
    assert [text.get_text() for text in figure.legends[0].texts] == list(problem.classes)
    figure.draw_without_rendering()
