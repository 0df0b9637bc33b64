"""The ray caster agrees with a plain float64 one that tries every face and ball by itself; rooms are as described."""

from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch

from tasks.dense.images import Images
from tasks.scenes import render as ray_caster
from tasks.scenes.render import render
from tasks.scenes.rooms import BOXES, CLASSES, SPHERES, Rooms, random_rooms

SIZE = (48, 64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def rooms() -> Rooms:
    return random_rooms(120, seeded(7))


@pytest.fixture(scope="module")
def images(rooms) -> Images:
    return render(rooms, SIZE)


# An independent ray caster, which intersects each rectangle and each ball by itself


@dataclass
class Surface:
    """A piece of surface: its row, and for P rays the distances ``(P,)`` and unit normals ``(P, 3)`` where they hit."""

    row: int
    distance: np.ndarray
    normal: np.ndarray


def rectangle(row, centre, normal, side, other, origin, rays) -> Surface:
    """Intersect a rectangle about ``centre`` with half sides ``side`` and ``other``, visible from its normal's side."""
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = (centre - origin) @ normal / (rays @ normal)
        at = origin + distance[:, None] * rays - centre
        inside = (abs(at @ side) <= side @ side) & (abs(at @ other) <= other @ other)
    hit = inside & (rays @ normal < 0) & (distance > 0)
    return Surface(row, np.where(hit, distance, np.inf), np.broadcast_to(normal, rays.shape))


def faces(row, centre, half, turn, origin, rays, inwards=False) -> list[Surface]:
    cos, sin = turn
    axes = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    found = []
    for k in range(3):
        for sign in (-1, 1):
            normal = sign * axes[k]
            side, other = (half[j] * axes[j] for j in range(3) if j != k)
            which = row if not inwards else (2, 2, {-1: 0, 1: 1}[sign])[k]
            facing = -normal if inwards else normal
            found.append(rectangle(which, centre + half[k] * normal, facing, side, other, origin, rays))
    return found


def ball(row, centre, radius, origin, rays) -> Surface:
    """Intersect a ball: the smaller root of ``|start + distance ray|^2 = radius^2``."""
    start = origin - centre
    along = rays @ start
    with np.errstate(invalid="ignore"):
        distance = -along - np.sqrt(along**2 - start @ start + radius**2)
        return Surface(row, np.where(distance > 0, distance, np.inf), (start + distance[:, None] * rays) / radius)


def things(scene, origin, rays) -> list[Surface]:
    found = []
    for row in BOXES:
        found += faces(row, scene["centre"][row], scene["half"][row], scene["turn"][row], origin, rays)
    for row in SPHERES:
        found.append(ball(row, scene["centre"][row], scene["half"][row][0], origin, rays))
    return found


def cast(scene, size, shift=(0.0, 0.0)):
    """Return distance along the axis, row, piece, world normal and point at which each pixel's ray hits.

    All pixels are in one dimension. Rays go through the pixels' centres, ``shift`` pixels to the right and down.
    """
    height, width = size
    columns, rows = np.meshgrid(np.arange(width) + 0.5 + shift[0], np.arange(height) + 0.5 + shift[1])
    focal = width / 2 / 0.8
    seen = np.stack([(columns - width / 2) / focal, (rows - height / 2) / focal, np.ones(size)], -1).reshape(-1, 3)
    rays = seen @ scene["axes"] / np.linalg.norm(seen, axis=1, keepdims=True)
    room = faces(2, scene["centre"][0], scene["half"][0], (1.0, 0.0), scene["eye"], rays, inwards=True)
    pieces = room + things(scene, scene["eye"], rays)
    distances = np.stack([piece.distance for piece in pieces])
    first = distances.argmin(0)
    pixels = np.arange(len(rays))
    distance = distances[first, pixels]
    normal = np.stack([piece.normal for piece in pieces])[first, pixels]
    row = np.array([piece.row for piece in pieces])[first]
    return distance * (rays @ scene["axes"][2]), row, first, normal, scene["eye"] + distance[:, None] * rays


def scene_of(rooms: Rooms, i: int) -> dict[str, np.ndarray]:
    return {field.name: getattr(rooms, field.name)[i].double().numpy() for field in fields(rooms)}


def clear_of_edges(scene, size, piece, shift=0.01) -> np.ndarray:
    """Return a mask of the pixels whose ray hits the same piece when it moves by a hundredth of a pixel."""
    around = [(shift, 0), (-shift, 0), (0, shift), (0, -shift)]
    return np.all([cast(scene, size, move)[2] == piece for move in around], axis=0)


def label_of(row: np.ndarray) -> np.ndarray:
    kinds = [(BOXES, "box"), (SPHERES, "sphere")]
    of_row = [CLASSES.index(kind) for kind in ("floor", "ceiling", "wall")]
    return np.array(of_row + [CLASSES.index(kind) for rows, kind in kinds for _ in rows])[row]


@pytest.mark.parametrize(("size", "seed"), [((48, 64), 11), ((31, 45), 12)])
@pytest.mark.slow
def test_class_depth_and_normal_agree_with_a_plain_ray_caster(size, seed):
    rooms = random_rooms(16, seeded(seed))
    images = render(rooms, size)
    clear_pixels = []
    for i in range(len(rooms)):
        scene = scene_of(rooms, i)
        depth, row, piece, normal, _ = cast(scene, size)
        clear = clear_of_edges(scene, size, piece)
        clear_pixels.append(clear.mean())
        np.testing.assert_array_equal(images.label[i].flatten()[clear], label_of(row)[clear])
        np.testing.assert_allclose(images.depth[i].flatten()[clear], depth[clear], rtol=1e-4)
        seen = normal @ scene["axes"].T
        np.testing.assert_allclose(images.normal[i].flatten(1).T[clear], seen[clear], atol=1e-3)
    assert np.mean(clear_pixels) > 0.99


@pytest.mark.slow
def test_colours_are_paint_under_two_lamps_and_their_shadows():
    rooms = random_rooms(24, seeded(13))
    images = render(rooms, SIZE)
    wrong, shadowed = [], []
    for i in range(len(rooms)):
        scene = scene_of(rooms, i)
        _, row, piece, normal, point = cast(scene, SIZE)
        centre, (cos, sin) = scene["centre"][row], scene["turn"][row].T
        x, y, z = (point - centre).T
        own = np.stack([cos * x + sin * y, cos * y - sin * x, z], 1)
        period = (scene["frequency"][row] * own).sum(1) + scene["phase"][row]
        share = np.clip(np.abs(4 * (period % 1) - 2) - 0.5, 0, 1)[:, None]
        paint = (1 - share) * scene["paints"][row, 0] + share * scene["paints"][row, 1]

        light = np.tile(scene["ambient"], (len(row), 1))
        for lamp, power in zip(scene["lamps"], scene["power"], strict=True):
            way = lamp - point
            distance = np.linalg.norm(way, axis=1)
            cosine = np.clip((way * normal).sum(1) / distance, 0, None)
            from_lamp = np.stack([thing.distance for thing in things(scene, lamp, -way / distance[:, None])]).min(0)
            free = from_lamp > distance - 0.003
            light += np.where(free, cosine / distance**2, 0)[:, None] * power
            shadowed.append((~free & (cosine > 0)).mean())
        expected = np.sqrt(np.clip(paint * light, 0, 1))
        clear = clear_of_edges(scene, SIZE, piece)
        wrong.append((abs(images.image[i].flatten(1).T.numpy() - expected).max(1) > 2e-3)[clear].mean())
    assert np.mean(wrong) < 1e-4  # some pixels may lie on a shadow's edge
    assert np.mean(shadowed) > 0.02


# Properties of every pixel


def test_shapes_and_types(images):
    shapes = {"image": (120, 3, *SIZE), "label": (120, *SIZE), "depth": (120, 1, *SIZE), "normal": (120, 3, *SIZE)}
    for name, shape in shapes.items():
        part = getattr(images, name)
        assert part.shape == shape
        assert part.dtype == (torch.int64 if name == "label" else torch.float32)


def test_values_are_in_range(images):
    assert images.image.min() >= 0
    assert images.image.max() <= 1
    assert images.depth.min() > 0.1
    assert images.depth.max() < 2 * np.sqrt(3**2 + 3**2 + 1.5**2)
    torch.testing.assert_close(images.normal.norm(dim=1), torch.ones(120, *SIZE), rtol=0, atol=1e-5)


def test_normals_face_the_camera(images):
    columns, rows = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(48) - 23.5, indexing="xy")
    rays = torch.stack([columns, rows, torch.full(SIZE, 32 / 0.8)])
    assert ((images.normal * rays).sum(1) < 1e-3).all()


