"""Balance the two losses of a detector from transformers, YOLOS, whose code has no fork and stays as it is.

`Fork.attach` hooks the heads: each gets its own alias of the features that it is called with, as if a fork stood in the
model's code. Both of this model's heads must be called with the same tensors, which its `forward` does:

    python examples/attached_fork.py
"""

import torch
from torch import Tensor
from transformers import YolosConfig, YolosForObjectDetection

from balancers import Fork, GradNorm

SIDE = 32  # pixels


def make() -> YolosForObjectDetection:
    """Return a small detector of two classes, with random parameters."""
    config = YolosConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=[SIDE, SIDE],
        patch_size=8,
        num_detection_tokens=4,
        num_labels=2,
    )
    return YolosForObjectDetection(config)


def batch(count: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Return noise with a bright square in each image, of one colour for each class, and where it lies."""
    images, labels = 0.3 * torch.rand(count, 3, SIDE, SIDE), []
    for image in images:
        kind = int(torch.randint(2, ()))
        (left, top), side = torch.randint(SIDE // 2, (2,)).tolist(), int(torch.randint(6, 16, ()))
        image[kind, top : top + side, left : left + side] = 1.0
        box = torch.tensor([[left + side / 2, top + side / 2, side, side]]) / SIDE  # centre and size
        labels.append({"class_labels": torch.tensor([kind]), "boxes": box})
    return images, labels


def losses_of(model: YolosForObjectDetection, images: Tensor, labels: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the loss of each head; the model itself would return their sum."""
    found = model(images, labels=labels).loss_dict
    return {"class": found["loss_ce"], "box": 5 * found["loss_bbox"] + 2 * found["loss_giou"]}


def main(steps: int = 60) -> list[dict[str, float]]:
    """Return what the balancer logs in each step."""
    torch.manual_seed(0)
    model = make()
    fork = Fork.attach([model.class_labels_classifier, model.bbox_predictor])
    balancer = GradNorm(fork, wrt=model.vit.layernorm, tasks=["class", "box"], alpha=0.12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    history = []
    for step in range(steps):
        losses = losses_of(model, *batch(16))
        optimizer.zero_grad()
        balancer(losses).backward()
        optimizer.step()
        history.append(balancer.scalars())
        if step in (0, steps - 1):
            print(f"step {step}:", {name: round(value, 3) for name, value in history[-1].items()})
    return history


if __name__ == "__main__":
    main()
