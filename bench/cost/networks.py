"""Two networks of realistic size with random data, whose steps take 50 to 200 ms on one core.

They show what a step costs in a network larger than the toy problem's few layers; there is nothing to learn in their
data. The last shared layer, ``wrt``, is the one that a user would name: the last convolution of the trunk, or the last
linear layer of the last transformer block. Between it and the fork there is nothing but normalisation and a skip
connection, which have next to no weights.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from balancers import Fork

from .subject import Subject

IMAGES, SIZE, CLASSES = 2, 128, 13
SEQUENCES, LENGTH, WIDTH, BLOCKS = 4, 64, 192, 12
TOPICS, TAGS, LABELS = 20, 17, 8


class ResidualBlock(nn.Module):
    """ResNet's basic block: two 3x3 convolutions and a skip, ``(N, inputs, H, W)`` to ``(N, outputs, H/s, W/s)``."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu()
        return torch.relu(self.norm2(self.conv2(y)) + self.skip(x))


class DenseNetwork(nn.Module):
    """A network with the trunk of ResNet-18 and two heads, which predict the class and the depth of every pixel.

    Source of the trunk: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, table 1.
    """

    def __init__(self) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        blocks = []
        for inputs, outputs, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
            blocks += [ResidualBlock(inputs, outputs, stride), ResidualBlock(outputs, outputs, 1)]
        self.trunk = nn.Sequential(*stem, nn.MaxPool2d(3, stride=2, padding=1), *blocks)
        self.last = blocks[-1].conv2
        self.fork = Fork(2)
        self.classes = nn.Sequential(
            nn.Conv2d(512, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, CLASSES, 1)
        )
        self.depth = nn.Sequential(nn.Conv2d(512, 64, 1), nn.ReLU(), nn.Conv2d(64, 1, 3, padding=1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return class scores ``(N, 13, H, W)`` and depths ``(N, H, W)`` for images ``(N, 3, H, W)``."""
        for_classes, for_depth = self.fork(self.trunk(images))
        outputs = [self.classes(for_classes), self.depth(for_depth)]
        scores, depth = (F.interpolate(output, images.shape[-2:], mode="bilinear") for output in outputs)
        return scores, depth.squeeze(1)


class SequenceNetwork(nn.Module):
    """A transformer of 12 blocks and four heads: each sequence's topic, score and labels, and a tag for each token."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [
            nn.TransformerEncoderLayer(WIDTH, nhead=3, dim_feedforward=4 * WIDTH, batch_first=True, norm_first=True)
            for _ in range(BLOCKS)
        ]
        self.trunk = nn.Sequential(*blocks, nn.LayerNorm(WIDTH))
        self.last = blocks[-1].linear2
        self.fork = Fork(4)
        self.topic = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, TOPICS))
        self.score = nn.Linear(WIDTH, 1)
        self.labels = nn.Linear(WIDTH, LABELS)
        self.tags = nn.Linear(WIDTH, TAGS)

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Return topics ``(N, 20)``, scores ``(N,)``, labels ``(N, 8)`` and tags ``(N, L, 17)``.

        Args:
            tokens: embedded tokens, ``(N, L, 192)``.
        """
        for_topic, for_score, for_labels, for_tags = self.fork(self.trunk(tokens))
        return (
            self.topic(for_topic[:, 0]),
            self.score(for_score.mean(1)).squeeze(1),
            self.labels(for_labels.mean(1)),
            self.tags(for_tags),
        )


def dense() -> Subject:
    """Return a `DenseNetwork` and two images of 128 x 128: cross-entropy of 13 classes, absolute error of the depth."""
    network = DenseNetwork()
    images = torch.randn(IMAGES, 3, SIZE, SIZE)
    classes, depth = torch.randint(CLASSES, (IMAGES, SIZE, SIZE)), torch.rand(IMAGES, SIZE, SIZE)

    def losses() -> dict[str, Tensor]:
        scores, predicted = network(images)
        return {"classes": F.cross_entropy(scores, classes), "depth": F.l1_loss(predicted, depth)}

    return Subject(network, losses, network.last)


def sequences() -> Subject:
    """Return a `SequenceNetwork` and four sequences of 64 embedded tokens.

    The losses are cross-entropy of topic and tags, squared error of the score, and binary cross-entropy of the labels.
    """
    network = SequenceNetwork()
    tokens = torch.randn(SEQUENCES, LENGTH, WIDTH)
    topics, scores = torch.randint(TOPICS, (SEQUENCES,)), torch.randn(SEQUENCES)
    labels, tags = torch.rand(SEQUENCES, LABELS).round(), torch.randint(TAGS, (SEQUENCES, LENGTH))

    def losses() -> dict[str, Tensor]:
        topic, score, label, tag = network(tokens)
        return {
            "topic": F.cross_entropy(topic, topics),
            "score": F.mse_loss(score, scores),
            "labels": F.binary_cross_entropy_with_logits(label, labels),
            "tags": F.cross_entropy(tag.flatten(0, 1), tags.flatten()),
        }

    return Subject(network, losses, network.last)
