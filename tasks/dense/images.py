"""What dense prediction learns from: images with a label, a depth and a surface normal for each pixel."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Images(NamedTuple):
    """N images of H by W pixels, and what is to be predicted of them.

    A target's field is None where the data set has no such task. A pixel without a target has a value that no target
    has: see `labelled`, `known_depth` and `known_normal`.
    """

    image: Tensor
    """``(N, 3, H, W)``, float32, from 0 to 1."""
    label: Tensor | None = None
    """``(N, H, W)``, int64: the class, -1 where a pixel has none."""
    depth: Tensor | None = None
    """``(N, 1, H, W)``, float32: in the unit that the problem states, 0 where it is unknown."""
    normal: Tensor | None = None
    """``(N, 3, H, W)``, float32: unit vectors, zero where the normal is unknown."""

    def each(self, change: Callable[[Tensor], Tensor]) -> "Images":
        """Every field as ``change`` returns it."""
        return Images(change(self.image), *(None if field is None else change(field) for field in self[1:]))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Images":
        return self.each(lambda field: field.to(device, non_blocking=non_blocking))

    def select(self, chosen: Tensor) -> "Images":
        """The images at the indices ``chosen``, ``(M,)``, which are on the same device."""
        return self.each(lambda field: field.index_select(0, chosen))

    def split(self, size: int) -> list["Images"]:
        """The same images in their order, ``size`` at a time; the last part may be smaller."""
        return [self._part(slice(start, start + size)) for start in range(0, len(self.image), size)]

    def _part(self, part: slice) -> "Images":
        return self.each(lambda field: field[part])


def join(parts: Sequence[Images]) -> Images:
    """The images of all ``parts``, which have the same fields."""

    def joined(fields: Sequence[Tensor | None]) -> Tensor | None:
        present = [field for field in fields if field is not None]
        return torch.cat(present) if present else None

    images, *targets = zip(*parts, strict=True)
    return Images(torch.cat(images), *(joined(fields) for fields in targets))


def labelled(label: Tensor) -> Tensor:
    """Which pixels have a class: ``(N, H, W)``, bool."""
    return label >= 0


def known_depth(depth: Tensor) -> Tensor:
    """Which pixels have a depth: ``(N, 1, H, W)``, bool."""
    return depth > 0


def known_normal(normal: Tensor) -> Tensor:
    """Which pixels have a normal: ``(N, H, W)``, bool."""
    return normal.square().sum(1) > 0


def cosine(prediction: Tensor, normal: Tensor) -> Tensor:
    """Of the angle between predictions ``(N, 3, H, W)``, of any length, and unit normals: ``(N, H, W)``.

    0 where either is zero. Written out, as `F.normalize` over three channels takes many times as long.
    """
    return (prediction * normal).sum(1) * prediction.square().sum(1).clamp(min=1e-12).rsqrt()
