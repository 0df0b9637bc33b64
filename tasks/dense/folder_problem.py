"""Dense prediction on data sets in folders. The images are read while the model is trained."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from ..batch_order import epochs
from ..problem import MissingDataError, Split
from . import npy_files
from .augment import augment
from .dense_problem import SHOWN, DensePrediction
from .images import Images, join
from .npy_files import BadDataError, Files, Folders, Kind

STRETCH, HELD_OUT = 50, 5
"""The first 5 of every 50 images in ``train`` are the validation set."""
CHUNK = 8
"""Number of images that are evaluated at a time."""
SAMPLE = 64
"""Maximum number of training images, evenly spaced, that the constant predictor is fitted to."""

Request = tuple[int, int | None]
"""Index of an image to read, and the seed for its augmentation; None means no augmentation."""


@dataclass(frozen=True, eq=False)
class Found:
    """The files of each split's images, in numeric order, and the device to which images are moved."""

    train: Sequence[Files]
    validation: Sequence[Files]
    test: Sequence[Files]
    device: torch.device


@dataclass(frozen=True)
class ImageReader(Dataset[Images | BadDataError]):
    """Reads and augments one image at a time, in a worker process if there are workers.

    If a file is wrong, the error is returned and not raised. If a worker raised it, the message would be buried in a
    page of traceback, and the loader would need ten seconds to end its workers.
    """

    files: Sequence[Files]
    num_classes: int
    inverse_depth: bool

    def __getitem__(self, request: Request) -> Images | BadDataError:
        index, seed = request
        try:
            images = npy_files.read(self.files[index], self.num_classes)
        except BadDataError as error:
            return error
        if seed is None:
            return images
        return augment(images, Generator().manual_seed(seed), inverse_depth=self.inverse_depth)


