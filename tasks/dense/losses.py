"""The losses of dense prediction, as in Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention" (MTAN),
CVPR 2019, section 4: each a mean over the batch's pixels that have a target.

A batch without a single target gives 0, which still belongs to the graph. Nothing here waits for the device.
"""

import torch
from torch import Tensor

from .images import cosine, known_depth, known_normal, labelled


def segmentation_loss(logits: Tensor, label: Tensor) -> Tensor:
    """The cross-entropy in nats of logits ``(N, classes, H, W)``, for labels ``(N, H, W)``."""
    # `F.cross_entropy` of images is not deterministic on CUDA.
    known = labelled(label)
    of_label = logits.log_softmax(1).gather(1, label.clamp(min=0)[:, None])[:, 0]
    return -_mean(torch.where(known, of_label, 0.0), known)


def depth_loss(prediction: Tensor, depth: Tensor) -> Tensor:
    """The mean absolute error of depths ``(N, 1, H, W)``."""
    known = known_depth(depth)
    return _mean(torch.where(known, (prediction - depth).abs(), 0.0), known)


def normal_loss(prediction: Tensor, normal: Tensor) -> Tensor:
    """1 minus the mean dot product of normalised predictions ``(N, 3, H, W)`` and unit normals, ``(N, 3, H, W)``."""
    known = known_normal(normal)
    return _mean(torch.where(known, 1 - cosine(prediction, normal), 0.0), known)


def _mean(values: Tensor, known: Tensor) -> Tensor:
    """The mean of ``values``, which are 0 where not ``known``, over the pixels that are."""
    return values.sum() / known.sum().clamp(min=1)
