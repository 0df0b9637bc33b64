"""Make the networks on which whole steps of combining methods are timed: a trunk that T tasks share, and T heads.

The toy network is the regression problem's, with separate heads. In the other networks each task is to predict a few
random numbers from the trunk's features, by a linear head and squared error. So T can be any number, also behind the
trunks of the larger networks in `bench.cost.networks`, whose own heads are two and four.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import tasks
from balancers import Fork
from bench.cost import networks
from bench.cost.cases import SEED
from bench.cost.subject import MakeStep, Subject, of_problem
from bench.run.seeds import generator

BATCHES = 10
"""Number of different batches, which are trained on again and again."""
OUTPUTS = 8
"""Number of outputs of each linear head."""
TOY_BATCH = 100
WIDTH, LAYERS, ROWS = 512, 4, 64
"""Width and number of layers of the MLP, and its batch."""
CHANNELS = (3, 32, 64, 128, 256)
SIDE, IMAGES = 32, 16
"""Side of the convolutional network's images, and its batch."""


class Trunk(NamedTuple):
    """A trunk and its inputs.

    Attributes:
        module: the trunk, ``(batch, *inputs)`` to ``(batch, features)``.
        layer: its last layer.
        features: number of features.
        inputs: shape of one sample.
        batch: number of samples in a batch.
    """

    module: nn.Module
    layer: nn.Module
    features: int
    inputs: tuple[int, ...]
    batch: int


class TrunkNetwork(nn.Module):
    """A trunk, a fork and T linear heads."""

    def __init__(self, trunk: Trunk, num_tasks: int) -> None:
        super().__init__()
        self.trunk = trunk.module
        self.fork: nn.Module = Fork(num_tasks)
        self.heads = nn.ModuleList(nn.Linear(trunk.features, OUTPUTS) for _ in range(num_tasks))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return each head's outputs, ``(batch, OUTPUTS)``."""
        return [head(z) for head, z in zip(self.heads, self.fork(self.trunk(x)), strict=True)]


class TokenMean(nn.Module):
    """The mean over a sequence's tokens, ``(N, L, width)`` to ``(N, width)``."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(1)


def mlp() -> Trunk:
    """Return four linear layers, 512 wide, with ReLU."""
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]
    module = nn.Sequential(*(each for layer in layers for each in (layer, nn.ReLU())))
    return Trunk(module, layers[-1], WIDTH, (WIDTH,), ROWS)


def convolutions() -> Trunk:
    """Return four 3x3 convolutions of stride 2 with ReLU, from images of 32 x 32 to 256 channels of 2 x 2."""
    layers = [nn.Conv2d(*channels, 3, stride=2, padding=1) for channels in itertools.pairwise(CHANNELS)]
    module = nn.Sequential(*(each for layer in layers for each in (layer, nn.ReLU())), nn.Flatten())
    features = CHANNELS[-1] * (SIDE // 2 ** len(layers)) ** 2
    return Trunk(module, layers[-1], features, (CHANNELS[0], SIDE, SIDE), IMAGES)


def resnet() -> Trunk:
    """Return the trunk of ResNet-18 with its average pooling, and batches of two images of 128 x 128."""
    network = networks.DenseNetwork()
    module = nn.Sequential(network.trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    inputs = (3, networks.SIZE, networks.SIZE)
    return Trunk(module, network.last, network.last.out_channels, inputs, networks.IMAGES)


def transformer() -> Trunk:
    """Return twelve transformer blocks and the mean over tokens, and batches of four sequences of 64 tokens."""
    network = networks.SequenceNetwork()
    inputs = (networks.LENGTH, networks.WIDTH)
    return Trunk(nn.Sequential(network.trunk, TokenMean()), network.last, networks.WIDTH, inputs, networks.SEQUENCES)


def toy(num_tasks: int) -> MakeStep:
    """Return what makes the regression problem's network with separate heads; sigmas are geometric from 1 to 100."""
    sigmas = torch.logspace(0, 2, num_tasks, dtype=torch.float64).tolist()
    samples = BATCHES * TOY_BATCH
    problem = tasks.create("regression", sigmas=sigmas, heads="separate", train_samples=samples)
    batches = problem.batches(problem.data(generator(SEED, "data"), "cpu"), generator(SEED, "batches"), TOY_BATCH)
    return of_problem(problem, list(itertools.islice(batches, BATCHES)), torch.device("cpu"))


def with_heads(make_trunk: Callable[[], Trunk]) -> Callable[[int], MakeStep]:
    """Return a function from T to what makes the network with this trunk and T linear heads."""

    def of_tasks(num_tasks: int) -> MakeStep:
        def make_step() -> Subject:
            trunk = make_trunk()
            model = TrunkNetwork(trunk, num_tasks)
            inputs = torch.randn(BATCHES, trunk.batch, *trunk.inputs)
            targets = torch.randn(BATCHES, num_tasks, trunk.batch, OUTPUTS)
            batches = itertools.cycle(zip(inputs, targets, strict=True))

            def losses() -> list[Tensor]:
                x, of_batch = next(batches)
                return [mse_loss(output, target) for output, target in zip(model(x), of_batch, strict=True)]

            return Subject(model, losses, trunk.layer)

        return make_step

    return of_tasks


NETWORKS: Mapping[str, Callable[[int], MakeStep]] = {
    "toy": toy,
    "mlp": with_heads(mlp),
    "conv": with_heads(convolutions),
    "transformer": with_heads(transformer),
    "resnet-18": with_heads(resnet),
}
"""By name, a function from T to what makes the network; those with the shortest steps come first."""
