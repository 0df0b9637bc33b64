"""Small networks with a fork, in float64, and data to train them on."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from balancers import Fork

Aliases = Sequence[Sequence[Any]]
"""For each call of the fork, the features that each head gets."""


class Net(nn.Module):
    """A trunk, whose entry 2 is the last shared layer, a fork, and heads.

    `outputs` also takes features that did not go through the fork, so that the same network can be run without one.
    """

    def __init__(self, trunk: nn.Module, num_tasks: int, width: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.fork = Fork(num_tasks)
        self.heads = nn.ModuleList(nn.Sequential(nn.Flatten(), nn.Linear(width, 3)) for _ in range(num_tasks))
        self.double()

    @property
    def layer(self) -> nn.Module:
        return self.trunk[2]

    def features(self, x: Tensor) -> list[Any]:
        return [self.trunk(x)]

    def outputs(self, aliases: Aliases) -> list[Tensor]:
        return [head(z) for head, z in zip(self.heads, aliases[0], strict=True)]

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.outputs([self.fork(z) for z in self.features(x)])


class NestedNet(Net):
    """A net whose heads get a dict. The last shared layer feeds three of its four leaves, one through another."""

    def features(self, x: Tensor) -> list[Any]:
        first = self.trunk[1](self.trunk[0](x))
        last = self.trunk[2](first)
        return [{"early": first, "late": (last, [last.tanh(), last.square()])}]

    def outputs(self, aliases: Aliases) -> list[Tensor]:
        def joined(z: dict[str, Any]) -> Tensor:
            plain, (bent, square) = z["late"]
            return torch.cat([z["early"], plain + bent, square], -1)

        return [head(joined(z)) for head, z in zip(self.heads, aliases[0], strict=True)]


class TwiceNet(Net):
    """A net that calls its fork twice in a step, the second time with features that depend on the first ones."""

    def features(self, x: Tensor) -> list[Any]:
        z = self.trunk(x)
        return [z, self.trunk(x + z.mean(-1, keepdim=True))]

    def outputs(self, aliases: Aliases) -> list[Tensor]:
        pairs = zip(self.heads, *aliases, strict=True)
        return [head(torch.cat([first, second], -1)) for head, first, second in pairs]


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x, x, x)[0]


def _trunk(*last: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Sequential(*last) if len(last) > 1 else last[0], nn.Tanh())


def _convolution() -> nn.Sequential:
    last = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    return nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), last, nn.ReLU())


def _attention() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), SelfAttention(), nn.Tanh())


SHAPES = {"convolution": (4, 2, 4, 4), "attention": (3, 2, 5)}
NETS: dict[str, Callable[[int], Net]] = {
    "linear": lambda num_tasks: Net(_trunk(nn.Linear(6, 4)), num_tasks, 4),
    "convolution": lambda num_tasks: Net(_convolution(), num_tasks, 12),
    "dropout": lambda num_tasks: Net(_trunk(nn.Linear(6, 4), nn.Dropout(0.3)), num_tasks, 4),
    "attention": lambda num_tasks: Net(_attention(), num_tasks, 8),
    "nested": lambda num_tasks: NestedNet(_trunk(nn.Linear(6, 4)), num_tasks, 14),
    "twice": lambda num_tasks: TwiceNet(_trunk(nn.Linear(6, 4)), num_tasks, 8),
}


def build(name: str, num_tasks: int = 2) -> Net:
    torch.manual_seed(1)
    return NETS[name](num_tasks)


def inputs(name: str, count: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    shape = SHAPES.get(name, (4, 5))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def losses_of(outputs: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    """Return squared errors from targets that depend on ``x``, on scales that differ by task."""
    level = x.flatten(1).mean(1, keepdim=True)
    scales = [2 * (i + 1) / len(outputs) for i in range(len(outputs))]
    return [
        c * (output - (1 + torch.sin(level * c))).square().mean() for c, output in zip(scales, outputs, strict=True)
    ]
