"""Train a small detector whose three losses share one head, so that the model has no place for a fork.

One convolution predicts class, box and objectness of each cell. The balancer gets `fork=None`, and as `wrt` the last
layer that serves all three losses. This takes one backward pass from there for each loss:

    python examples/shared_head.py
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from balancers import GradNorm

CLASSES, CELLS = 3, 4
"""The number of classes, and of cells along each side of an image of 16 by 16 pixels."""


class Detector(nn.Module):
    """A backbone and one head: for each cell, the logits of the classes, four numbers of the box, and an objectness."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 2, 2))
        self.shared = nn.Conv2d(16, 32, 3, padding=1)
        self.head = nn.Conv2d(32, CLASSES + 4 + 1, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        z = self.shared(self.backbone(images).relu()).relu()
        return list(self.head(z).split([CLASSES, 4, 1], dim=1))


def draw(number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images with one rectangle each, its class (how bright it is), its scaled box, and its cell."""
    images, kinds = 0.1 * torch.randn(number, 1, 16, 16), torch.randint(CLASSES, (number,))
    corners, sides = torch.randint(0, 11, (number, 2)), torch.randint(3, 6, (number, 2))
    for image, kind, (top, left), (height, width) in zip(images, kinds, corners, sides, strict=True):
        image[0, top : top + height, left : left + width] += 1 + kind
    rows, columns = ((corners + sides / 2) / (16 / CELLS)).long().unbind(1)
    boxes = torch.cat([(corners - 5) / 3.2, (sides - 4) / 0.8], 1)  # scaled, so that no loss outweighs the others
    return images, kinds, boxes, rows * CELLS + columns


def losses_of(model: Detector, number: int = 32) -> dict[str, Tensor]:
    """Return the losses of new images: class and box where the rectangle is, objectness in every cell."""
    images, kinds, boxes, cells = draw(number)
    logits, found, objectness = (output.flatten(2) for output in model(images))
    there = torch.arange(number), slice(None), cells
    return {
        "class": F.cross_entropy(logits[there], kinds),
        "box": F.smooth_l1_loss(found[there], boxes),
        "objectness": F.binary_cross_entropy_with_logits(objectness[:, 0], F.one_hot(cells, CELLS**2).float()),
    }


def main(steps: int = 80) -> list[dict[str, float]]:
    """Return what the balancer logs in each step."""
    torch.manual_seed(0)
    model = Detector()
    balancer = GradNorm(None, wrt=model.shared, tasks=["class", "box", "objectness"])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    history = []
    for step in range(steps):
        optimizer.zero_grad()
        balancer(losses_of(model)).backward()
        optimizer.step()
        history.append(balancer.scalars())
        if step in (0, steps - 1):
            weights = {name: round(value, 3) for name, value in history[-1].items() if name.startswith("weight/")}
            print(f"step {step}: {weights}")
    return history


if __name__ == "__main__":
    main()
