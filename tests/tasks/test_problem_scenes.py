"""The problem ``scenes``: its data, and its use of the model, losses and metrics of dense prediction."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.metrics import accuracy_score, jaccard_score
from torch import nn

import tasks
from balancers import GradNorm
from tasks.scenes import Scenes
from tasks.scenes.render import render
from tasks.scenes.rooms import random_rooms
from tasks.scenes.scenes_problem import SEEDS, SceneData, _photographs

TASKS = ("segmentation", "depth", "normals")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def initial_model(problem: Scenes, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return problem.model()


@pytest.fixture(scope="module")
def problem() -> Scenes:
    return Scenes()


@pytest.fixture(scope="module")
def data(problem) -> SceneData:
    return problem.data(seeded(1), "cpu")


@pytest.fixture(scope="module")
def trained(problem, data) -> nn.Module:
    """Train with equal weights for half of the recipe's steps."""
    model = initial_model(problem)
    optimizer = torch.optim.Adam(model.parameters(), lr=problem.recipe.lr, fused=True)
    for batch in itertools.islice(problem.batches(data, seeded(2), problem.recipe.batch_size), 90):
        loss = sum(problem.losses(model, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


# The data


@pytest.mark.slow
def test_the_facts_agree(problem, data):
    problem.check()
    assert tasks.create("scenes").tasks == TASKS
    assert problem.sizes(data) == {"train": 1_500, "validation": 64, "test": 160}
    assert problem.primary == "relative error"
    units = {metric.name: metric.unit for metric in problem.metrics}
    assert units["absolute depth error"] == "m"
    assert units["mean angle"] == "deg"


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_shapes_types_and_ranges(data, split):
    images = getattr(data, split)
    count = len(images.image)
    assert images.image.shape == images.normal.shape == (count, 3, 48, 64)
    assert images.depth.shape == (count, 1, 48, 64)
    assert images.label.shape == (count, 48, 64)
    assert [part.dtype for part in images] == [torch.float32, torch.int64, torch.float32, torch.float32]
    assert images.image.min() >= 0
    assert images.image.max() <= 1
    assert images.depth.min() > 0
    assert images.label.unique().tolist() == list(range(5))
    torch.testing.assert_close(images.normal.norm(dim=1), torch.ones(count, 48, 64), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_no_scene_is_in_two_splits(data):
    scenes = [depth.numpy().tobytes() for split in (data.train, data.validation, data.test) for depth in split.depth]
    assert len(set(scenes)) == len(scenes)


@pytest.mark.slow
def test_data_are_the_same_for_every_seed_and_in_every_process(data):
    _photographs.cache_clear()
    again = Scenes(train_scenes=40).data(seeded(99), "cpu")
    for ours, theirs in ((data.validation, again.validation), (data.test, again.test)):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    for ours, theirs in zip(data.train, again.train, strict=True):
        assert len(theirs) == 40
        assert torch.equal(ours[:40], theirs)


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.slow
def test_images_are_the_rendered_ones_with_white_noise(data, split):
    images = getattr(data, split)
    clean = render(random_rooms(len(images.image), seeded(SEEDS[split])), (48, 64))
    for ours, theirs in zip(images[1:], clean[1:], strict=True):
        assert torch.equal(ours, theirs)
    noise = images.image - clean.image
    away_from_the_ends = (clean.image > 0.1) & (clean.image < 0.9)
    values = noise[away_from_the_ends]
    assert values.mean().item() == pytest.approx(0, abs=1e-3)
    assert values.std().item() == pytest.approx(0.02, rel=0.01)
    beside = away_from_the_ends[..., 1:] & away_from_the_ends[..., :-1]
    pairs = torch.stack([noise[..., 1:][beside], noise[..., :-1][beside]])
    assert torch.corrcoef(pairs)[0, 1].item() == pytest.approx(0, abs=0.01)
    assert not torch.equal(noise[0], noise[1])


@pytest.mark.slow
def test_other_sizes_show_the_same_rooms():
    """A pixel of the small image is the mean of four pixels of the large one, where all four show one plane."""
    small = Scenes(size=[32, 48], train_scenes=1).data(seeded(1), "cpu").validation
    large = Scenes(size=(64, 96), train_scenes=1).data(seeded(1), "cpu").validation
    labels = large.label.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3)
    normals = large.normal.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    even = (labels == labels[..., :1]).all(3) & ((normals - normals[..., :1]).abs().amax((1, 4)) < 1e-3)
    assert even.float().mean() > 0.6
    assert torch.equal(small.label[even], labels[..., 0][even])
    inverse = (1 / large.depth).unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).mean(4)  # affine in a plane's image
    agrees = torch.isclose(1 / small.depth, inverse, rtol=1e-3)[even[:, None]]
    assert agrees.float().mean() > 0.999  # not all: the tops of two boxes may meet in an image


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (48, 60)}, r"size is \(48, 60\); expected height and width, two positive multiples of 16"),
        ({"size": 48}, "size is 48; expected height and width"),
        ({"size": (48,)}, r"size is \(48,\)"),
        ({"size": [48, 64, 3]}, r"size is \[48, 64, 3\]"),
        ({"size": (0, 16)}, r"size is \(0, 16\)"),
        ({"size": (-16, 16)}, r"size is \(-16, 16\)"),
        ({"size": (48.0, 64)}, r"size is \(48\.0, 64\)"),
        ({"size": "48x64"}, "size is '48x64'"),
        ({"train_scenes": 0}, "train_scenes is 0; expected a whole number, 1 or more"),
        ({"train_scenes": 10.0}, r"train_scenes is 10\.0"),
        ({"train_scenes": True}, "train_scenes is True"),
    ],
)
def test_a_bad_option_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        Scenes(**options)


