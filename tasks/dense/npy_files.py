"""Data sets in folders of NumPy files, as the multi-task literature shares them: finds, checks and reads the files.

The layout is that of Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention" (MTAN), CVPR 2019::

    root/train/image/0.npy    (H, W, 3), floating-point, from 0 to 1
    root/train/label/0.npy    (H, W), whole numbers of any type, -1 where a pixel has no class
    root/train/depth/0.npy    (H, W, 1), floating-point, 0 where the depth is unknown
    root/train/normal/0.npy   (H, W, 3), floating-point, zero where the normal is unknown
    root/val/...              the same

A folder may have another name, for example Cityscapes' folder of labels. Nothing in a file is ever executed: a header
is a Python literal, and the rest is mapped into memory as numbers.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..problem import MissingDataError
from .images import Images

Kind = Literal["image", "label", "depth", "normal"]
Folders = Mapping[Kind, str]
"""Name of the folder for each kind of file in a data set."""
Files = Mapping[Kind, Path]
"""Files of one image."""
Size = tuple[int, int]
"""Height and width in pixels."""

ROOM = 0.25
"""Tolerance for colours outside of 0 to 1 and for normals longer than 1, because resampling can overshoot."""


class BadDataError(ValueError):
    """A data file is wrong. The message names the file and says what is wrong with it."""


def require(root: Path, folders: Folders) -> None:
    """Check that every folder exists and contains files.

    Raises:
        MissingDataError: If a folder is missing or has no files. The message names the first such folder.
    """
    for split in ("train", "val"):
        for name in folders.values():
            folder = root / split / name
            if not folder.is_dir():
                raise MissingDataError(f"there is no folder {folder}")
            if not any(folder.glob("*.npy")):
                raise MissingDataError(f"the folder {folder} holds no .npy files")


def find(split: Path, folders: Folders) -> list[Files]:
    """Return the files of each image of a split, in numeric order.

    Raises:
        BadDataError: If a file's name is not a number, or a file of an image is missing.
    """
    found = {kind: _numbered(split / name) for kind, name in folders.items()}
    numbers = sorted({number for files in found.values() for number in files})
    for number in numbers:
        there = next(files[number] for files in found.values() if number in files)
        for kind, files in found.items():
            if number not in files:
                raise BadDataError(f"{split / folders[kind] / there.name} is missing, but there is {there}")
    return [{kind: files[number] for kind, files in found.items()} for number in numbers]


def _numbered(folder: Path) -> dict[int, Path]:
    """Return the files in ``folder``, by their numbers.

    Raises:
        BadDataError: If a file's name is not a number.
    """
    files: dict[int, Path] = {}
    for path in folder.glob("*.npy"):
        if path.name.startswith("."):  # hidden files that a file manager left behind
            continue
        if not (path.stem.isascii() and path.stem.isdigit() and path.stem == str(int(path.stem))):
            raise BadDataError(f"{path}: expected a number as the file's name, as in 0.npy")
        files[int(path.stem)] = path
    return files


def fingerprint(root: Path, files: Iterable[Files]) -> str:
    """Return the SHA-256 of the files' paths relative to ``root`` and sizes in bytes, as hexadecimal digits."""
    paths = (path for of_image in files for path in of_image.values())
    lines = (f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check(files: Iterable[Files]) -> None:
    """Check the header and length of every file. All images must have the size of the first one.

    `read` checks the contents.

    Raises:
        BadDataError: If a file is wrong. The message names the first such file.
    """
    size: Size | None = None
    for of_image in files:
        size = _size(of_image["image"]) if size is None else size
        for kind, path in of_image.items():
            _mapped(path, kind, size)


def read(files: Files, num_classes: int) -> Images:
    """Read one image and its targets, in fields with a first dimension of 1. Normals are scaled to unit length.

    Raises:
        BadDataError: If a file does not pass `check`, or contains a number that is out of range or not finite.
    """
    size = _size(files["image"])
    arrays = {kind: _mapped(path, kind, size) for kind, path in files.items()}
    for kind, array in arrays.items():
        _check_values(files[kind], kind, array, num_classes)
    return Images(
        image=_channels_first(arrays["image"]).clamp(0, 1),
        label=torch.from_numpy(arrays["label"].astype(np.int64))[None] if "label" in arrays else None,
        depth=_channels_first(arrays["depth"]) if "depth" in arrays else None,
        normal=F.normalize(_channels_first(arrays["normal"]), dim=1) if "normal" in arrays else None,
    )


def _channels_first(array: NDArray[Any]) -> Tensor:
    """Copy an array ``(H, W, C)`` to a tensor ``(1, C, H, W)``, float32."""
    return torch.from_numpy(np.moveaxis(array, -1, 0).astype(np.float32, order="C"))[None]


def _size(image: Path) -> Size:
    """Return an image's size from its file's header.

    Raises:
        BadDataError: If the file's shape is not that of an image.
    """
    shape = _open(image).shape
    if len(shape) != 3 or 0 in shape:
        raise BadDataError(f"{image} has shape {shape}; expected (height, width, 3)")
    return shape[0], shape[1]


def _mapped(path: Path, kind: Kind, size: Size) -> NDArray[Any]:
    """Map a file into memory, and check its shape and type.

    Raises:
        BadDataError: If the shape or the type is wrong.
    """
    array = _open(path)
    shape = {"image": (*size, 3), "label": size, "depth": (*size, 1), "normal": (*size, 3)}[kind]
    if array.shape != shape:
        raise BadDataError(f"{path} has shape {array.shape}; expected {shape}")
    accepted, expected = ("iuf", "whole numbers") if kind == "label" else ("f", "floating-point numbers")
    if array.dtype.kind not in accepted:
        raise BadDataError(f"{path} holds {array.dtype}; expected {expected}")
    return array


def _open(path: Path) -> NDArray[Any]:
    """Map a file into memory for reading.

    Raises:
        BadDataError: If this is not possible, as for a pickle or a file that is too short.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a broken header can make NumPy raise almost anything
        raise BadDataError(f"{path} can't be read as a .npy file of numbers: {error}") from error


def _check_values(path: Path, kind: Kind, array: NDArray[Any], num_classes: int) -> None:
    """Check that all numbers in a file are finite and in range.

    Raises:
        BadDataError: If one isn't.
    """
    if not np.isfinite(array).all():
        raise BadDataError(f"{path} holds a number that is not finite")
    low, high = array.min(), array.max()
    match kind:
        case "image":
            if low < -ROOM or high > 1 + ROOM:
                raise BadDataError(f"{path} holds colours from {low:g} to {high:g}; expected 0 to 1")
        case "label":
            if low < -1 or high >= num_classes or (array != np.trunc(array)).any():
                raise BadDataError(
                    f"{path} holds labels from {low:g} to {high:g}; expected whole numbers from -1 to {num_classes - 1}"
                )
        case "depth":
            if low < 0:
                raise BadDataError(f"{path} holds a depth of {low:g}; expected 0 or more")
        case "normal":
            longest = float(np.sqrt(np.square(array.astype(np.float64)).sum(-1).max()))
            if longest > 1 + ROOM:
                raise BadDataError(f"{path} holds a normal of length {longest:g}; expected 1, or 0 where it is unknown")