def test_every_class_is_in_many_scenes_and_no_scene_shows_a_single_surface(images):
    present = torch.stack([(images.label == kind).flatten(1).any(1) for kind in range(len(CLASSES))])
    assert (present.float().mean(1) > 0.5).all()
    assert (present.sum(0) >= 2).all()
    shares = images.label.flatten().bincount(minlength=len(CLASSES)) / images.label.numel()
    assert shares.min() > 0.05
    assert shares.max() < 0.6


def test_images_are_neither_dark_nor_burnt_out(images):
    means = images.image.flatten(1).mean(1)
    assert 0.35 < means.mean() < 0.6
    assert (images.image == 1).float().mean() < 0.05


# The rooms


def test_things_stand_apart_on_the_floor_below_the_lamps_and_away_from_the_camera(rooms):
    for i in range(len(rooms)):
        scene = scene_of(rooms, i)
        centre, half, room = scene["centre"][3:], scene["half"][3:], scene["half"][0]
        np.testing.assert_allclose(centre[:, 2], half[:, 2])
        is_box = np.arange(3, 10) < SPHERES.start
        reach = np.where(is_box, np.hypot(half[:, 0], half[:, 1]), half[:, 0])
        assert (abs(centre[:, :2]) + reach[:, None] < room[:2] + 1e-5).all()
        assert (2 * half[:, 2] < scene["lamps"][:, None, 2]).all()
        assert (abs(scene["lamps"][:, :2]) < room[:2]).all()
        assert (scene["lamps"][:, 2] < 2 * room[2]).all()
        assert (abs(scene["eye"][:2]) < room[:2]).all()
        cells = np.round(centre[:, :2] / (2 * room[:2] / 3))
        assert len({tuple(cell) for cell in cells}) == 7
        assert (abs(centre[:, :2] - cells * 2 * room[:2] / 3) + reach[:, None] <= room[:2] / 3 + 1e-5).all()
        assert tuple(np.round(scene["eye"][:2] / (2 * room[:2] / 3))) not in {tuple(cell) for cell in cells}