# The batches


def test_an_epoch_is_the_training_set_in_a_new_order(data):
    few = Scenes(train_scenes=12)
    its = few.data(seeded(1), "cpu")
    batches = list(itertools.islice(few.batches(its, seeded(3), 4), 6))
    assert [len(batch.image) for batch in batches] == [4] * 6
    target_of = {image.numpy().tobytes(): depth for image, depth in zip(its.train.image, its.train.depth, strict=True)}
    for epoch in (batches[:3], batches[3:]):
        images = [image.numpy().tobytes() for batch in epoch for image in batch.image]
        assert set(images) == set(target_of)
    for batch in batches:
        for image, depth in zip(batch.image, batch.depth, strict=True):
            assert torch.equal(target_of[image.numpy().tobytes()], depth)
    again = next(few.batches(its, seeded(3), 4))
    assert torch.equal(again.image, batches[0].image)
    assert not torch.equal(next(few.batches(its, seeded(4), 4)).image, batches[0].image)


# The model and its losses


def test_the_same_seed_gives_the_same_initial_model(problem):
    first, second, other = (initial_model(problem, seed).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_initial_depths_are_near_typical_ones(problem, data):
    with torch.no_grad():
        depth = initial_model(problem)(data.train.image[:16])[1]
    assert depth.mean().item() == pytest.approx(data.train.depth.median().item(), abs=0.5)


def test_tasks_share_all_but_the_final_layer(problem):
    model = initial_model(problem)
    shared = problem.shared(model)
    own = {id(p) for p in model.heads.parameters()}
    assert {id(p) for p in shared.parameters} == {id(p) for p in model.parameters()} - own
    assert [tuple(head.weight.shape) for head in model.heads] == [(5, 16, 1, 1), (1, 16, 1, 1), (3, 16, 1, 1)]


def test_losses_are_those_of_the_definitions(problem, data):
    model = initial_model(problem)
    batch = data.train.select(torch.arange(4))
    losses = problem.losses(model, batch)
    model = initial_model(problem)
    logits, depth, normal = (part.detach().double().numpy() for part in model(batch.image))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    of_label = np.take_along_axis(chances, batch.label.numpy()[:, None], 1)
    cosine = (normal / np.linalg.norm(normal, axis=1, keepdims=True) * batch.normal.numpy()).sum(1)
    expected = [-np.log(of_label).mean(), abs(depth - batch.depth.numpy()).mean(), 1 - cosine.mean()]
    np.testing.assert_allclose([loss.item() for loss in losses], expected, rtol=1e-5)


def test_a_balancer_finds_each_tasks_own_path_to_the_fork(problem, data):
    model = initial_model(problem)
    shared = problem.shared(model)
    batch = next(problem.batches(data, seeded(2), 4))
    balancer = GradNorm(shared.fork, wrt=shared.layer, tasks=problem.tasks)
    balancer(problem.losses(model, batch)).backward()
    assert (balancer.statistics["gradient_norms"] > 0).all()

    for i, loss in enumerate(problem.losses(model, batch)):
        gradients = torch.autograd.grad(
            loss, list(model.heads.parameters()), allow_unused=True, materialize_grads=True, retain_graph=True
        )
        for j in range(3):
            assert any(gradient.any() for gradient in gradients[2 * j : 2 * j + 2]) == (i == j)


def test_training_is_the_same_to_the_bit(problem, data):
    states = []
    for _ in range(2):
        model = initial_model(problem, 3)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for batch in itertools.islice(problem.batches(data, seeded(2), 4), 3):
            optimizer.zero_grad()
            sum(problem.losses(model, batch)).backward()
            optimizer.step()
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


# The metrics and the constant predictor


@pytest.mark.slow
@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluate_against_an_independent_computation(problem, data, trained, split):
    images = getattr(data, split)
    trained.eval()
    with torch.no_grad():
        outputs = zip(*(trained(part.image) for part in images.split(16)), strict=True)
        logits, depth, normal = (torch.cat(parts).double().numpy() for parts in outputs)
    trained.train()
    true, found = images.label.flatten().numpy(), logits.argmax(1).ravel()
    error = depth - images.depth.double().numpy()
    target = images.normal.double().numpy()
    cosine = (normal * target).sum(1) / np.linalg.norm(normal, axis=1) / np.linalg.norm(target, axis=1)
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1))).ravel()
    expected = {
        "mIoU": 100 * jaccard_score(true, found, average="macro"),
        "pixel accuracy": 100 * accuracy_score(true, found),
        "absolute depth error": abs(error).mean(),
        "relative depth error": (abs(error) / images.depth.numpy()).mean(),
        "RMS depth error": np.sqrt((error**2).mean()),
        "mean angle": angle.mean(),
        "median angle": np.median(angle),
        **{f"normals within {limit:g} deg": 100 * (angle < limit).mean() for limit in (11.25, 22.5, 30)},
    }
    scores = problem.evaluate(trained, data, split)
    assert list(scores) == [metric.name for metric in problem.metrics]
    assert trained.training
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, rel=1e-3), name

    constant = problem.evaluate(problem.constant(data), data, split)
    ratios = [
        (100 - expected["mIoU"]) / (100 - constant["mIoU"]),
        expected["absolute depth error"] / constant["absolute depth error"],
        expected["mean angle"] / constant["mean angle"],
    ]
    assert scores["relative error"] == pytest.approx(math.prod(ratios) ** (1 / 3), rel=1e-3)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_constant_predictor_scores_1(problem, data, split):
    scores = problem.evaluate(problem.constant(data), data, split)
    assert scores["relative error"] == pytest.approx(1)
    images = getattr(data, split)
    most_frequent = data.train.label.flatten().bincount().argmax()
    assert scores["pixel accuracy"] == pytest.approx(100 * (images.label == most_frequent).float().mean().item())
    median = float(np.median(data.train.depth.numpy()))
    assert scores["absolute depth error"] == pytest.approx((images.depth - median).abs().mean().item(), rel=1e-4)


