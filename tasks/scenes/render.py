"""A ray caster for the rooms of ``rooms.py``: a ray a pixel, all pixels of several scenes at once.

The camera is a pinhole that sees 77 degrees from left to right. In its coordinates x points right, y down and z
forward, along the optical axis. A depth is measured along that axis, as NYUv2 gives it, not along the ray.

Every solid is convex, so what a ray crosses of it is an interval, for a box the common part of three slabs. Where it
begins, the ray enters the solid. A surface reflects alike in all directions (Lambert): what comes from each lamp that
no thing hides, less with the square of its distance, and some light from everywhere. Pictures have a gamma of 2.

All that is computed is a product, quotient, sum, square root or choice of two numbers of the same pixel, which IEEE 754
rounds in one way. So a scene looks the same, to the bit, in whatever batch it is rendered.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..dense.images import Images
from .rooms import BOXES, CEILING, CLASS_OF_ROW, FLOOR, ROWS, SPHERES, WALL, Rooms

SLOPE = 0.8
"""How far the picture's edge is to the right of the optical axis at a depth of 1."""
AT_ONCE = 100_000
"""Pixels that are worked on at a time, so that most of it stays in a core's cache; at least one scene's."""
REACHED = 0.999
"""A lamp's light that gets this share of the way to a surface was stopped by nothing but that surface."""

Vectors = Sequence[Tensor]
"""x, y and z, each ``(N, P)`` or ``(N, 1)``: a vector for each of P pixels of N scenes."""
Span = tuple[Tensor, Tensor]
"""Where a ray enters and leaves something, in lengths of the ray, ``(N, P)`` each; it misses where that is no less."""


