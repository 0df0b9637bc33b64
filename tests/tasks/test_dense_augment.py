"""The augmentation of the multi-task literature keeps sizes and changes targets as enlarging the scene requires."""

import pytest
import torch
from torch import Tensor

from tasks.dense.augment import SCALES, augment, mirror
from tasks.dense.images import Images


def wall(height: int = 24, width: int = 36) -> Images:
    """Return a slanted wall whose image is a smooth function of the position; labels tell where a pixel was."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    normal = torch.tensor([0.6, 0.0, 0.8])[:, None, None].expand(3, height, width).clone()
    normal[:, :6] = 0
    depth = 1 + x + y
    depth[:, :5] = 0
    label = (torch.arange(height)[:, None] * width + torch.arange(width)).masked_fill(x > 0.8, -1)
    return Images(torch.stack([x, y, x * 0])[None], label[None], depth[None, None], normal[None])


def drawn(images: Images, seed: int, *, inverse_depth: bool = False) -> tuple[Images, float, bool]:
    """Return the augmented images, their scale and whether they were mirrored, as seen in the image and the normals."""
    changed = augment(images, torch.Generator().manual_seed(seed), inverse_depth=inverse_depth)
    rows = changed.image[0, 1, :, 0]
    span = float(rows[-1] - rows[0])
    scale = min(SCALES, key=lambda s: abs(span - (int(24 / s) - 1) / 23))
    return changed, scale, bool(changed.normal[0, 0].min() < 0)


def test_every_scale_place_and_side_comes_up():
    seen = [drawn(wall(), seed) for seed in range(200)]
    kinds = [(scale, mirrored) for _, scale, mirrored in seen]
    for scale in SCALES:
        for mirrored in (False, True):
            assert 15 < kinds.count((scale, mirrored)) < 55  # 33 expected
    first_rows = {float(changed.image[0, 1, 0, 0]) for changed, scale, _ in seen if scale == 1.5}
    assert len(first_rows) == 24 - 16 + 1


@pytest.mark.parametrize("seed", range(12))
def test_targets_move_with_the_image(seed):
    images = wall()
    changed, scale, mirrored = drawn(images, seed)
    for ours, theirs in zip(changed, images, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
    if mirrored:
        changed = mirror(changed)

    known = changed.label[0] >= 0
    rows, columns = changed.label[0][known] // 36, changed.label[0][known] % 36
    pixel = 1.01 / torch.tensor([35, 23])
    there = changed.image[0, :2].movedim(0, -1)[known]
    assert ((there - torch.stack([columns / 35, rows / 23], -1)).abs() < pixel).all()

    depth = changed.depth[0, 0][known]
    seen = images.depth[0, 0].flatten()[changed.label[0][known]]
    torch.testing.assert_close(depth, seen / scale)


@pytest.mark.parametrize("seed", range(6))
def test_inverse_depth_grows_as_things_come_nearer(seed):
    images = wall()
    depth, scale, _ = drawn(images, seed)
    inverse, _, _ = drawn(images, seed, inverse_depth=True)
    torch.testing.assert_close(inverse.depth, depth.depth * scale**2)
    assert torch.equal(inverse.image, depth.image)


@pytest.mark.parametrize("seed", range(12))
def test_normals_stay_unit_vectors_or_unknown(seed):
    changed, _, mirrored = drawn(wall(), seed)
    normal = changed.normal[0].movedim(0, -1)
    known = (normal != 0).any(-1)
    expected = torch.tensor([-0.6 if mirrored else 0.6, 0, 0.8])
    torch.testing.assert_close(normal[known], expected.expand(int(known.sum()), 3))
    assert known.any()


def test_mirroring_twice_changes_nothing():
    images = wall()
    for ours, theirs in zip(mirror(mirror(images)), images, strict=True):
        assert torch.equal(ours, theirs)
    mirrored = mirror(images)
    assert torch.equal(mirrored.label, images.label.flip(-1))
    assert torch.equal(mirrored.normal[:, 0], -images.normal[:, 0].flip(-1))
    assert torch.equal(mirrored.normal[:, 1:], images.normal[:, 1:].flip(-1))


def test_a_mirrored_plane_has_the_normals_of_its_mirrored_depth():
    """Finite differences of the depth give the normals' signs, independently of the code under test."""

    def slope(depth: Tensor) -> Tensor:
        return depth[..., 10, 20] - depth[..., 10, 19]

    images = wall()
    mirrored = mirror(images)
    assert torch.sign(slope(mirrored.depth)) == -torch.sign(slope(images.depth))
    assert torch.sign(mirrored.normal[0, 0, 10, 20]) == -torch.sign(images.normal[0, 0, 10, 20])


def test_only_the_targets_that_there_are():
    images = Images(wall().image, wall().label)
    changed = augment(images, torch.Generator().manual_seed(3), inverse_depth=False)
    assert changed.depth is None
    assert changed.normal is None


def test_the_same_seed_gives_the_same_image():
    for seed in range(5):
        for ours, theirs in zip(drawn(wall(), seed)[0], drawn(wall(), seed)[0], strict=True):
            assert torch.equal(ours, theirs)
