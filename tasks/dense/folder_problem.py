"""Dense prediction on data sets in folders, whose images are read while the model is trained."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from ..batch_order import epochs
from ..problem import MissingDataError, Split
from . import folders
from .augment import augment
from .dense_problem import SHOWN, DensePrediction
from .folders import BadDataError, Files, Folders, Kind
from .images import Images, join

STRETCH, HELD_OUT = 50, 5
CHUNK = 8
"""Images that are evaluated at a time."""
SAMPLE = 64
"""Training images that the constant predictor is fitted to, at most."""

Request = tuple[int, int | None]
"""Which image, and the seed that it is augmented by; None: it is left as it is."""


@dataclass(frozen=True, eq=False)
class Found:
    """The files of each split's images, in numeric order, and the device that images are to go to."""

    train: Sequence[Files]
    validation: Sequence[Files]
    test: Sequence[Files]
    device: torch.device


@dataclass(frozen=True)
class Reader(Dataset[Images | BadDataError]):
    """Reads, and augments, one image at a time; in another process, if there are workers.

    What is wrong with a file is returned, not raised: raised in a worker it would come with a page of traceback, and
    keep the loader from ending its workers for ten seconds.
    """

    files: Sequence[Files]
    num_classes: int
    inverse_depth: bool

    def __getitem__(self, request: Request) -> Images | BadDataError:
        index, seed = request
        try:
            images = folders.read(self.files[index], self.num_classes)
        except BadDataError as error:
            return error
        if seed is None:
            return images
        return augment(images, Generator().manual_seed(seed), inverse_depth=self.inverse_depth)


class FolderPrediction(DensePrediction[Found]):
    """Dense prediction on a data set in the layout of `folders`.

    There is no third split in those folders. Here ``val`` is the test set, and the validation set is part of ``train``:
    of every 50 images in numeric order, the first 5. They are taken in a row since neighbours often show one place.
    Even so some have a neighbour in the training set, as no image of ``val`` has, so test scores are the lower ones.

    Attributes:
        source: where people get the data.
        label_folders: what the folder of labels may be called; the first that is there is read.
        inverse_depth: whether depth is inverse depth, which augmentation changes the other way.

    Args:
        root: the folder that holds ``train`` and ``val``.
        width: channels of the finest stage; the others have 2, 4, 8 and 8 times as many.
        augment: whether training images are enlarged and mirrored at random, see `augment`.
        num_workers: processes that read images; 0: this one reads them. They change no result.

    Raises:
        ValueError: an option isn't of this kind.
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
        """Checks that ``root`` was given and has all folders."""
        self._required()

    def _required(self) -> tuple[Path, Folders]:
        """The root and what its folders are called, once they are known to be there."""
        if self.root is None:
            raise MissingDataError(f"{self.name} needs the option root, the folder that holds its data. {self.source}")
        labels = [name for name in self.label_folders if (self.root / "train" / name).is_dir()]
        names: dict[Kind, str] = {"image": "image", "label": (*labels, *self.label_folders)[0], "depth": "depth"}
        if "normals" in self.tasks:
            names["normal"] = "normal"
        try:
            folders.require(self.root, names)
        except MissingDataError as error:
            raise MissingDataError(f"{self.name}: {error}. {self.source}") from error
        return self.root, names

    def fingerprint(self) -> str:
        """A hash of the files' names and sizes; reading them all takes too long."""
        root, names = self._required()
        return folders.fingerprint(root, [f for split in ("train", "val") for f in folders.find(root / split, names)])

    def data(self, generator: Generator, device: torch.device | str) -> Found:
        """Where each split's files are, the same for every seed: ``generator`` is not used.

        Headers of all files are checked here, what they hold when an image is read.

        Raises:
            MissingDataError: see `require`.
            BadDataError: a file is missing, or isn't what it should be.
        """
        root, names = self._required()
        train, test = (folders.find(root / split, names) for split in ("train", "val"))
        if len(train) <= HELD_OUT:
            raise BadDataError(f"{root / 'train'} has {len(train)} images; {HELD_OUT} are held out, expected more")
        folders.check([*train, *test])
        held_out = [i % STRETCH < HELD_OUT for i in range(len(train))]
        validation = [files for files, out in zip(train, held_out, strict=True) if out]
        rest = [files for files, out in zip(train, held_out, strict=True) if not out]
        return Found(rest, validation, test, torch.device(device))

    def batches(self, data: Found, generator: Generator, batch_size: int) -> Iterator[Images]:
        """Read from files, while the batches before are trained on: these do come from the host."""
        requests = self._requests(epochs(len(data.train), batch_size, generator, "cpu"), generator)
        return self._load(data.train, requests, data.device)

    def _requests(self, every: Iterator[tuple[Tensor, ...]], generator: Generator) -> Iterator[list[Request]]:
        """Batches of what to read. An image's seed is drawn an epoch, whoever reads it and when."""
        for epoch in every:
            seeds = torch.randint(2**62, (), generator=generator) if self.augment else None
            for chosen in epoch:
                yield [(i, None if seeds is None else int(seeds) + i) for i in chosen.tolist()]

    def held_out(self, data: Found, split: Split) -> Iterator[Images]:
        files = {"validation": data.validation, "test": data.test}[split]
        return self._load(files, _in_order(range(len(files))), data.device)

    def training_sample(self, data: Found) -> Images:
        """At most 64 images, evenly spaced in numeric order."""
        return self._spaced(data.train, SAMPLE, data.device)

    def shown(self, data: Found) -> Images:
        return self._spaced(data.test, SHOWN, data.device)

    def sizes(self, data: Found) -> Mapping[str, int]:
        return {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}

    def _spaced(self, files: Sequence[Files], count: int, device: torch.device) -> Images:
        chosen = torch.linspace(0, len(files) - 1, min(count, len(files))).round().int().tolist()
        return join(list(self._load(files, _in_order(chosen), device)))

    def _load(
        self, files: Sequence[Files], requests: Iterator[list[Request]], device: torch.device
    ) -> Iterator[Images]:
        pinned = device.type == "cuda"
        loader = DataLoader(
            Reader(files, len(self.classes), self.inverse_depth),
            batch_sampler=requests,
            num_workers=self.num_workers,
            collate_fn=_joined,
            pin_memory=pinned,
            generator=Generator(),  # or it would draw from torch's global one
        )
        for images in loader:
            if isinstance(images, BadDataError):
                raise images
            yield images.to(device, non_blocking=pinned)


def _joined(read: Sequence[Images | BadDataError]) -> Images | BadDataError:
    """The images that were read, or what is wrong with the first that can't be."""
    images: list[Images] = []
    for one in read:
        if isinstance(one, BadDataError):
            return one
        images.append(one)
    return join(images)


def _in_order(indices: Sequence[int]) -> Iterator[list[Request]]:
    return ([(i, None) for i in indices[start : start + CHUNK]] for start in range(0, len(indices), CHUNK))
