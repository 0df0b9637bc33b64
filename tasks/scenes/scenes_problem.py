"""Scenes: class, depth and surface normal of every pixel of small pictures of rooms that are rendered here.

The tasks are those of NYUv2, and what is shared is what Chen, Badrinarayanan, Lee and Rabinovich share there, in
"GradNorm", ICML 2018, section 5: all but the final layer. Class, depth and normal are known exactly at every pixel. A
surface's colour tells nothing of its class, so they have to be read from shapes, places, shading and shadows.
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
SEEDS = {"train": 1, "validation": 2, "test": 3}
NOISE = 0.02
"""The standard deviation of the sensor's noise, where white is 1."""
TYPICAL_DEPTH = 3.3
"""Metres: about the median of the training set."""
CHUNK = 16
"""Scenes that are evaluated at a time."""


@dataclass(frozen=True, eq=False)
class SceneData:
    """All splits."""

    train: Images
    validation: Images
    test: Images


@register
class Scenes(DensePrediction[SceneData]):
    """Rooms with boxes and spheres in them, see ``rooms.py``; what their pixels show, see ``render.py``.

    Every seed has the same scenes. The first n training scenes are the same for any ``train_scenes`` of n or more, and
    none of the other two splits depends on it.

    Args:
        size: the pictures' height and width in pixels, multiples of 16.
        train_scenes: how many there are to learn from.

    Raises:
        ValueError: an option is none of these.
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
    """From the constant predictor's losses on the training set with default options."""

    def __init__(self, size: Sequence[int] = (48, 64), train_scenes: int = 1_500) -> None:
        self.size = _size(size, 2 ** len(self.widths))
        if not (isinstance(train_scenes, int) and not isinstance(train_scenes, bool) and train_scenes >= 1):
            raise ValueError(f"train_scenes is {train_scenes!r}; expected a whole number, 1 or more")
        self.train_scenes = train_scenes
        super().__init__()

    def data(self, generator: Generator, device: torch.device | str) -> SceneData:
        """The same for every seed: ``generator`` is not used. Rendered once a process."""
        return _data(self.train_scenes, self.size, str(device))

    def batches(self, data: SceneData, generator: Generator, batch_size: int) -> Iterator[Images]:
        every = batches(len(data.train.image), batch_size, generator, data.train.image.device)
        return (data.train.select(chosen) for chosen in every)

    def model(self) -> SegNet:
        """Depths start near a typical one, not near zero, from where it takes Adam long to get there."""
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
    """``count`` scenes of a split, as a sensor with noise sees them."""
    images = render(random_rooms(count, torch.Generator().manual_seed(SEEDS[split])), size)
    generator = torch.Generator().manual_seed(SEEDS[split] + len(SEEDS))
    for image in images.image:
        pair = torch.rand(2, *image.shape, generator=generator)  # their sum has a variance of 1/6
        image.add_((pair[0] + pair[1] - 1) * (NOISE * 6**0.5)).clamp_(0, 1)
    return images


def _size(size: Sequence[int], multiple: int) -> tuple[int, int]:
    whole = isinstance(size, Sequence) and all(isinstance(side, int) and not isinstance(side, bool) for side in size)
    if not whole or len(size) != 2 or min(size) < multiple or any(side % multiple for side in size):
        raise ValueError(f"size is {size!r}; expected height and width, two positive multiples of {multiple}")
    height, width = size
    return height, width
