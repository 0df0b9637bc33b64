"""Random rooms with things in them, as tensors: the surfaces, the lamps and the camera of each scene.

A room is a box seen from inside. The origin of the world coordinates is the middle of the room's floor, z points up,
and lengths are in metres. The floor is divided into three by three cells. The camera stands in a cell at one side and
looks across the room. Seven of the other eight cells contain one thing each, on the floor: four boxes, turned about the
vertical axis, and three spheres. A thing stays within its cell, so no two overlap and none contains the camera. The
lamps hang above all things, so no thing contains a lamp either.

The colours and the texture of all surfaces come from the same distribution, so they do not tell a surface's class.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

CLASSES = ("floor", "ceiling", "wall", "box", "sphere")
"""Names of the classes, in the order of their labels."""

FLOOR, CEILING, WALL = range(3)
BOXES, SPHERES = range(3, 7), range(7, 10)
"""Rows of the table of a scene's surfaces: first the room's three surfaces, then boxes, then spheres."""
CLASS_OF_ROW = (0, 1, 2, *[3] * len(BOXES), *[4] * len(SPHERES))
"""Label of the class of each row."""
ROWS = len(CLASS_OF_ROW)
THINGS = ROWS - 3
LAMPS = 2
"""Number of lamps in a scene."""


@dataclass(frozen=True)
class Rooms:
    """N scenes with R = 10 surfaces and L = 2 lamps each. All tensors are float32, on the CPU."""

    eye: Tensor
    """Position of the camera, shape ``(N, 3)``."""
    axes: Tensor
    """The camera's right, down and forward directions, orthogonal unit vectors, shape ``(N, 3, 3)``."""
    centre: Tensor
    """Middle of each surface's solid, shape ``(N, R, 3)``. The solid of the first three surfaces is the room."""
    half: Tensor
    """Half of the solid's extent along each of its own axes, shape ``(N, R, 3)``. Its z axis is that of the world."""
    turn: Tensor
    """Cosine and sine of the angle about z from the world's x axis to the solid's, shape ``(N, R, 2)``."""
    paints: Tensor
    """The two colours of a surface's stripes, as reflected shares of red, green and blue, shape ``(N, R, 2, 3)``."""
    frequency: Tensor
    """Periods of the stripes per metre, along each of the solid's axes, shape ``(N, R, 3)``."""
    phase: Tensor
    """Phase of the stripes at the solid's middle, in periods, shape ``(N, R)``."""
    lamps: Tensor
    """Positions of the lamps, which are points, shape ``(N, L, 3)``."""
    power: Tensor
    """Red, green and blue light that a white surface reflects when it faces a lamp at one metre, ``(N, L, 3)``."""
    ambient: Tensor
    """Red, green and blue light that a white surface reflects at any place, shape ``(N, 3)``."""

    def __len__(self) -> int:
        return len(self.eye)

    def __getitem__(self, chosen: slice) -> "Rooms":
        return Rooms(*(getattr(self, field.name)[chosen] for field in fields(self)))


class _Draws:
    """A supply of uniform random numbers: one row per scene. Each draw takes the next columns."""

    COLUMNS = 256

    def __init__(self, num_scenes: int, generator: Generator) -> None:
        self.left = torch.rand(num_scenes, self.COLUMNS, generator=generator)

    def __call__(self, low: float, high: float, *shape: int) -> Tensor:
        """Return numbers from ``low`` to ``high``, shape ``(N, *shape)``."""
        taken, self.left = self.left.tensor_split([torch.Size(shape).numel()], 1)
        return low + (high - low) * taken.reshape(-1, *shape)

    def choice(self, options: int, *shape: int) -> Tensor:
        """Return whole numbers from 0 to ``options - 1``, shape ``(N, *shape)``."""
        return self(0, options, *shape).long().clamp_max(options - 1)