def test_the_cameras_axes_are_a_right_handed_frame_about_upright(rooms):
    axes = rooms.axes
    torch.testing.assert_close(axes @ axes.mT, torch.eye(3).expand(120, 3, 3), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.linalg.det(axes), torch.ones(120))
    assert (axes[:, 1, 2] < -0.5).all()  # the camera's y axis points down
    assert (axes[:, 0, 2].abs() < 0.1).all()  # the camera hardly rolls


def test_paint_and_texture_say_nothing_of_the_class():
    many = random_rooms(4000, seeded(3))
    for values in (many.paints.flatten(2), many.frequency, many.phase[..., None]):
        mean, std = values.mean(0), values.std(0)
        np.testing.assert_allclose(mean, mean.mean(0).expand_as(mean), atol=0.06 * float(std.mean()))
        np.testing.assert_allclose(std, std.mean(0).expand_as(std), rtol=0.06)


def test_the_same_seed_gives_the_same_bits(rooms, images):
    again = random_rooms(120, seeded(7))
    for field in fields(Rooms):
        assert torch.equal(getattr(rooms, field.name), getattr(again, field.name))
    for ours, theirs in zip(images, render(again, SIZE), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(rooms.eye, random_rooms(120, seeded(8)).eye)


def test_the_first_scenes_are_the_same_however_many_follow(rooms):
    fewer = random_rooms(37, seeded(7))
    for field in fields(Rooms):
        assert torch.equal(getattr(rooms, field.name)[:37], getattr(fewer, field.name))


@pytest.mark.parametrize("size", [(48, 64), (7, 9), (1, 1)])
def test_a_scene_looks_the_same_in_any_batch(rooms, size, monkeypatch):
    some = rooms[:21]
    together = render(some, size)
    alone = [render(some[i : i + 1], size) for i in range(21)]
    monkeypatch.setattr(ray_caster, "AT_ONCE", 5 * size[0] * size[1])
    in_fives = render(some, size)
    for part, five, ones in zip(together, in_fives, zip(*alone, strict=True), strict=True):
        assert torch.equal(part, five)
        assert torch.equal(part, torch.cat(ones))


def test_nothing_is_drawn_from_the_global_generator():
    before = torch.get_rng_state()
    render(random_rooms(2, seeded(1)), (6, 8))
    assert torch.equal(torch.get_rng_state(), before)
