"""The augmentation of the multi-task literature on NYUv2 and Cityscapes: a random crop, enlarged, and a mirror image.

As in the public code that followed Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention" (MTAN), CVPR
2019 (the paper itself has none), apart from two things. What grows on the image comes nearer: depth is divided by the
scale, as there, but *inverse* depth, that of Cityscapes, is multiplied by it, where that code divides too. And normals
are interpolated between known ones only, then made unit vectors again.
"""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from .images import Images, known_normal

SCALES = (1.0, 1.2, 1.5)


def augment(images: Images, generator: Generator, *, inverse_depth: bool) -> Images:
    """All ``images`` changed alike, their size kept: the scale, the place and whether to mirror from ``generator``."""
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
    """``images`` at another size, and ``nearer`` by that factor: image and normals bilinear, others as the nearest."""

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
    """``images`` with left and right exchanged, and the x component of normals negated."""
    flipped = images.each(lambda field: field.flip(-1))
    if flipped.normal is None:
        return flipped
    return flipped._replace(normal=flipped.normal * flipped.normal.new_tensor([-1.0, 1.0, 1.0])[:, None, None])