def random_rooms(num_scenes: int, generator: Generator) -> Rooms:
    """Draw scenes from ``generator``. For a given seed, the first n scenes do not depend on ``num_scenes``."""
    uniform = _Draws(num_scenes, generator)
    room = torch.cat([uniform(2, 3, 2), uniform(1.25, 1.5, 1)], 1)  # half its width, depth and height
    cell = room[:, :2] / 3  # half of a cell's width and depth
    radius = cell.amin(1)[:, None, None]

    column = uniform.choice(3, 1)
    standpoint = 2 * torch.cat([column - 1, torch.full_like(column, -1)], 1) + uniform(-0.7, 0.7, 2)
    eye = torch.cat([standpoint * cell, uniform(1.4, 1.7, 1)], 1)
    target = torch.cat([uniform(-1, 1, 2) * cell, uniform(0.9, 1.5, 1)], 1)
    upward = torch.cat([uniform(-0.05, 0.05, 2), torch.ones(num_scenes, 1)], 1)
    forward = _unit(target - eye)
    right = _unit(_cross(forward, upward))

    # Cell (x, y) has index x + 3 y, and the camera's has y = 0. The 2 sorts the camera's cell last, so that no thing is
    # put there.
    camera_last = uniform(0, 1, 9).scatter(1, column, 2.0)
    cells = camera_last.argsort(1)[:, :THINGS]
    middles = 2 * (torch.stack([cells % 3, cells // 3], 2) - 1) * cell[:, None]
    sides = uniform(0.25, 0.7, len(BOXES), 2) * radius
    balls = (uniform(0.35, 0.9, len(SPHERES), 1) * radius).clamp_max(0.5)
    things = torch.cat([torch.cat([sides, uniform(0.15, 0.55, len(BOXES), 1)], 2), balls.expand(-1, -1, 3)], 1)
    reach = torch.cat([_length(sides), balls], 1)
    standing = torch.cat([middles + uniform(-1, 1, THINGS, 2) * (cell[:, None] - reach), things[..., 2:]], 2)
    turn = _unit(uniform(-1, 1, THINGS, 2))

    middle = torch.cat([torch.zeros_like(cell), room[:, 2:]], 1)
    brightness = uniform(0.3, 1, ROWS, 1, 1)
    along = one_hot(uniform.choice(3, ROWS), 3)
    hanging = torch.cat([uniform(-0.5, 0.5, LAMPS, 2), uniform(0.65, 0.9, LAMPS, 1)], 2)
    return Rooms(
        eye=eye,
        axes=torch.stack([right, _cross(forward, right), forward], 1),
        centre=torch.cat([_thrice(middle), standing], 1),
        half=torch.cat([_thrice(room), things], 1),
        turn=torch.cat([_thrice(torch.tensor([1.0, 0.0]).expand(num_scenes, 2)), turn], 1),
        paints=brightness * uniform(0.5, 1, ROWS, 1, 3) * uniform(0.8, 1, ROWS, 2, 3),
        frequency=along * uniform(0.5, 3, ROWS, 1),
        phase=uniform(0, 1, ROWS),
        lamps=hanging * room[:, None] + middle[:, None],
        power=uniform(1, 4, LAMPS, 1) * uniform(0.7, 1, LAMPS, 3),
        ambient=uniform(0.05, 0.2, 1) * uniform(0.8, 1, 3),
    )


def _thrice(values: Tensor) -> Tensor:
    """Repeat the room's values, shape ``(N, K)``, for its three surfaces: shape ``(N, 3, K)``."""
    return values[:, None].expand(-1, 3, -1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """Return the cross product over the last dimension."""
    (ax, ay, az), (bx, by, bz) = a.unbind(-1), b.unbind(-1)
    return torch.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], -1)


def _length(vectors: Tensor) -> Tensor:
    """Return the lengths, shape ``(..., 1)``, of vectors ``(..., K)``.

    The sum has a fixed order, so that a scene is the same to the bit in every batch.
    """
    parts: Sequence[Tensor] = vectors.unbind(-1)
    square = parts[0] * parts[0]
    for part in parts[1:]:
        square = square + part * part
    return square.sqrt()[..., None]


def _unit(vectors: Tensor) -> Tensor:
    """Scale vectors to unit length."""
    return vectors / _length(vectors)