def render(rooms: Rooms, size: tuple[int, int]) -> Images:
    """Pictures of ``size``, height and width, without noise, and the class, depth and normal of what each pixel shows.

    A normal is a unit vector in camera coordinates on the side of the surface that is seen.
    """
    count, (height, width) = len(rooms), size
    label, depth = torch.empty(count, height, width, dtype=torch.int64), torch.empty(count, 1, height, width)
    image, normal = torch.empty(count, 3, height, width), torch.empty(count, 3, height, width)
    step = max(1, AT_ONCE // (height * width))
    for start in range(0, count, step):
        some = slice(start, start + step)
        image[some], label[some], depth[some], normal[some] = _render(rooms[some], height, width)
    return Images(image, label, depth, normal)


def _render(rooms: Rooms, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rays = _rays(rooms, height, width)
    depth, row = _first_hits(rooms, rays)
    points = [start + depth * step for start, step in zip(_parts(rooms.eye), rays, strict=True)]

    cos, sin = _of_row(rooms.turn, row)
    x, y, z = (point - middle for point, middle in zip(points, _of_row(rooms.centre, row), strict=True))
    own = [cos * x + sin * y, cos * y - sin * x, z]  # in the solid's coordinates
    paint = _paint(rooms, row, own)
    x, y, z = _normals(rooms, row, own)
    normals = [cos * x - sin * y, sin * x + cos * y, z]
    light = _light(rooms, points, normals)

    image = torch.stack([(part * falling).clamp_max(1).sqrt() for part, falling in zip(paint, light, strict=True)], 1)
    label = torch.tensor(CLASS_OF_ROW)[row]
    seen = torch.stack([_dot(normals, _parts(axis)) for axis in rooms.axes.unbind(1)], 1)
    shape = (len(rooms), -1, height, width)
    return image.view(shape), label.view(-1, height, width), depth.view(shape), seen.view(shape)


def _rays(rooms: Rooms, height: int, width: int) -> Vectors:
    """From the camera to a depth of 1, through the middle of each pixel, in the world's coordinates."""
    pixel = 2 * SLOPE / width
    across = (torch.arange(width) - (width - 1) / 2) * pixel
    downward = (torch.arange(height) - (height - 1) / 2) * pixel
    right, down, forward = (axis[:, :, None, None] for axis in rooms.axes.unbind(1))
    return (right * across + (down * downward[:, None] + forward)).flatten(2).unbind(1)


def _first_hits(rooms: Rooms, rays: Vectors) -> tuple[Tensor, Tensor]:
    """How far a ray goes from the camera to the first surface, in its own lengths, and that surface's row."""
    low, high = (_parts(rooms.centre[:, WALL] + sign * rooms.half[:, WALL] - rooms.eye) for sign in (-1, 1))
    (_, x), (_, y), (_, z) = (_slab(a, b, 1 / step) for a, b, step in zip(low, high, rays, strict=True))
    walls = torch.minimum(x, y)
    distance = torch.minimum(walls, z)
    row = torch.where(walls < z, WALL, torch.where(rays[2] > 0, CEILING, FLOOR))
    for thing, entry in _entries(rooms, rooms.eye, rays):
        row.masked_fill_(entry < distance, thing)
        distance = torch.minimum(distance, entry)
    return distance, row


def _entries(rooms: Rooms, origin: Tensor, rays: Vectors) -> Iterator[tuple[int, Tensor]]:
    """For each thing, its row and how far a ray goes, in its own lengths, until it enters it: infinity if never.

    All rays of a scene begin at ``origin``, ``(N, 3)``, which lies in no thing.
    """
    x, y, z = rays
    per_z, per_square = 1 / z, 1 / _dot(rays, rays)
    cos, sin = rooms.turn[..., None].unbind(2)  # (N, R, 1), as all that follows of the rows
    middle = (rooms.centre - origin[:, None])[..., None].unbind(2)
    half = rooms.half[..., None].unbind(2)
    turned = (cos * middle[0] + sin * middle[1], cos * middle[1] - sin * middle[0], middle[2])
    low, high = ([at + sign * side for at, side in zip(turned, half, strict=True)] for sign in (-1, 1))

    for row in BOXES:
        per_x = 1 / (cos[:, row] * x + sin[:, row] * y)
        per_y = 1 / (cos[:, row] * y - sin[:, row] * x)
        slabs = zip(low, high, (per_x, per_y, per_z), strict=True)
        yield row, _entry(*(_slab(a[:, row], b[:, row], per_step) for a, b, per_step in slabs))
    for row in SPHERES:
        yield row, _entry(_ball([part[:, row] for part in middle], half[0][:, row], rays, per_square))


def _slab(low: Tensor, high: Tensor, per_step: Tensor) -> Span:
    """The span between two planes, seen from the rays' origin; ``per_step`` is 1 / the rays' component across them."""
    one, other = low * per_step, high * per_step
    return torch.minimum(one, other), torch.maximum(one, other)


def _ball(middle: Vectors, radius: Tensor, rays: Vectors, per_square: Tensor) -> Span:
    """The span in a sphere whose ``middle`` is seen from the rays' origin; ``per_square`` is 1 / their squared length.

    How far a ray passes from the middle is measured where it is nearest. The difference of squared distances from the
    origin, the textbook's, would lose digits.
    """
    nearest = _dot(middle, rays) * per_square
    missed_by = [nearest * step - part for part, step in zip(middle, rays, strict=True)]
    half = ((radius * radius - _dot(missed_by, missed_by)) * per_square).clamp_min(0).sqrt()
    return nearest - half, nearest + half


def _entry(*spans: Span) -> Tensor:
    """Where the common part of ``spans`` begins; infinity where there is none ahead."""
    start, end = spans[0]
    for begins, ends in spans[1:]:
        start, end = torch.maximum(start, begins), torch.minimum(end, ends)
    return torch.where(start.clamp_min(0) < end, start, torch.inf)


def _paint(rooms: Rooms, row: Tensor, own: Vectors) -> Vectors:
    """The colour of the points ``own``, in their solids' coordinates: two paints in stripes with soft edges."""
    (phase,) = _of_row(rooms.phase[..., None], row)
    periods = _dot(_of_row(rooms.frequency, row), own) + phase
    share = ((periods - periods.floor() - 0.5).abs() * 4 - 0.5).clamp(0, 1)
    paints = _of_row(rooms.paints.flatten(2), row)
    return [one + share * (other - one) for one, other in zip(paints[:3], paints[3:], strict=True)]


def _normals(rooms: Rooms, row: Tensor, own: Vectors) -> Vectors:
    """Normals at the points ``own``, both in their solids' coordinates: out of a thing, into the room.

    With the solid's half extents as units of length, a sphere's normal is the point itself and a box's the point's
    largest coordinate.
    """
    inwards = torch.tensor([-1.0] * 3 + [1.0] * (ROWS - 3))[:, None]
    x, y, z = (part * scale for part, scale in zip(own, _of_row(inwards / rooms.half, row), strict=True))
    of_x, of_y, of_z = x.abs(), y.abs(), z.abs()
    largest = torch.maximum(torch.maximum(of_x, of_y), of_z)
    least = torch.where(row < SPHERES.start, largest, 0.0)
    x, y, z = (torch.where(size < least, 0.0, part) for part, size in ((x, of_x), (y, of_y), (z, of_z)))
    length = (x * x + y * y + z * z).sqrt()
    return [x / length, y / length, z / length]


def _light(rooms: Rooms, points: Vectors, normals: Vectors) -> Vectors:
    """The red, green and blue that a white surface sends back at ``points``."""
    light = _parts(rooms.ambient)
    for lamp, power in zip(rooms.lamps.unbind(1), rooms.power.unbind(1), strict=True):
        rays = [point - start for point, start in zip(points, _parts(lamp), strict=True)]
        square = _dot(rays, rays)
        facing = -_dot(rays, normals) / (square * square.sqrt())  # the angle's cosine over the squared distance
        reach = torch.ones_like(square)
        for _, entry in _entries(rooms, lamp, rays):
            reach = torch.minimum(reach, entry)
        facing = torch.where(reach > REACHED, facing.clamp_min(0), 0.0)
        light = [before + colour * facing for before, colour in zip(light, _parts(power), strict=True)]
    return light


def _of_row(values: Tensor, row: Tensor) -> Vectors:
    """Of ``values`` ``(N, R, K)`` those of each pixel's row: K times ``(N, P)``."""
    first = ROWS * torch.arange(len(values))[:, None]
    return values.flatten(0, 1).T.contiguous().index_select(1, (first + row).flatten()).view(-1, *row.shape).unbind()


def _parts(vectors: Tensor) -> Vectors:
    """``(N, 3)`` as x, y and z, each ``(N, 1)``."""
    return vectors[:, :, None].unbind(1)


def _dot(a: Vectors, b: Vectors) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
