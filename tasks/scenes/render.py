"""A ray caster for the rooms of ``rooms.py``. It casts one ray per pixel, and renders several scenes at once.

The camera is a pinhole with a horizontal field of view of 77 degrees. In its coordinates x points right, y down and z
forward, along the optical axis. Depth is measured along that axis, as in NYUv2, and not along the ray.

Every solid is convex, so a ray crosses it in one interval. For a box, the interval is the intersection of three slabs.
The ray enters the solid at the interval's start. Surfaces reflect light equally in all directions (Lambert). The light
comes from each lamp that no thing hides, and falls with the square of the distance; a constant ambient light is added.
Pictures have a gamma of 2.

Every operation is a product, quotient, sum, square root or selection of two numbers of the same pixel. IEEE 754 defines
how each is rounded. So a scene looks the same to the bit, whichever batch it is rendered in.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..dense.images import Images
from .rooms import BOXES, CEILING, CLASS_OF_ROW, FLOOR, ROWS, SPHERES, WALL, Rooms

SLOPE = 0.8
"""Distance of the picture's right edge from the optical axis, at a depth of 1."""
AT_ONCE = 100_000
"""Number of pixels that are rendered at a time, so that most tensors stay in a core's cache; at least one scene."""
REACHED = 0.999
"""Share of the way from a lamp to a surface beyond which no other thing is taken to block the light.

It is less than 1, so that rounding does not make a surface shade itself.
"""

Vectors = Sequence[Tensor]
"""One vector for each of P pixels of N scenes, as x, y and z, each of shape ``(N, P)`` or ``(N, 1)``."""
Span = tuple[Tensor, Tensor]
"""The distances at which a ray enters and leaves a solid, in lengths of the ray, each of shape ``(N, P)``.

If the first is not less than the second, the ray misses the solid.
"""


def render(rooms: Rooms, size: tuple[int, int]) -> Images:
    """Render pictures without noise, and the class, depth and normal that each pixel shows.

    Normals are unit vectors in camera coordinates, on the visible side of the surface.

    Args:
        rooms: the scenes.
        size: height and width of a picture.
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
    """Return image, label, depth and normal of all ``rooms``, with the shapes of `Images`."""
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
    """Return the rays from the camera through the middle of each pixel to a depth of 1, in world coordinates."""
    pixel = 2 * SLOPE / width
    across = (torch.arange(width) - (width - 1) / 2) * pixel
    downward = (torch.arange(height) - (height - 1) / 2) * pixel
    right, down, forward = (axis[:, :, None, None] for axis in rooms.axes.unbind(1))
    return (right * across + (down * downward[:, None] + forward)).flatten(2).unbind(1)


def _first_hits(rooms: Rooms, rays: Vectors) -> tuple[Tensor, Tensor]:
    """Return the distance of the first surface along each ray, in lengths of the ray, and that surface's row."""
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
    """Yield each thing's row and the distances at which rays enter it, in lengths of the ray; infinity for a miss.

    All rays of a scene begin at ``origin``, shape ``(N, 3)``, which lies outside all things.
    """
    x, y, z = rays
    per_z, per_square = 1 / z, 1 / _dot(rays, rays)
    cos, sin = rooms.turn[..., None].unbind(2)  # (N, R, 1), like the other tensors of rows below
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
    """Return the spans of rays between two parallel planes.

    Args:
        low: position of the first plane relative to the rays' origin.
        high: position of the second plane.
        per_step: 1 divided by the rays' component perpendicular to the planes.
    """
    first, second = low * per_step, high * per_step
    return torch.minimum(first, second), torch.maximum(first, second)


def _ball(middle: Vectors, radius: Tensor, rays: Vectors, per_square: Tensor) -> Span:
    """Return the spans of rays in a sphere.

    A ray's distance from the middle is computed at the ray's nearest point. The textbook's formula, a difference of
    squared distances from the origin, would lose digits.

    Args:
        middle: the sphere's middle relative to the rays' origin.
        radius: the sphere's radius.
        rays: the rays.
        per_square: 1 divided by the rays' squared length.
    """
    nearest = _dot(middle, rays) * per_square
    missed_by = [nearest * step - part for part, step in zip(middle, rays, strict=True)]
    half = ((radius * radius - _dot(missed_by, missed_by)) * per_square).clamp_min(0).sqrt()
    return nearest - half, nearest + half


def _entry(*spans: Span) -> Tensor:
    """Return the start of the intersection of ``spans``; infinity if there is none ahead of the origin."""
    start, end = spans[0]
    for begins, ends in spans[1:]:
        start, end = torch.maximum(start, begins), torch.minimum(end, ends)
    return torch.where(start.clamp_min(0) < end, start, torch.inf)


def _paint(rooms: Rooms, row: Tensor, own: Vectors) -> Vectors:
    """Return the colours at the points ``own``, given in their solids' coordinates: stripes with soft edges."""
    (phase,) = _of_row(rooms.phase[..., None], row)
    periods = _dot(_of_row(rooms.frequency, row), own) + phase
    share = ((periods - periods.floor() - 0.5).abs() * 4 - 0.5).clamp(0, 1)
    paints = _of_row(rooms.paints.flatten(2), row)
    return [first + share * (second - first) for first, second in zip(paints[:3], paints[3:], strict=True)]


def _normals(rooms: Rooms, row: Tensor, own: Vectors) -> Vectors:
    """Return the normals at the points ``own``; both are in their solids' coordinates.

    Normals point out of a thing, and into the room. If the solid's half extents are the units of length, a sphere's
    normal has the direction of the point, and a box's normal that of the point's largest coordinate.
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
    """Return the red, green and blue light that a white surface reflects at ``points``."""
    light = _parts(rooms.ambient)
    for lamp, power in zip(rooms.lamps.unbind(1), rooms.power.unbind(1), strict=True):
        rays = [point - start for point, start in zip(points, _parts(lamp), strict=True)]
        square = _dot(rays, rays)
        facing = -_dot(rays, normals) / (square * square.sqrt())  # cosine of the angle, divided by the squared distance
        reach = torch.ones_like(square)
        for _, entry in _entries(rooms, lamp, rays):
            reach = torch.minimum(reach, entry)
        facing = torch.where(reach > REACHED, facing.clamp_min(0), 0.0)
        light = [before + colour * facing for before, colour in zip(light, _parts(power), strict=True)]
    return light


def _of_row(values: Tensor, row: Tensor) -> Vectors:
    """Select the values of each pixel's row: from ``values`` ``(N, R, K)``, K tensors of shape ``(N, P)``."""
    first = ROWS * torch.arange(len(values))[:, None]
    return values.flatten(0, 1).T.contiguous().index_select(1, (first + row).flatten()).view(-1, *row.shape).unbind()


def _parts(vectors: Tensor) -> Vectors:
    """Split ``vectors``, shape ``(N, 3)``, into x, y and z, each of shape ``(N, 1)``."""
    return vectors[:, :, None].unbind(1)


def _dot(a: Vectors, b: Vectors) -> Tensor:
    """Return the dot products of two sets of vectors."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
