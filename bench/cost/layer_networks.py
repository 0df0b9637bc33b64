"""Networks whose last shared layer decides what GradNorm costs: wide layers with few rows, and many narrow heads.

There is nothing to learn in their data.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from balancers import Fork

from .subject import Subject

WIDE, ROWS, WIDE_TASKS = 2048, 32, 3
CHANNELS, IMAGES, SIDE = 512, 2, 4
NARROW, NARROW_TASKS, BATCH = 256, 40, 100
OUTPUTS = 8
"""Number of outputs of each head behind a wide layer."""


class LayerNetwork(nn.Module):
    """A trunk that ends in ``last`` and a ReLU, and linear heads."""

    def __init__(self, before: Sequence[nn.Module], last: nn.Module, features: int, heads: Sequence[int]) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*before, last, nn.ReLU(), nn.Flatten())
        self.last = last
        self.fork = Fork(len(heads))
        self.heads = nn.ModuleList(nn.Linear(features, outputs) for outputs in heads)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return each head's outputs, ``(N, outputs)``."""
        return [head(z) for head, z in zip(self.heads, self.fork(self.trunk(x)), strict=True)]


def wide_linear() -> Subject:
    """Return a network with a linear layer of 2048 x 2048, three tasks, and a batch of 32."""
    before = [nn.Linear(WIDE, WIDE), nn.ReLU()]
    network = LayerNetwork(before, nn.Linear(WIDE, WIDE), WIDE, [OUTPUTS] * WIDE_TASKS)
    return _subject(network, torch.randn(ROWS, WIDE))


def wide_convolution() -> Subject:
    """Return a network with a convolution of 512 x 512 x 3 x 3, three tasks, and two images of 4 x 4."""
    before = [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU()]
    last = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
    network = LayerNetwork(before, last, CHANNELS * SIDE**2, [OUTPUTS] * WIDE_TASKS)
    return _subject(network, torch.randn(IMAGES, CHANNELS, SIDE, SIDE))


def narrow_heads() -> Subject:
    """Return a network of four linear layers, 256 wide, with 40 heads of one output, and a batch of 100."""
    layers = [nn.Linear(NARROW, NARROW) for _ in range(4)]
    before = [module for layer in layers[:-1] for module in (layer, nn.ReLU())]
    return _subject(LayerNetwork(before, layers[-1], NARROW, [1] * NARROW_TASKS), torch.randn(BATCH, NARROW))


LAYER_NETWORKS: dict[str, tuple[Callable[[], Subject], int, int]] = {
    "linear 2048": (wide_linear, ROWS, WIDE_TASKS),
    "convolution 512": (wide_convolution, IMAGES, WIDE_TASKS),
    "narrow heads": (narrow_heads, BATCH, NARROW_TASKS),
}
"""By name: what makes the subject, its batch and its number of tasks."""


def _subject(network: LayerNetwork, x: Tensor) -> Subject:
    return Subject(network, lambda: [output.square().mean() for output in network(x)], network.last)
