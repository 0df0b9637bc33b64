"""Data sets in folders of NumPy files, as the multi-task literature shares them: found, checked, and read one by one.

The layout is that of Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention" (MTAN), CVPR 2019::

    root/train/image/0.npy    (H, W, 3), floating-point, from 0 to 1
    root/train/label/0.npy    (H, W), whole numbers of any type, -1 where a pixel has no class
    root/train/depth/0.npy    (H, W, 1), floating-point, 0 where the depth is unknown
    root/train/normal/0.npy   (H, W, 3), floating-point, zero where the normal is unknown
    root/val/...              the same

A folder may have another name, as that of Cityscapes' labels has. Nothing in a file is ever executed: a header is a
literal, and the rest is mapped into memory as numbers.
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
"""The folder's name for each kind of file that a data set has."""
Files = Mapping[Kind, Path]
"""The files of one image."""
Size = tuple[int, int]

ROOM = 0.25
"""How far a colour may lie outside of 0 to 1, and a normal's length beyond 1: resampling overshoots."""


class BadDataError(ValueError):
    """A data file isn't what it should be; the message says which, and why."""


def require(root: Path, folders: Folders) -> None:
    """Checks that every folder is there and holds files.

    Raises:
        MissingDataError: the first that isn't or doesn't.
    """
    for split in ("train", "val"):
        for name in folders.values():
            folder = root / split / name
            if not folder.is_dir():
                raise MissingDataError(f"there is no folder {folder}")
            if not any(folder.glob("*.npy")):
                raise MissingDataError(f"the folder {folder} holds no .npy files")


def find(split: Path, folders: Folders) -> list[Files]:
    """The files of every image of a split, in numeric order.

    Raises:
        BadDataError: a file's name is no number, or an image lacks a file.
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
    files: dict[int, Path] = {}
    for path in folder.glob("*.npy"):
        if path.name.startswith("."):  # what a file manager left
            continue
        if not (path.stem.isascii() and path.stem.isdigit() and path.stem == str(int(path.stem))):
            raise BadDataError(f"{path}: expected a number for a name, as in 0.npy")
        files[int(path.stem)] = path
    return files


def fingerprint(root: Path, files: Iterable[Files]) -> str:
    """The SHA-256 of the files' names in ``root`` and sizes in bytes, in hexadecimal digits."""
    paths = (path for one in files for path in one.values())
    lines = (f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check(files: Iterable[Files]) -> None:
    """Checks every file's header and length: all images have the first one's size. Contents are checked by `read`.

    Raises:
        BadDataError: the first file that is wrong.
    """
    size: Size | None = None
    for one in files:
        size = _size(one["image"]) if size is None else size
        for kind, path in one.items():
            _mapped(path, kind, size)


def read(files: Files, num_classes: int) -> Images:
    """One image and its targets: fields with a first dimension of 1. Normals of any length come as unit vectors.

    Raises:
        BadDataError: a file is not what `check` wants, or holds a number that is out of range or not finite.
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
    return torch.from_numpy(np.moveaxis(array, -1, 0).astype(np.float32, order="C"))[None]  # a copy of the mapped file


def _size(image: Path) -> Size:
    shape = _open(image).shape
    if len(shape) != 3 or 0 in shape:
        raise BadDataError(f"{image} has shape {shape}; expected (height, width, 3)")
    return shape[0], shape[1]


def _mapped(path: Path, kind: Kind, size: Size) -> NDArray[Any]:
    """The file as an array whose shape and type are right."""
    array = _open(path)
    shape = {"image": (*size, 3), "label": size, "depth": (*size, 1), "normal": (*size, 3)}[kind]
    if array.shape != shape:
        raise BadDataError(f"{path} has shape {array.shape}; expected {shape}")
    known, what = ("iuf", "whole numbers") if kind == "label" else ("f", "floating-point numbers")
    if array.dtype.kind not in known:
        raise BadDataError(f"{path} holds {array.dtype}; expected {what}")
    return array


def _open(path: Path) -> NDArray[Any]:
    """The file, mapped into memory to be read: neither a pickle nor a file that is too short gets through."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a broken header can make NumPy raise almost anything
        raise BadDataError(f"{path} can't be read as a .npy file of numbers: {error}") from error


def _check_values(path: Path, kind: Kind, array: NDArray[Any], num_classes: int) -> None:
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
