"""The problem ``scenes``: class, depth and surface normal of every pixel in small rendered pictures of rooms.

The tasks are those of NYUv2. As in Chen, Badrinarayanan, Lee and Rabinovich, "GradNorm", ICML 2018, section 5, tasks
share all layers except the last. Class, depth and normal are known exactly at every pixel. A surface's colour does not
tell its class, so the network has to use shapes, positions, shading and shadows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Generator, nn

from ..batch_order import batches
from ..dense.dense_problem import DensePrediction
from ..dense.images import Images
from ..dense.network import SegNet
from ..problem import Recipe, Split
from ..problem_registry import register
from .render import render
from .rooms import CLASSES, random_rooms

VALIDATION_SCENES, TEST_SCENES = 64, 160
"""Number of scenes in the validation set and in the test set."""
SEEDS = {"train": 1, "validation": 2, "test": 3}
"""Seed of each split's scenes."""
NOISE = 0.02
"""Standard deviation of the sensor's noise, where white is 1."""
TYPICAL_DEPTH = 3.3
"""Approximate median depth of the training set, in metres."""
CHUNK = 16
"""Number of scenes that are evaluated at a time."""


@dataclass(frozen=True, eq=False)
class SceneData:
    """The images and targets of each split."""

    train: Images
    validation: Images
    test: Images


@register
class Scenes(DensePrediction[SceneData]):
    """Rendered rooms with boxes and spheres: the class, depth and surface normal of each pixel.

    Data: 1,500 training, 64 validation and 160 test pictures of 48 by 64 pixels, each of another random room (see
    ``rooms.py`` and ``render.py``), with some noise. The scenes are the same for every seed. The first n training
    scenes are the same for any ``train_scenes`` of at least n, and the other two splits do not depend on it.

    Tasks: "segmentation", one of five classes per pixel; "depth", in metres, per pixel; "normals", a unit vector per
    pixel.

    Model: a `SegNet` from ``batch_size x 3 x height x width`` pictures to one prediction of the same height and width
    per task, with 5, 1 and 3 channels.

    Metrics: mIoU, pixel accuracy, three depth errors, and angles between normals; the primary metric combines mIoU, the
    absolute depth error and the mean angle, see `DensePrediction`.

    Source: the tasks and the shared layers are those of NYUv2 in Chen, Badrinarayanan, Lee and Rabinovich, "GradNorm",
    ICML 2018, section 5; the scenes are new here.

    Args:
        size: height and width of a picture in pixels, multiples of 16.
        train_scenes: number of training scenes.

    Raises:
        ValueError: If ``size`` or ``train_scenes`` has another form.

    Example::

        problem = tasks.create("scenes", size=(32, 48), train_scenes=100)
        model = problem.model()
        classes, depth, normals = model(torch.rand(4, 3, 32, 48))
    """

    name = "scenes"
    summary = "Rendered rooms: class, depth and surface normal of each pixel, all but the last layer shared."
    tasks = ("segmentation", "depth", "normals")
    classes = CLASSES
    depth_unit = "m"
    depth_words = "depth (m)"
    widths = (16, 24, 32, 48)
    convolutions = (1, 1, 1, 1)
    recipe = Recipe("adam", lr=1e-2, schedule="cosine", batch_size=4, steps=180)
    full = replace(recipe, batch_size=8, steps=1_500)
    static_weights = {"inverse-constant": (0.57, 0.90, 1.53)}
    """Inverse losses of the constant predictor on the training set, with default options."""

    def __init__(self, size: Sequence[int] = (48, 64), train_scenes: int = 1_500) -> None:
        self.size = _size(size, 2 ** len(self.widths))
        if not (isinstance(train_scenes, int) and not isinstance(train_scenes, bool) and train_scenes >= 1):
            raise ValueError(f"train_scenes is {train_scenes!r}; expected a whole number, 1 or more")
        self.train_scenes = train_scenes
        super().__init__()

    def data(self, generator: Generator, device: torch.device | str) -> SceneData:
        """Return the pictures, which are the same for every seed: ``generator`` is not used.

        They are rendered once per process.
        """
        return _data(self.train_scenes, self.size, str(device))

    def batches(self, data: SceneData, generator: Generator, batch_size: int) -> Iterator[Images]:
        every = batches(len(data.train.image), batch_size, generator, data.train.image.device)
        return (data.train.select(chosen) for chosen in every)

    def model(self) -> SegNet:
        """Return a new network whose depths start near a typical depth.

        If they started near zero, Adam would need many steps to reach that depth.
        """
        model = super().model()
        head = model.heads[self.tasks.index("depth")]
        assert isinstance(head, nn.Conv2d)
        assert head.bias is not None
        nn.init.constant_(head.bias, TYPICAL_DEPTH)
        return model

    def held_out(self, data: SceneData, split: Split) -> Iterator[Images]:
        return iter({"validation": data.validation, "test": data.test}[split].split(CHUNK))

    def training_sample(self, data: SceneData) -> Images:
        return data.train

    def sizes(self, data: SceneData) -> Mapping[str, int]:
        return {split: len(getattr(data, split).image) for split in SEEDS}


@cache
def _data(train_scenes: int, size: tuple[int, int], device: str) -> SceneData:
    counts = {"train": train_scenes, "validation": VALIDATION_SCENES, "test": TEST_SCENES}
    return SceneData(**{split: _photographs(split, count, size).to(device) for split, count in counts.items()})


@cache
def _photographs(split: str, count: int, size: tuple[int, int]) -> Images:
    """Render ``count`` scenes of a split, and add the sensor's noise to the pictures."""
    images = render(random_rooms(count, torch.Generator().manual_seed(SEEDS[split])), size)
    generator = torch.Generator().manual_seed(SEEDS[split] + len(SEEDS))
    for image in images.image:
        pair = torch.rand(2, *image.shape, generator=generator)  # their sum has a variance of 1/6
        image.add_((pair[0] + pair[1] - 1) * (NOISE * 6**0.5)).clamp_(0, 1)
    return images


def _size(size: Sequence[int], multiple: int) -> tuple[int, int]:
    """Return the option ``size`` as height and width.

    Raises:
        ValueError: If it isn't two positive multiples of ``multiple``.
    """
    whole = isinstance(size, Sequence) and all(isinstance(side, int) and not isinstance(side, bool) for side in size)
    if not whole or len(size) != 2 or min(size) < multiple or any(side % multiple for side in size):
        raise ValueError(f"size is {size!r}; expected height and width, two positive multiples of {multiple}")
    height, width = size
    return height, width
