"""The metrics of dense prediction, as in papers on NYUv2, computed over all pixels of a split at once.

Depth and normals are measured as in Eigen and Fergus, "Predicting Depth, Surface Normals and Semantic Labels with a
Common Multi-Scale Convolutional Architecture", ICCV 2015. The selection of their metrics is that of Liu, Johns and
Davison, "End-to-End Multi-Task Learning with Attention" (MTAN), CVPR 2019.

All pixels of a split that have a target count equally. MTAN's public code instead computes depth errors and angles for
each batch, mIoU and pixel accuracy for each image, and averages these; so its numbers differ from the ones here.

Intersection over union comes from one confusion matrix for the whole split. A class that is neither predicted nor true
at any pixel is left out of the mean, while scikit-learn's `jaccard_score` counts it as 0. (MTAN's code leaves out the
classes that are absent from an image.) A class that is predicted but never true counts as 0.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..problem import Metric
from .images import cosine, known_depth, known_normal

Task = Literal["segmentation", "depth", "normals"]
ANGLES = (11.25, 22.5, 30.0)
"""Angles in degrees, within which a predicted normal counts as correct."""


class Measure(ABC):
    """Collects the predictions of one task on one split, and computes the task's metrics.

    If no pixel has a target, the metrics are NaN.
    """

    headline: ClassVar[str]
    """Name of the metric that the relative error uses for this task."""

    @staticmethod
    @abstractmethod
    def facts(unit: str) -> tuple[Metric, ...]:
        """Return the task's metrics. ``unit`` is the unit of depth."""

    @abstractmethod
    def add(self, prediction: Tensor, target: Tensor) -> None:
        """Add the predictions for some images.

        Args:
            prediction: the network's output for this task.
            target: the task's field of `Images`.
        """

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """Return the metrics over all predictions that were added, by name."""

    def error(self) -> float:
        """Return the headline metric as an error, for which 0 is best."""
        return self.scores()[self.headline]


class Segmentation(Measure):
    """Compares logits ``(N, classes, H, W)`` with labels ``(N, H, W)``."""

    headline = "mIoU"

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts: list[Tensor] = []

    @staticmethod
    def facts(unit: str) -> tuple[Metric, ...]:
        task = "segmentation"
        return (
            Metric("mIoU", "mean over classes of intersection over union", "%", True, task),
            Metric("pixel accuracy", "share of labelled pixels that are classified correctly", "%", True, task),
        )

    def add(self, prediction: Tensor, target: Tensor) -> None:
        cells = self.num_classes**2
        cell = target * self.num_classes + prediction.max(1).indices  # argmax takes many times as long
        counts = torch.where(target >= 0, cell, cells).flatten().bincount(minlength=cells + 1)
        self.counts.append(counts[:cells])

    def confusion(self) -> Tensor:
        """Return the confusion matrix, shape ``(classes, classes)``, on the CPU.

        Entry (i, j) is the number of pixels of class i that were predicted to be of class j.
        """
        return torch.stack(self.counts).sum(0).view(self.num_classes, self.num_classes).cpu()

    def scores(self) -> dict[str, float]:
        confusion = self.confusion()
        right, total = confusion.diag().double(), confusion.sum().double()
        union = confusion.sum(0) + confusion.sum(1) - right
        return {
            "mIoU": 100 * float((right / union)[union > 0].mean()),
            "pixel accuracy": 100 * float(right.sum() / total),
        }

    def error(self) -> float:
        return 1 - self.scores()["mIoU"] / 100


class Depth(Measure):
    """Compares depths ``(N, 1, H, W)`` with the true ones where these are known."""

    headline = "absolute depth error"

    def __init__(self) -> None:
        self.sums: list[Tensor] = []

    @staticmethod
    def facts(unit: str) -> tuple[Metric, ...]:
        return (
            Metric("absolute depth error", "mean of |prediction - depth|", unit, False, "depth"),
            Metric("relative depth error", "mean of |prediction - depth| / depth", "", False, "depth"),
            Metric("RMS depth error", "root of the mean of (prediction - depth)^2", unit, False, "depth"),
        )

    def add(self, prediction: Tensor, target: Tensor) -> None:
        known = known_depth(target)
        true = target[known]
        error = (prediction[known] - true).abs()
        parts = (error, error / true, error.square(), torch.ones_like(error))
        self.sums.append(torch.stack([part.sum(dtype=torch.float64) for part in parts]))

    def scores(self) -> dict[str, float]:
        *sums, count = torch.stack(self.sums).sum(0).cpu()
        absolute, relative, square = (float(total / count) for total in sums)
        return {
            "absolute depth error": absolute,
            "relative depth error": relative,
            "RMS depth error": square**0.5,
        }


class Normals(Measure):
    """Compares vectors of any length, shape ``(N, 3, H, W)``, with unit normals where these are known.

    An angle is the arc cosine of a dot product in float32, as in other code for this metric. Its resolution is about
    0.02 degrees. All angles are kept for the median: 4 bytes per pixel, 290 MB for the test set of NYUv2.
    """

    headline = "mean angle"

    def __init__(self) -> None:
        self.angles: list[Tensor] = []

    @staticmethod
    def facts(unit: str) -> tuple[Metric, ...]:
        between = "between predicted and true normal"
        return (
            Metric("mean angle", f"mean of the angle {between}", "deg", False, "normals"),
            Metric("median angle", f"median of the angle {between}", "deg", False, "normals"),
            *(
                Metric(_within(angle), f"share of normals with an angle of less than {angle:g}°", "%", True, "normals")
                for angle in ANGLES
            ),
        )

    def add(self, prediction: Tensor, target: Tensor) -> None:
        cosines = cosine(prediction, target)[known_normal(target)]
        self.angles.append(cosines.clamp(-1, 1).acos().rad2deg())

    def scores(self) -> dict[str, float]:
        angles = torch.cat(self.angles)
        return {
            "mean angle": float(angles.mean(dtype=torch.float64)),
            "median angle": _median(angles),
            **{_within(angle): 100 * float((angles < angle).double().mean()) for angle in ANGLES},
        }


def _within(angle: float) -> str:
    return f"normals within {angle:g} deg"


def _median(values: Tensor) -> float:
    """Return the median. For an even number of values, it is the mean of the two in the middle.

    (`Tensor.median` returns the lower of the two.)
    """
    if not len(values):
        return float("nan")
    lower = values.median()
    above = values[values > lower]
    if 2 * len(above) == len(values):
        return (float(lower) + float(above.min())) / 2
    return float(lower)


def measure(task: Task, num_classes: int) -> Measure:
    """Return a new, empty `Measure` for ``task``."""
    return Segmentation(num_classes) if task == "segmentation" else Depth() if task == "depth" else Normals()


def facts(task: Task, depth_unit: str) -> tuple[Metric, ...]:
    """Return the metrics that `measure` computes for ``task``."""
    kinds: dict[Task, type[Measure]] = {"segmentation": Segmentation, "depth": Depth, "normals": Normals}
    return kinds[task].facts(depth_unit)
