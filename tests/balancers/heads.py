"""Networks and data for the tests of `LinearHeads`: a network that uses it, and a twin with `nn.Linear` and a fork."""

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from balancers import Fork, GradNorm, LinearHeads

TASKS, WIDTH, OUTPUTS = 3, 4, 2
NAMES = ["depth", "normals", "edges"]
READERS: WeakKeyDictionary[nn.Module, GradNorm] = WeakKeyDictionary()
"""Balancers that read a network's fork as long as the network lives."""


class Separate(nn.Module):
    """A network ``(..., 5)`` to ``(..., T, 2)`` with one module per head. ``trunk[2]`` is the last shared layer."""

    def __init__(self, *, bias: bool = True, last: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, WIDTH), last or nn.Tanh())
        self.fork = Fork(TASKS)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, OUTPUTS, bias) for _ in range(TASKS))
        self.double()

    def outputs(self, z: Tensor) -> Tensor:
        return torch.stack([head(each) for head, each in zip(self.heads, self.fork(z), strict=True)], -2)

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs(self.trunk(x))

    def parts(self) -> list[Tensor | None]:
        """Return the gradients of the trunk's parameters, and the stacked ones of the heads' weights and biases."""
        trunk = [parameter.grad for parameter in self.trunk.parameters()]
        return [*trunk, stacked([head.weight for head in self.heads]), stacked([head.bias for head in self.heads])]


class Batched(nn.Module):
    """The same network with `LinearHeads`."""

    def __init__(self, *, bias: bool = True, last: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, WIDTH), last or nn.Tanh())
        self.heads = LinearHeads(TASKS, WIDTH, OUTPUTS, bias)
        self.double()

    @property
    def fork(self) -> Fork:
        return self.heads.fork

    def outputs(self, z: Tensor) -> Tensor:
        return self.heads(z)

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs(self.trunk(x))

    def parts(self) -> list[Tensor | None]:
        bias = self.heads.bias
        trunk = [parameter.grad for parameter in self.trunk.parameters()]
        return [*trunk, self.heads.weight.grad, None if bias is None else bias.grad]


Net = Separate | Batched


def stacked(parameters: Sequence[nn.Parameter | None]) -> Tensor | None:
    gradients = [None if parameter is None else parameter.grad for parameter in parameters]
    return None if gradients[0] is None else torch.stack(gradients)


def build(make: Callable[..., Net], **options: object) -> Net:
    torch.manual_seed(1)
    return make(**options)


def twins(recording: bool = True, **options: object) -> tuple[Batched, Separate]:
    """Return the same network in both forms. If ``recording``, a balancer reads the first one's fork."""
    batched, separate = build(Batched, **options), build(Separate, **options)
    if recording:
        READERS[batched] = GradNorm(batched.fork)
    assert batched.fork.reading.recording == recording
    return batched, separate


def inputs(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def losses_of(outputs: Tensor) -> Tensor:
    """Return the squared errors, ``(T,)``, whose scales differ between tasks."""
    targets = torch.arange(1.0, TASKS + 1, dtype=outputs.dtype)[:, None]
    errors = (outputs - targets).square().movedim(-2, 0).flatten(1)
    return errors.mean(1) * torch.tensor([1.0, 1.3, 0.8], dtype=outputs.dtype)


def wrt_of(net: Net, wrt: str) -> dict[str, object]:
    """Return the arguments that tell `GradNorm` where to measure gradients."""
    layer = net.trunk[2]
    return {
        "features": {"fork": net.fork},
        "layer": {"fork": net.fork, "wrt": layer},
        "weight": {"fork": net.fork, "wrt": layer.weight},
        "trunk": {"fork": net.fork, "wrt": net.trunk},
        "parameters": {"fork": None, "wrt": layer.parameters(), "tasks": TASKS},
    }[wrt]
