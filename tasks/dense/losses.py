"""The losses of dense prediction. Each is a mean over the batch's pixels that have a target.

They follow Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention" (MTAN), CVPR 2019, section 4. A
batch without any target gives a loss of 0 that is still part of the graph. No function here waits for the device.
"""

import torch
from torch import Tensor

from .images import cosine, known_depth, known_normal, labelled


def segmentation_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Return the cross-entropy in nats of logits ``(N, classes, H, W)`` for labels ``(N, H, W)``."""
    # Not `F.cross_entropy`: for images, it is not deterministic on CUDA.
    known = labelled(label)
    of_label = logits.log_softmax(1).gather(1, label.clamp(min=0)[:, None])[:, 0]
    return -_mean(torch.where(known, of_label, 0.0), known)


def depth_loss(prediction: Tensor, depth: Tensor) -> Tensor:
    """Return the mean absolute error of depths, of shape ``(N, 1, H, W)``."""
    known = known_depth(depth)
    return _mean(torch.where(known, (prediction - depth).abs(), 0.0), known)


def normal_loss(prediction: Tensor, normal: Tensor) -> Tensor:
    """Return 1 minus the mean dot product of normalised predictions and unit normals, both ``(N, 3, H, W)``."""
    known = known_normal(normal)
    return _mean(torch.where(known, 1 - cosine(prediction, normal), 0.0), known)


def _mean(values: Tensor, known: Tensor) -> Tensor:
    """Return the mean of ``values`` over the ``known`` pixels. At all other pixels, ``values`` must be 0."""
    return values.sum() / known.sum().clamp(min=1)