def test_static_weights_undo_the_constant_predictors_losses(problem, data):
    with torch.no_grad():
        losses = np.array([loss.item() for loss in problem.losses(problem.constant(data), data.train)])
    expected = 3 / losses / (1 / losses).sum()
    np.testing.assert_allclose(problem.static_weights["inverse-constant"], expected, atol=0.01)


@pytest.mark.slow
def test_half_of_the_recipe_learns_every_task(problem, data, trained):
    scores = problem.evaluate(trained, data, "validation")
    constant = problem.evaluate(problem.constant(data), data, "validation")
    assert scores["relative error"] < 0.75
    assert scores["mIoU"] > constant["mIoU"] + 15
    assert scores["absolute depth error"] < 0.75 * constant["absolute depth error"]
    assert scores["mean angle"] < 0.75 * constant["mean angle"]


def test_both_recipes_fit_the_training_set(problem, data):
    for recipe in (problem.recipe, problem.full, replace(problem.recipe, batch_size=1)):
        batch = next(problem.batches(data, seeded(1), recipe.batch_size))
        assert len(batch.image) == recipe.batch_size
    with pytest.raises(ValueError, match="batch_size is 1501; expected 1 to 1500"):
        problem.batches(data, seeded(1), 1501)


# The picture


@pytest.mark.slow
@pytest.mark.parametrize("with_model", [False, True])
def test_the_picture_shows_images_and_targets(problem, data, trained, with_model):
    figure = Figure(figsize=(9, 5), layout="constrained")
    caption = problem.draw(figure, data, trained if with_model else None)
    assert caption
    assert sum(bool(axes.images) for axes in figure.axes) >= (7 if with_model else 4)
