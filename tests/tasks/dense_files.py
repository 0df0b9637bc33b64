"""Write small data sets in the layout of MTAN's, with images from which all targets can be learned."""

from pathlib import Path

import numpy as np


def write(
    root: Path,
    *,
    train: int = 12,
    val: int = 4,
    size: tuple[int, int] = (32, 64),
    classes: int = 13,
    labels: str = "label",
    normals: bool = True,
    farthest: float = 4.0,
) -> Path:
    """Write images of a floor (class 1) and a wall (class 0) with a box of another class; return ``root``.

    Images are numbered from 0 in both splits. Some targets are unknown: labels in the first two columns, depths in the
    first two rows, and normals in the last two rows.
    """
    random = np.random.default_rng(7)
    height, width = size
    y, x = np.mgrid[:height, :width]
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            horizon, left = random.integers(height // 4, height // 2), random.integers(0, width // 2)
            box = (x >= left) & (x < left + width // 4) & (y >= horizon - 4) & (y < horizon + height // 4)
            label = np.where(box, random.integers(2, classes), y >= horizon)
            depth = np.where(box, 0.6, np.where(y < horizon, 1.0, 1 - 0.7 * (y - horizon) / (height - horizon)))
            normal = np.array([[0, 0, 1], [0, 1, 0], [0.6, 0, 0.8]])[np.minimum(label, 2)]
            image = np.stack([label / classes, depth, label == 1], -1) + random.normal(0, 0.02, (*size, 3))
            label[:, :2], depth[:2], normal[-2:] = -1, 0, 0
            arrays = {"image": image.clip(0, 1), labels: label, "depth": farthest * depth[..., None]}
            if normals:
                arrays["normal"] = normal
            for kind, array in arrays.items():
                (root / split / kind).mkdir(parents=True, exist_ok=True)
                np.save(root / split / kind / f"{number}.npy", array.astype(np.float32))
    return root