class FolderPrediction(DensePrediction[Found]):
    """Base class for dense prediction on a data set in the folder layout of `npy_files`.

    These folders have only two splits, ``train`` and ``val``. Here ``val`` is the test set, and part of ``train`` is
    the validation set: of every 50 images in numeric order, the first 5. Consecutive images are held out together,
    because neighbouring images often show the same place. Even so, some validation images have a neighbour in the
    training set, which no image of ``val`` has. So test results are worse than validation results.

    Attributes:
        source: instructions for getting the data, part of error messages.
        label_folders: possible names of the folder of labels. The first one that exists is read.
        inverse_depth: whether depth is inverse depth, on which enlarging an image has the opposite effect.

    Args:
        root: path of the folder that contains ``train`` and ``val``.
        width: number of channels of the finest stage. The other stages have 2, 4, 8 and 8 times as many.
        augment: whether training images are enlarged and mirrored at random, see `augment`.
        num_workers: number of processes that read images. With 0, the training process reads them itself. The number
            has no effect on results.

    Raises:
        ValueError: If an option has the wrong type or is out of range.
    """

    source: ClassVar[str]
    label_folders: ClassVar[tuple[str, ...]] = ("label",)
    inverse_depth: ClassVar[bool] = False
    convolutions = (2, 2, 3, 3, 3)

    def __init__(self, *, root: str = "", width: int = 64, augment: bool = False, num_workers: int = 2) -> None:
        if not isinstance(root, str):
            raise ValueError(f"root is {root!r}; expected the path of a folder")
        if not isinstance(augment, bool):
            raise ValueError(f"augment is {augment!r}; expected true or false")
        for option, number, least in (("width", width, 1), ("num_workers", num_workers, 0)):
            if type(number) is not int or number < least:
                raise ValueError(f"{option} is {number!r}; expected a whole number, {least} or more")
        self.root = Path(root).expanduser() if root else None
        self.augment = augment
        self.num_workers = num_workers
        self.widths = (width, 2 * width, 4 * width, 8 * width, 8 * width)
        super().__init__()

    def require(self) -> None:
        """Check that ``root`` was given and has all folders.

        Raises:
            MissingDataError: If it wasn't, or a folder is missing or empty.
        """
        self._required()

    def _required(self) -> tuple[Path, Folders]:
        """Check that all folders are there, and return the root and the folders' names.

        Raises:
            MissingDataError: See `require`.
        """
        if self.root is None:
            raise MissingDataError(
                f"{self.name} needs the option root, the folder that contains its data. {self.source}"
            )
        labels = [name for name in self.label_folders if (self.root / "train" / name).is_dir()]
        names: dict[Kind, str] = {"image": "image", "label": (*labels, *self.label_folders)[0], "depth": "depth"}
        if "normals" in self.tasks:
            names["normal"] = "normal"
        try:
            npy_files.require(self.root, names)
        except MissingDataError as error:
            raise MissingDataError(f"{self.name}: {error}. {self.source}") from error
        return self.root, names

    def fingerprint(self) -> str:
        """Return a hash of the files' names and sizes. (Hashing their contents would take too long.)"""
        root, names = self._required()
        return npy_files.fingerprint(
            root, [f for split in ("train", "val") for f in npy_files.find(root / split, names)]
        )

    def data(self, generator: Generator, device: torch.device | str) -> Found:
        """Find the files of each split, which are the same for every seed: ``generator`` is not used.

        This checks the headers of all files. Their contents are checked when an image is read.

        Raises:
            MissingDataError: See `require`.
            BadDataError: If a file is missing or its header is wrong.
        """
        root, names = self._required()
        train, test = (npy_files.find(root / split, names) for split in ("train", "val"))
        if len(train) <= HELD_OUT:
            raise BadDataError(
                f"{root / 'train'} has {len(train)} images; expected more than the {HELD_OUT} that are held out"
            )
        npy_files.check([*train, *test])
        held_out = [i % STRETCH < HELD_OUT for i in range(len(train))]
        validation = [files for files, out in zip(train, held_out, strict=True) if out]
        rest = [files for files, out in zip(train, held_out, strict=True) if not out]
        return Found(rest, validation, test, torch.device(device))

    def batches(self, data: Found, generator: Generator, batch_size: int) -> Iterator[Images]:
        """Return training batches that are read from files while the model trains on earlier batches.

        Unlike in other problems, batches are copied from the host.
        """
        requests = self._requests(epochs(len(data.train), batch_size, generator, "cpu"), generator)
        return self._load(data.train, requests, data.device)

    def _requests(self, every: Iterator[tuple[Tensor, ...]], generator: Generator) -> Iterator[list[Request]]:
        """Yield the requests of each batch.

        The images' seeds are drawn once per epoch, so they do not depend on which worker reads an image, or when.
        """
        for epoch in every:
            seeds = torch.randint(2**62, (), generator=generator) if self.augment else None
            for chosen in epoch:
                yield [(i, None if seeds is None else int(seeds) + i) for i in chosen.tolist()]

    def held_out(self, data: Found, split: Split) -> Iterator[Images]:
        files = {"validation": data.validation, "test": data.test}[split]
        return self._load(files, _in_order(range(len(files))), data.device)

    def training_sample(self, data: Found) -> Images:
        """Return at most 64 images, evenly spaced in numeric order."""
        return self._spaced(data.train, SAMPLE, data.device)

    def shown(self, data: Found) -> Images:
        return self._spaced(data.test, SHOWN, data.device)

    def sizes(self, data: Found) -> Mapping[str, int]:
        return {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}

    def _spaced(self, files: Sequence[Files], count: int, device: torch.device) -> Images:
        """Read at most ``count`` images, evenly spaced in ``files``."""
        chosen = torch.linspace(0, len(files) - 1, min(count, len(files))).round().int().tolist()
        return join(list(self._load(files, _in_order(chosen), device)))

    def _load(
        self, files: Sequence[Files], requests: Iterator[list[Request]], device: torch.device
    ) -> Iterator[Images]:
        """Read the requested batches, and move them to ``device``.

        Raises:
            BadDataError: If a file is wrong.
        """
        pinned = device.type == "cuda"
        loader = DataLoader(
            ImageReader(files, len(self.classes), self.inverse_depth),
            batch_sampler=requests,
            num_workers=self.num_workers,
            collate_fn=_joined,
            pin_memory=pinned,
            generator=Generator(),  # without it, the loader would draw from torch's global generator
        )
        for images in loader:
            if isinstance(images, BadDataError):
                raise images
            yield images.to(device, non_blocking=pinned)


def _joined(read: Sequence[Images | BadDataError]) -> Images | BadDataError:
    """Join the images into a batch, or return the first error among them."""
    images: list[Images] = []
    for result in read:
        if isinstance(result, BadDataError):
            return result
        images.append(result)
    return join(images)


def _in_order(indices: Sequence[int]) -> Iterator[list[Request]]:
    """Return requests for the images ``indices``, without augmentation, `CHUNK` at a time."""
    return ([(i, None) for i in indices[start : start + CHUNK]] for start in range(0, len(indices), CHUNK))
