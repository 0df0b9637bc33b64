"""The base class of dense-prediction problems: everything apart from the data and their way to the device."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..problem import Metric, Problem, Shared, Split, evaluating
from ..relative_error import relative_error
from .drawing import draw
from .images import Images, known_depth, known_normal, labelled
from .losses import depth_loss, normal_loss, segmentation_loss
from .metrics import Task, facts, measure
from .network import SegNet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

D = TypeVar("D")

SHOWN = 3
"""Number of images in a picture."""


class Constant(nn.Module):
    """A model that predicts the same for every pixel of every image.

    Args:
        values: one vector per task, with one number per channel of the task's prediction.
    """

    def __init__(self, values: Sequence[Tensor]) -> None:
        super().__init__()
        self.values = nn.ParameterList(nn.Parameter(value, requires_grad=False) for value in values)

    def forward(self, images: Tensor) -> list[Tensor]:
        num_images, _, height, width = images.shape
        return [value[:, None, None].expand(num_images, -1, height, width) for value in self.values]


Reference = tuple[Constant, dict[Split, list[float]]]
"""The constant predictor, and its errors on each split that has been evaluated so far."""
_references: WeakKeyDictionary[object, dict[type, Reference]] = WeakKeyDictionary()
"""Cache of the reference for each data set and problem class. An entry lives as long as its data set."""


class DensePrediction(Problem[D]):
    """Base class for segmentation, depth and surface normals of images, or the first two of these, by a `SegNet`.

    A subclass states the attributes below and the other facts of a problem. It defines ``data``, ``batches`` (which
    yields ``Images``), ``held_out``, ``training_sample`` and ``sizes``.

    The primary metric is the geometric mean over tasks of the error relative to the constant predictor's. The tasks'
    errors are 1 - mIoU, the absolute depth error and the mean angle.

    Attributes:
        tasks: "segmentation", "depth" and "normals", or the first two.
        classes: the classes' names, in the order of their labels.
        depth_unit: unit of the depth metrics: "m", or empty if depth is a pure number.
        depth_words: label of a colour bar of depth, for example "depth (m)".
        widths: channels of each stage, see `SegNet`.
        convolutions: convolutions of each stage, see `SegNet`.
    """

    tasks: tuple[Task, ...]
    classes: tuple[str, ...]
    depth_unit: str
    depth_words: str
    widths: Sequence[int]
    convolutions: Sequence[int]
    primary = "relative error"
    baselines = frozenset({"constant", "single-task"})

    def __init__(self) -> None:
        self.metrics = (
            Metric(self.primary, "error relative to the constant predictor's, geometric mean over tasks", "", False),
            *(metric for task in self.tasks for metric in facts(task, self.depth_unit)),
        )

    @abstractmethod
    def held_out(self, data: D, split: Split) -> Iterator[Images]:
        """Iterate over a split in a fixed order, some images at a time, on the data's device."""

    @abstractmethod
    def training_sample(self, data: D) -> Images:
        """Return the training images that the constant predictor is fitted to, without augmentation.

        These are all training images or a fixed part of them.
        """

    def shown(self, data: D) -> Images:
        """Return the images of the test set that `draw` shows."""
        return next(iter(self.held_out(data, "test"))).split(SHOWN)[0]

    def model(self) -> SegNet:
        channels = {"segmentation": len(self.classes), "depth": 1, "normals": 3}
        return SegNet(self.widths, self.convolutions, [channels[task] for task in self.tasks])

    def shared(self, model: nn.Module) -> Shared:
        """Return all layers except one 1 x 1 convolution per task. The last shared layer is the last 3 x 3 convolution.

        Raises:
            TypeError: If `model` did not make the model.
        """
        if not isinstance(model, SegNet):
            raise TypeError(f"expected a model that {type(self).__name__}.model made, got {type(model).__name__}")
        trunk = (*model.encoder.parameters(), *model.decoder.parameters())
        return Shared(model.fork, model.last_shared, trunk)

    def losses(self, model: nn.Module, batch: Images) -> list[Tensor]:
        """Return cross-entropy in nats, absolute depth error and 1 - cosine, as means over pixels with a target."""
        functions: dict[Task, Callable[[Tensor, Tensor], Tensor]] = {
            "segmentation": segmentation_loss,
            "depth": depth_loss,
            "normals": normal_loss,
        }
        predictions = model(batch.image)
        return [
            functions[task](prediction, target(batch, task))
            for task, prediction in zip(self.tasks, predictions, strict=True)
        ]

    def evaluate(
        self, model: nn.Module, data: D, split: Split, start: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """Return all metrics. The first evaluation of a split of these data also measures the constant predictor.

        Raises:
            ValueError: If, for one of the tasks, no pixel of the split has a target.
        """
        constant, errors = self._referred(data)
        models = [model] if split in errors else [model, constant]
        measures = [[measure(task, len(self.classes)) for task in self.tasks] for _ in models]
        for images in self.held_out(data, split):
            for evaluated, of_model in zip(models, measures, strict=True):
                with evaluating(evaluated):
                    predictions = evaluated(images.image)
                for task, prediction, of_task in zip(self.tasks, predictions, of_model, strict=True):
                    of_task.add(prediction, target(images, task))
        if split not in errors:
            of_constant = [of_task.error() for of_task in measures[1]]
            for task, error in zip(self.tasks, of_constant, strict=True):
                if math.isnan(error):
                    raise ValueError(f"no pixel of the {split} images of {self.name} has a target of {task}")
            errors[split] = of_constant
        own = [of_task.error() for of_task in measures[0]]
        scores = {name: value for of_task in measures[0] for name, value in of_task.scores().items()}
        return {self.primary: relative_error(own, errors[split]), **scores}

    def constant(self, data: D) -> Constant:
        """Return a model that predicts the training images' class frequencies, median depth and mean normal direction.

        These minimise the mean of the losses. A class that does not occur counts as one pixel.

        Raises:
            ValueError: If, for one of the tasks, no pixel of the training images has a target.
        """
        return self._referred(data)[0]

    def _referred(self, data: D) -> Reference:
        """Return the reference for ``data``, fitting the constant predictor on the first call."""
        of_data = _references.setdefault(data, {})
        if type(self) not in of_data:
            of_data[type(self)] = (self._fit(self.training_sample(data)), {})
        return of_data[type(self)]

    def _fit(self, images: Images) -> Constant:
        """Fit the constant predictor to ``images``."""
        values: list[Tensor] = []
        for task in self.tasks:
            true = target(images, task)
            known = {"segmentation": labelled, "depth": known_depth, "normals": known_normal}[task](true)
            if not known.any():
                raise ValueError(f"no pixel of the training images of {self.name} has a target of {task}")
            match task:
                case "segmentation":
                    counts = true[known].bincount(minlength=len(self.classes))
                    values.append(counts.clamp(min=1).float().log())
                case "depth":
                    values.append(true[known].median()[None])
                case "normals":
                    mean = true.movedim(1, -1)[known].mean(0, dtype=torch.float64)
                    values.append(F.normalize(mean, dim=0).float())
        return Constant(values)

    def draw(self, figure: "Figure", data: D, model: nn.Module | None = None) -> str:
        """Draw three images of the test set and their targets; with a ``model``, its predictions beside these."""
        images = self.shown(data)
        predictions: dict[Task, Tensor] = {}
        if model is not None:
            with evaluating(model):
                predictions = dict(zip(self.tasks, model(images.image), strict=True))
        return draw(figure, images, predictions, self.classes, self.depth_words)


def target(images: Images, task: Task) -> Tensor:
    """Return the field of ``images`` that is the target of ``task``.

    Raises:
        ValueError: If the images have no such target.
    """
    found = {"segmentation": images.label, "depth": images.depth, "normals": images.normal}[task]
    if found is None:
        raise ValueError(f"images have no targets of {task}")
    return found
