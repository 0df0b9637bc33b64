"""Random rooms with things in them, as tensors: what there is to be seen, and from where.

A room is a box seen from inside. The origin of the world's coordinates is the middle of its floor, z points up, and
lengths are in metres. The floor is cut into three by three cells. The camera stands in a cell at one side and looks
across the room. Seven of the other eight cells hold a thing each, on the floor: four boxes, turned about the vertical,
and three spheres. A thing stays within its cell, so no two overlap, and none has the camera or one of the lamps, which
hang above them all, in it.

Whatever its class, a surface's colours and texture are drawn from one distribution: they say nothing of the class.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

CLASSES = ("floor", "ceiling", "wall", "box", "sphere")

FLOOR, CEILING, WALL = range(3)
BOXES, SPHERES = range(3, 7), range(7, 10)
"""A scene's surfaces are the rows of a table: the room's three, then the things, by kind."""
CLASS_OF_ROW = (0, 1, 2, *[3] * len(BOXES), *[4] * len(SPHERES))
ROWS = len(CLASS_OF_ROW)
THINGS = ROWS - 3
LAMPS = 2


@dataclass(frozen=True)
class Rooms:
    """N scenes, R = 10 surfaces and L = 2 lamps in each; float32, on the CPU."""

    eye: Tensor
    """``(N, 3)``: where the camera is."""
    axes: Tensor
    """``(N, 3, 3)``: the camera's right, down and forward, orthogonal unit vectors."""
    centre: Tensor
    """``(N, R, 3)``: the middle of a surface's solid, which for the first three is the room."""
    half: Tensor
    """``(N, R, 3)``: half of the solid's extent along each of its own axes. Its z is the world's."""
    turn: Tensor
    """``(N, R, 2)``: cosine and sine of the angle about z from the world's x to the solid's."""
    paints: Tensor
    """``(N, R, 2, 3)``: the two colours of a surface's stripes, as shares of red, green and blue sent back."""
    frequency: Tensor
    """``(N, R, 3)``: periods of the stripes a metre, along each of the solid's axes."""
    phase: Tensor
    """``(N, R)``: where in a period the solid's middle is."""
    lamps: Tensor
    """``(N, L, 3)``: where the lamps are, which are points."""
    power: Tensor
    """``(N, L, 3)``: what of a lamp's red, green and blue a white surface sends back, facing it from a metre away."""
    ambient: Tensor
    """``(N, 3)``: what a white surface sends back wherever it is."""

    def __len__(self) -> int:
        return len(self.eye)

    def __getitem__(self, chosen: slice) -> "Rooms":
        return Rooms(*(getattr(self, field.name)[chosen] for field in fields(self)))


class _Draws:
    """Uniform numbers, a row a scene, from which one draw after another takes its columns."""

    COLUMNS = 256

    def __init__(self, num_scenes: int, generator: Generator) -> None:
        self.left = torch.rand(num_scenes, self.COLUMNS, generator=generator)

    def __call__(self, low: float, high: float, *shape: int) -> Tensor:
        """``(N, *shape)``, from ``low`` to ``high``."""
        taken, self.left = self.left.tensor_split([torch.Size(shape).numel()], 1)
        return low + (high - low) * taken.reshape(-1, *shape)

    def choice(self, options: int, *shape: int) -> Tensor:
        """``(N, *shape)``: whole numbers from 0 to ``options - 1``."""
        return self(0, options, *shape).long().clamp_max(options - 1)


def random_rooms(num_scenes: int, generator: Generator) -> Rooms:
    """Scenes drawn from ``generator``; with one seed, the first n are the same however many follow."""
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

    camera_last = uniform(0, 1, 9).scatter(1, column, 2.0)  # cell x + 3 y; the camera's has y = 0
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
    """The room's ``(N, K)`` for each of its three surfaces: ``(N, 3, K)``."""
    return values[:, None].expand(-1, 3, -1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    (ax, ay, az), (bx, by, bz) = a.unbind(-1), b.unbind(-1)
    return torch.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], -1)


def _length(vectors: Tensor) -> Tensor:
    """Added up in order, so that a scene is the same to the bit in any batch: ``(..., K)`` to ``(..., 1)``."""
    parts: Sequence[Tensor] = vectors.unbind(-1)
    square = parts[0] * parts[0]
    for part in parts[1:]:
        square = square + part * part
    return square.sqrt()[..., None]


def _unit(vectors: Tensor) -> Tensor:
    return vectors / _length(vectors)
