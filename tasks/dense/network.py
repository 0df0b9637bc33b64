"""The network of all dense-prediction problems: an encoder-decoder that tasks share up to their last convolution.

SegNet (Badrinarayanan, Kendall and Cipolla, "SegNet", TPAMI 2017) has an encoder of convolutions and poolings, and a
decoder that mirrors it. The decoder puts each feature back at the position of the maximum that it was pooled from. For
several tasks, all layers except the last are shared, as in Chen, Badrinarayanan, Lee and Rabinovich, "GradNorm", ICML
2018, section 5.1.

The positions of maxima are stored as a mask and not as indices. `max_unpool2d`, which takes indices, has no
deterministic implementation on CUDA; nearest-neighbour upsampling times a mask has one, and is no slower. The two
differ if several pixels tie for the maximum, which happens at zero after a ReLU: the mask marks all of them, the
indices only the first.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from balancers import Fork


class SegNet(nn.Module):
    """A SegNet with one head per task: images ``(N, 3, H, W)`` to one prediction ``(N, outputs[i], H, W)`` per task.

    Args:
        widths: number of channels of each stage, the finest stage first. A pooling follows each stage of the encoder,
            so H and W must be multiples of 2 to the power of the number of stages.
        convolutions: number of convolutions of each stage of the encoder. The decoder's stages have the same numbers.
        outputs: number of channels of each task's prediction.

    Raises:
        ValueError: If ``widths`` and ``convolutions`` differ in length or have a number below 1; in ``forward``, if H
            or W is not such a multiple.
    """

    def __init__(self, widths: Sequence[int], convolutions: Sequence[int], outputs: Sequence[int]) -> None:
        super().__init__()
        if not widths or len(widths) != len(convolutions) or min(*widths, *convolutions) < 1:
            raise ValueError(
                f"widths are {list(widths)}, convolutions {list(convolutions)}; expected one of each per stage, all 1 "
                f"or more"
            )
        stages = [[width] * count for width, count in zip(widths, convolutions, strict=True)]
        self.encoder = nn.ModuleList(
            _stage([before, *stage]) for before, stage in zip([3, *widths], stages, strict=False)
        )
        self.decoder = nn.ModuleList(
            _stage([*stage, after]) for stage, after in zip(stages, [widths[0], *widths], strict=False)
        )
        self.fork = Fork(len(outputs))
        self.heads = nn.ModuleList(nn.Conv2d(widths[0], channels, 1) for channels in outputs)
        self.multiple = 2 ** len(widths)
        """Number that must divide the height and width of images."""

    @property
    def last_shared(self) -> nn.Conv2d:
        """Last shared convolution. Its output, after batch normalisation and ReLU, is the features at the fork."""
        return cast("nn.Conv2d", cast("nn.Sequential", self.decoder[0])[-3])

    def forward(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[-2:]
        if height % self.multiple or width % self.multiple:
            raise ValueError(
                f"images have {height} x {width} pixels; with {len(self.encoder)} stages, expected multiples of "
                f"{self.multiple}"
            )
        x = images.contiguous(memory_format=torch.channels_last)  # faster for 3 x 3 convolutions
        masks: list[Tensor] = []
        for stage in self.encoder:
            fine = stage(x)
            x = F.max_pool2d(fine, 2)
            masks.append((fine.detach() == _double(x.detach())).to(x.dtype))
        for stage, mask in zip(reversed(self.decoder), reversed(masks), strict=True):
            x = stage(_double(x) * mask)
        aliases = self.fork(x.contiguous())  # faster for heads and losses
        return [head(features) for head, features in zip(self.heads, aliases, strict=True)]


def _stage(channels: Sequence[int]) -> nn.Sequential:
    """Make convolutions from each number of ``channels`` to the next, each with batch normalisation and ReLU."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
