"""The metrics of dense prediction, as papers on NYUv2 give them, over all pixels of a split at once.

Depth and normals are measured as by Eigen and Fergus, "Predicting Depth, Surface Normals and Semantic Labels with a
Common Multi-Scale Convolutional Architecture", ICCV 2015; which of their metrics are told is as in Liu, Johns and
Davison, "End-to-End Multi-Task Learning with Attention" (MTAN), CVPR 2019.

All pixels of a split that have a target count alike. MTAN's public code instead averages over batches what it measured
in each, mIoU and pixel accuracy over images, so that figures from there differ. Intersection over union is that of one
confusion matrix for the split. A class that is neither predicted nor true anywhere in it is left out of the mean, while
scikit-learn's `jaccard_score` has it count as 0, and MTAN's code leaves out what is absent from an image. A class that
is predicted and never true counts as 0.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..problem import Metric
from .images import cosine, known_depth, known_normal

Task = Literal["segmentation", "depth", "normals"]
ANGLES = (11.25, 22.5, 30.0)
"""Degrees within which a normal counts as right."""


class Measure(ABC):
    """Collects predictions of one task for one split. Without a single target its scores are not-a-number."""

    headline: ClassVar[str]
    """The metric that stands for the task in the relative error."""

    @staticmethod
    @abstractmethod
    def facts(unit: str) -> tuple[Metric, ...]:
        """The metrics, where depth is in ``unit``."""

    @abstractmethod
    def add(self, prediction: Tensor, target: Tensor) -> None:
        """Counts in some images' ``prediction``, as the network gives it, of a field of `Images`."""

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """The metrics of all that was counted in, by name."""

    def error(self) -> float:
        """The headline metric as an error, 0 at best."""
        return self.scores()[self.headline]


class Segmentation(Measure):
    """Logits ``(N, classes, H, W)`` against labels ``(N, H, W)``."""

    headline = "mIoU"

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts: list[Tensor] = []

    @staticmethod
    def facts(unit: str) -> tuple[Metric, ...]:
        task = "segmentation"
        return (
            Metric("mIoU", "mean over classes of intersection over union", "%", True, task),
            Metric("pixel accuracy", "share of labelled pixels whose class is right", "%", True, task),
        )

    def add(self, prediction: Tensor, target: Tensor) -> None:
        cells = self.num_classes**2
        cell = target * self.num_classes + prediction.max(1).indices  # argmax takes many times as long
        counts = torch.where(target >= 0, cell, cells).flatten().bincount(minlength=cells + 1)
        self.counts.append(counts[:cells])

    def confusion(self) -> Tensor:
        """``(classes, classes)``: how many pixels of the row's class were predicted to be of the column's."""
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
    """Depths ``(N, 1, H, W)`` against true ones, where those are known."""

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
        absolute, relative, square = (float(one / count) for one in sums)
        return {
            "absolute depth error": absolute,
            "relative depth error": relative,
            "RMS depth error": square**0.5,
        }


class Normals(Measure):
    """Directions ``(N, 3, H, W)`` of any length against unit normals, where those are known.

    An angle is the arc cosine of a product in float32, as everywhere, which resolves some 0.02 degrees at best. All are
    kept for the median: four bytes a pixel, 290 MB for the test set of NYUv2.
    """

    headline = "mean angle"

    def __init__(self) -> None:
        self.angles: list[Tensor] = []

    @staticmethod
    def facts(unit: str) -> tuple[Metric, ...]:
        what = "between predicted and true normal"
        return (
            Metric("mean angle", f"mean of the angle {what}", "deg", False, "normals"),
            Metric("median angle", f"median of the angle {what}", "deg", False, "normals"),
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
    """The mean of the two in the middle if they are even in number; `Tensor.median` gives the lower of these."""
    if not len(values):
        return float("nan")
    lower = values.median()
    above = values[values > lower]
    if 2 * len(above) == len(values):
        return (float(lower) + float(above.min())) / 2
    return float(lower)


def measure(task: Task, num_classes: int) -> Measure:
    """A new one for ``task``."""
    return Segmentation(num_classes) if task == "segmentation" else Depth() if task == "depth" else Normals()


def facts(task: Task, depth_unit: str) -> tuple[Metric, ...]:
    """What `measure` gives for ``task``."""
    kinds: dict[Task, type[Measure]] = {"segmentation": Segmentation, "depth": Depth, "normals": Normals}
    return kinds[task].facts(depth_unit)
