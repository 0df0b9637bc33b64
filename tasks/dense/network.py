"""The network of all dense-prediction problems: an encoder-decoder that tasks share up to their last convolution.

SegNet (Badrinarayanan, Kendall and Cipolla, "SegNet", TPAMI 2017) is an encoder of convolutions and pooling and its
mirror image, which puts each feature back where its maximum was pooled from. For several tasks, all but the final layer
is shared, as in Chen, Badrinarayanan, Lee and Rabinovich, "GradNorm", ICML 2018, section 5.1.

Where a maximum was is kept as a mask, not as indices: `max_unpool2d` has no deterministic implementation on CUDA, while
nearest-neighbour upsampling times a mask has one, and is no slower. They differ where pixels tie for the maximum, which
after a ReLU they do at zero: a mask has them all, indices have the first.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from balancers import Fork


class SegNet(nn.Module):
    """Images ``(N, 3, H, W)`` to one prediction a task, ``(N, outputs[i], H, W)``.

    Args:
        widths: the channels of each stage, the finest first. There is a pooling between a stage of the encoder and the
            next, and one after the last, so H and W are multiples of 2 to the number of stages.
        convolutions: how many each stage of the encoder has; its mirror in the decoder has as many.
        outputs: the channels of each task's prediction.

    Raises:
        ValueError: not one number of convolutions a stage; in ``forward``, images of another size.
    """

    def __init__(self, widths: Sequence[int], convolutions: Sequence[int], outputs: Sequence[int]) -> None:
        super().__init__()
        if not widths or len(widths) != len(convolutions) or min(*widths, *convolutions) < 1:
            raise ValueError(
                f"widths are {list(widths)}, convolutions {list(convolutions)}; expected one of each a stage, 1 or more"
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
        """What height and width are multiples of."""

    @property
    def last_shared(self) -> nn.Conv2d:
        """The convolution whose output, normalised and rectified, is the features at the fork."""
        return cast("nn.Conv2d", cast("nn.Sequential", self.decoder[0])[-3])

    def forward(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[-2:]
        if height % self.multiple or width % self.multiple:
            raise ValueError(
                f"images have {height} x {width} pixels; with {len(self.encoder)} stages, expected multiples of "
                f"{self.multiple}"
            )
        x = images.contiguous(memory_format=torch.channels_last)  # the faster layout for 3 x 3 convolutions
        masks: list[Tensor] = []
        for stage in self.encoder:
            fine = stage(x)
            x = F.max_pool2d(fine, 2)
            masks.append((fine.detach() == _double(x.detach())).to(x.dtype))
        for stage, mask in zip(reversed(self.decoder), reversed(masks), strict=True):
            x = stage(_double(x) * mask)
        aliases = self.fork(x.contiguous())  # the faster layout for heads and losses
        return [head(features) for head, features in zip(self.heads, aliases, strict=True)]


def _stage(channels: Sequence[int]) -> nn.Sequential:
    """Convolutions from each number of ``channels`` to the next, each normalised and rectified."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
