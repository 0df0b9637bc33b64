"""The data of dense prediction: images with a label, a depth and a surface normal for each pixel."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Images(NamedTuple):
    """N images of H by W pixels, and their targets.

    A target's field is None if the data set has no such task. A special value marks a pixel without a target, see
    `labelled`, `known_depth` and `known_normal`.
    """

    image: Tensor
    """Colours from 0 to 1, shape ``(N, 3, H, W)``, float32."""
    label: Tensor | None = None
    """Class of each pixel, -1 if it has none, shape ``(N, H, W)``, int64."""
    depth: Tensor | None = None
    """Depth in the unit that the problem states, 0 if unknown, shape ``(N, 1, H, W)``, float32."""
    normal: Tensor | None = None
    """Surface normals as unit vectors, zero if unknown, shape ``(N, 3, H, W)``, float32."""

    def each(self, change: Callable[[Tensor], Tensor]) -> "Images":
        """Apply ``change`` to every field that is not None."""
        return Images(change(self.image), *(None if field is None else change(field) for field in self[1:]))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Images":
        return self.each(lambda field: field.to(device, non_blocking=non_blocking))

    def select(self, chosen: Tensor) -> "Images":
        """Return the images at the indices ``chosen``, shape ``(M,)``, which are on the same device."""
        return self.each(lambda field: field.index_select(0, chosen))

    def split(self, size: int) -> list["Images"]:
        """Split into parts of ``size`` images, in order. The last part may be smaller."""
        return [self._part(slice(start, start + size)) for start in range(0, len(self.image), size)]

    def _part(self, part: slice) -> "Images":
        return self.each(lambda field: field[part])


def join(parts: Sequence[Images]) -> Images:
    """Concatenate the images of all ``parts``, which must have the same fields."""

    def joined(fields: Sequence[Tensor | None]) -> Tensor | None:
        present = [field for field in fields if field is not None]
        return torch.cat(present) if present else None

    images, *targets = zip(*parts, strict=True)
    return Images(torch.cat(images), *(joined(fields) for fields in targets))


def labelled(label: Tensor) -> Tensor:
    """Return a mask of the pixels that have a class, shape ``(N, H, W)``, bool."""
    return label >= 0


def known_depth(depth: Tensor) -> Tensor:
    """Return a mask of the pixels that have a depth, shape ``(N, 1, H, W)``, bool."""
    return depth > 0


def known_normal(normal: Tensor) -> Tensor:
    """Return a mask of the pixels that have a normal, shape ``(N, H, W)``, bool."""
    return normal.square().sum(1) > 0


def cosine(prediction: Tensor, normal: Tensor) -> Tensor:
    """Return the cosine of the angle between predicted and true normals, shape ``(N, H, W)``.

    It is 0 if either is zero. The formula is written out, because `F.normalize` over three channels takes many times as
    long.

    Args:
        prediction: vectors of any length, shape ``(N, 3, H, W)``.
        normal: unit vectors or zeros, shape ``(N, 3, H, W)``.
    """
    return (prediction * normal).sum(1) * prediction.square().sum(1).clamp(min=1e-12).rsqrt()
