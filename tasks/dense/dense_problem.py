"""What problems of dense prediction have in common: all but the data, and how these reach the device."""

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
"""Images that are drawn."""


class Constant(nn.Module):
    """Predicts the same for every pixel of every image: ``values``, one vector a task, of as many channels."""

    def __init__(self, values: Sequence[Tensor]) -> None:
        super().__init__()
        self.values = nn.ParameterList(nn.Parameter(value, requires_grad=False) for value in values)

    def forward(self, images: Tensor) -> list[Tensor]:
        num_images, _, height, width = images.shape
        return [value[:, None, None].expand(num_images, -1, height, width) for value in self.values]


Reference = tuple[Constant, dict[Split, list[float]]]
"""The constant predictor, and its errors on each split that was evaluated."""
_references: WeakKeyDictionary[object, dict[type, Reference]] = WeakKeyDictionary()
"""Of each data set, by the problem's class; kept as long as the data are."""


class DensePrediction(Problem[D]):
    """Segmentation, depth and surface normals of images, or the first two, by a `SegNet`.

    A subclass states the attributes below and a problem's other facts, and defines ``data``, ``batches``, which yields
    `Images`, ``held_out``, ``training_sample`` and ``sizes``. The primary score is the relative error over 1 - mIoU,
    the absolute depth error and the mean angle.

    Attributes:
        tasks: "segmentation", "depth" and "normals", or the first two.
        classes: the classes' names, by label.
        depth_unit: of the depth's metrics: "m", or empty where depth is a pure number.
        depth_words: what a colour bar of depth says: "depth (m)".
        widths, convolutions: see `SegNet`.
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
            Metric(self.primary, "error relative to the constant predictor's, geometric mean of the tasks", "", False),
            *(metric for task in self.tasks for metric in facts(task, self.depth_unit)),
        )

    @abstractmethod
    def held_out(self, data: D, split: Split) -> Iterator[Images]:
        """A split in a fixed order, some images at a time, on the data's device."""

    @abstractmethod
    def training_sample(self, data: D) -> Images:
        """What the constant predictor is fitted to: training images as they are, all or a fixed part."""

    def shown(self, data: D) -> Images:
        """The images of the test set that `draw` shows."""
        return next(iter(self.held_out(data, "test"))).split(SHOWN)[0]

    def model(self) -> SegNet:
        channels = {"segmentation": len(self.classes), "depth": 1, "normals": 3}
        return SegNet(self.widths, self.convolutions, [channels[task] for task in self.tasks])

    def shared(self, model: nn.Module) -> Shared:
        """All but one 1 x 1 convolution a task. The last shared layer is the last 3 x 3 convolution."""
        if not isinstance(model, SegNet):
            raise TypeError(f"expected a model that {type(self).__name__}.model made, got {type(model).__name__}")
        trunk = (*model.encoder.parameters(), *model.decoder.parameters())
        return Shared(model.fork, model.last_shared, trunk)

    def losses(self, model: nn.Module, batch: Images) -> list[Tensor]:
        """Cross-entropy in nats, absolute depth error, and 1 - cosine: means over the pixels that have a target."""
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
        """All metrics. A split's first evaluation with these data measures the constant predictor as well.

        Raises:
            ValueError: no pixel of the split has a target of some task.
        """
        constant, errors = self._referred(data)
        models = [model] if split in errors else [model, constant]
        measures = [[measure(task, len(self.classes)) for task in self.tasks] for _ in models]
        for images in self.held_out(data, split):
            for one, of_one in zip(models, measures, strict=True):
                with evaluating(one):
                    predictions = one(images.image)
                for task, prediction, of_task in zip(self.tasks, predictions, of_one, strict=True):
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
        """The training images' class frequencies, their median depth and the direction of their mean normal.

        These minimise the mean of the losses. A class that doesn't occur counts as one pixel.

        Raises:
            ValueError: no pixel of the training images has a target of some task.
        """
        return self._referred(data)[0]

    def _referred(self, data: D) -> Reference:
        of_data = _references.setdefault(data, {})
        if type(self) not in of_data:
            of_data[type(self)] = (self._fit(self.training_sample(data)), {})
        return of_data[type(self)]

    def _fit(self, images: Images) -> Constant:
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
        """Three images of the test set and their targets, and what a ``model`` predicts beside those."""
        images = self.shown(data)
        predictions: dict[Task, Tensor] = {}
        if model is not None:
            with evaluating(model):
                predictions = dict(zip(self.tasks, model(images.image), strict=True))
        return draw(figure, images, predictions, self.classes, self.depth_words)


def target(images: Images, task: Task) -> Tensor:
    """What is to be predicted of ``images``.

    Raises:
        ValueError: they have no such target.
    """
    found = {"segmentation": images.label, "depth": images.depth, "normals": images.normal}[task]
    if found is None:
        raise ValueError(f"images have no targets of {task}")
    return found
