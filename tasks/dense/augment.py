"""Data augmentation for NYUv2 and Cityscapes, as in the multi-task literature: random crops, enlarged, and mirroring.

It follows the public code that came after Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention"
(MTAN), CVPR 2019 (the paper itself has no augmentation), apart from two points:

- Enlarging an image moves the scene nearer, so depth is divided by the scale, as in that code. But *inverse* depth, as
  in Cityscapes, is multiplied by the scale here, while that code divides it too.
- Normals are interpolated only between known ones, and then normalised to unit length again.
"""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from .images import Images, known_normal

SCALES = (1.0, 1.2, 1.5)
"""Factors by which images are enlarged."""


def augment(images: Images, generator: Generator, *, inverse_depth: bool) -> Images:
    """Enlarge a crop of ``images`` to their original size and, half of the time, mirror them.

    All images are changed in the same way. The scale, the crop's position and whether to mirror are drawn from
    ``generator``.
    """
    scale = SCALES[int(torch.randint(len(SCALES), (), generator=generator))]
    height, width = images.image.shape[-2:]
    size = (int(height / scale), int(width / scale))
    top, left = (
        int(torch.randint(whole - part + 1, (), generator=generator))
        for whole, part in zip((height, width), size, strict=True)
    )
    mirrored = bool(torch.rand((), generator=generator) < 0.5)

    cropped = images.each(lambda field: field[..., top : top + size[0], left : left + size[1]])
    enlarged = cropped if scale == 1 else _enlarge(cropped, (height, width), 1 / scale if inverse_depth else scale)
    return mirror(enlarged) if mirrored else enlarged


def _enlarge(images: Images, size: tuple[int, int], nearer: float) -> Images:
    """Resize ``images`` to ``size`` and divide their depth by ``nearer``.

    Images and normals are interpolated bilinearly; labels and depth take the nearest pixel's value.
    """

    def linear(field: Tensor) -> Tensor:
        return F.interpolate(field, size, mode="bilinear", align_corners=True)

    def nearest(field: Tensor) -> Tensor:
        return F.interpolate(field, size, mode="nearest")

    label, depth, normal = images.label, images.depth, images.normal
    if label is not None:
        label = nearest(label[:, None].float())[:, 0].long()
    if depth is not None:
        depth = nearest(depth) / nearer
    if normal is not None:
        known = nearest(known_normal(normal)[:, None].float())
        normal = F.normalize(linear(normal), dim=1) * known
    return Images(linear(images.image), label, depth, normal)


def mirror(images: Images) -> Images:
    """Exchange left and right of ``images``, and negate the x component of their normals."""
    flipped = images.each(lambda field: field.flip(-1))
    if flipped.normal is None:
        return flipped
    return flipped._replace(normal=flipped.normal * flipped.normal.new_tensor([-1.0, 1.0, 1.0])[:, None, None])
