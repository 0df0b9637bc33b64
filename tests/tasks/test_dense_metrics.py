"""The metrics of dense prediction agree with scikit-learn and plain NumPy."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score
from torch import Tensor

from tasks.dense.metrics import Depth, Measure, Normals, Segmentation, facts

SEEDS = pytest.mark.parametrize("seed", range(5))


def given(measure: Measure, prediction: Tensor, true: Tensor, chunk: int) -> Measure:
    for one, other in zip(prediction.split(chunk), true.split(chunk), strict=True):
        measure.add(one, other)
    return measure


def masks(shape: tuple[int, ...]) -> Tensor:
    """Return a mask of the pixels that have a target; the second image has none."""
    known = torch.rand(shape) < 0.8
    known[1] = False
    return known


@SEEDS
@pytest.mark.parametrize(("absent_from_truth", "absent_from_both"), [((), ()), ((2,), ()), ((), (0, 4)), ((1,), (3,))])
def test_segmentation_agrees_with_scikit_learn(seed, absent_from_truth, absent_from_both):
    torch.manual_seed(seed)
    classes = 6
    logits = torch.randn(5, classes, 7, 9)
    logits[:, list(absent_from_both)] = -100
    left = [c for c in range(classes) if c not in (*absent_from_truth, *absent_from_both)]
    known = masks((5, 7, 9))
    label = torch.tensor(left)[torch.randint(len(left), (5, 7, 9))].masked_fill(~known, -1)
    measure = given(Segmentation(classes), logits, label, 2)

    true, predicted = label[known].numpy(), logits.argmax(1)[known].numpy()
    np.testing.assert_array_equal(measure.confusion(), confusion_matrix(true, predicted, labels=range(classes)))
    occurring = sorted({*true, *predicted})
    assert set(range(classes)) - set(occurring) == set(absent_from_both)
    expected = {
        "mIoU": 100 * jaccard_score(true, predicted, labels=occurring, average="macro", zero_division=0),
        "pixel accuracy": 100 * accuracy_score(true, predicted),
    }
    assert measure.scores() == pytest.approx(expected, rel=1e-9)
    assert measure.error() == pytest.approx(1 - expected["mIoU"] / 100)


def test_a_pixel_of_a_class_that_is_never_true_costs_a_whole_class():
    label = torch.tensor([[[0, 0, 1, 1]]])
    logits = torch.nn.functional.one_hot(torch.tensor([[[0, 0, 1, 2]]]), 4).movedim(-1, 1).float()
    assert given(Segmentation(4), logits, label, 1).scores() == pytest.approx(
        {"mIoU": 100 * (1 + 1 / 2 + 0) / 3, "pixel accuracy": 75}
    )


@SEEDS
def test_depth_agrees_with_numpy(seed):
    torch.manual_seed(seed)
    known = masks((5, 1, 7, 9))
    true = (10 * torch.rand(5, 1, 7, 9) + 0.5).masked_fill(~known, 0)
    prediction = true + torch.randn_like(true)
    scores = given(Depth(), prediction, true, 2).scores()
    p, t = prediction[known].double().numpy(), true[known].double().numpy()
    expected = {
        "absolute depth error": np.mean(np.abs(p - t)),
        "relative depth error": np.mean(np.abs(p - t) / t),
        "RMS depth error": np.sqrt(np.mean((p - t) ** 2)),
    }
    assert scores == pytest.approx(expected, rel=1e-6)


@SEEDS
@pytest.mark.parametrize("pixels", [9, 10])
def test_angles_agree_with_numpy(seed, pixels):
    torch.manual_seed(seed)
    known = masks((4, 7, pixels))
    true = torch.nn.functional.normalize(torch.randn(4, 3, 7, pixels), dim=1) * known[:, None]
    prediction = (true + torch.randn_like(true) / 3) * torch.rand(4, 1, 7, pixels)  # vectors of any length
    scores = given(Normals(), prediction, true, 3).scores()
    p, t = (field.movedim(1, -1)[known].double().numpy() for field in (prediction, true))
    cosine = (p * t).sum(-1) / np.linalg.norm(p, axis=-1) / np.linalg.norm(t, axis=-1)
    angles = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    expected = {
        "mean angle": angles.mean(),
        "median angle": np.median(angles),
        "normals within 11.25 deg": 100 * np.mean(angles < 11.25),
        "normals within 22.5 deg": 100 * np.mean(angles < 22.5),
        "normals within 30 deg": 100 * np.mean(angles < 30),
    }
    assert scores == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("values", [[1.0], [1, 2], [1, 1, 2], [1, 2, 2, 3], [1, 1, 2, 2], [3, 1, 2, 4], [5, 1, 3]])
def test_the_median_is_numpys(values):
    angles = torch.tensor(values)
    true = torch.tensor([0.0, 0.0, 1.0])[None, :, None, None].expand(len(values), 3, 1, 1)
    turned = torch.stack([angles.deg2rad().sin(), torch.zeros(len(values)), angles.deg2rad().cos()], 1)[..., None, None]
    assert given(Normals(), turned, true, 1).scores()["median angle"] == pytest.approx(np.median(values), abs=0.02)


def test_a_perfect_prediction():
    torch.manual_seed(0)
    label = torch.randint(3, (2, 4, 4))
    logits = torch.nn.functional.one_hot(label, 3).movedim(-1, 1).float()
    assert given(Segmentation(3), logits, label, 1).error() == 0
    depth = torch.rand(2, 1, 4, 4) + 0.1
    assert set(given(Depth(), depth, depth, 1).scores().values()) == {0}
    normal = torch.nn.functional.normalize(torch.randn(2, 3, 4, 4), dim=1)
    scores = given(Normals(), 5 * normal, normal, 1).scores()
    assert scores["mean angle"] < 0.05
    assert scores["normals within 11.25 deg"] == 100


def test_without_a_target_all_is_undefined():
    measures = {
        Segmentation(3): (torch.randn(2, 3, 4, 4), torch.full((2, 4, 4), -1)),
        Depth(): (torch.randn(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)),
        Normals(): (torch.randn(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)),
    }
    for measure, (prediction, true) in measures.items():
        measure.add(prediction, true)
        assert all(math.isnan(score) for score in measure.scores().values())
        assert math.isnan(measure.error())


def test_a_prediction_that_is_not_a_number_is_no_score():
    depth = torch.ones(1, 1, 2, 2)
    assert math.isnan(given(Depth(), depth * torch.nan, depth, 1).error())
    normal = torch.tensor([0.0, 0.0, 1.0])[None, :, None, None]
    assert math.isnan(given(Normals(), normal * torch.nan, normal, 1).error())


def test_scores_are_those_declared():
    for task, measure in (("segmentation", Segmentation(2)), ("depth", Depth()), ("normals", Normals())):
        channels = {"segmentation": 2, "depth": 1, "normals": 3}[task]
        target = torch.zeros(1, 2, 2).long() if task == "segmentation" else torch.ones(1, channels, 2, 2)
        measure.add(torch.randn(1, channels, 2, 2), target)
        declared = facts(task, "m")
        assert list(measure.scores()) == [metric.name for metric in declared]
        assert all(metric.task == task for metric in declared)
        assert measure.headline in measure.scores()
