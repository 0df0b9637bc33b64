"""A balancer's own random numbers: a function of its seed and of how many updates it has made."""

import torch
from torch import Tensor

from ..torch_internals import not_compiled

MASK = 2**64 - 1


class Draws:
    """The random numbers of one update. The same seed and update give the same numbers, on every rank.

    Args:
        seed: the balancer's seed.
        update: number of the update.
        like: numbers have the type and the device of this tensor.

    Example::

        def update(self, read: Read, draws: Draws) -> Result:
            return Result(state={"next_weights": draws.normal(len(read.losses)).softmax(0)})
    """

    def __init__(self, seed: int, update: int, like: Tensor) -> None:
        self._seed, self._update, self._like, self._calls = seed, update, like, 0

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers between 0 and 1 of the given shape."""
        return self._draw(torch.rand, shape)

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers of the given shape."""
        return self._draw(torch.randn, shape)

    @not_compiled("random numbers are drawn by a generator that the host seeds, which can't be traced")
    def _draw(self, function: object, shape: tuple[int, ...]) -> Tensor:
        self._calls += 1
        device, dtype = self._like.device, self._like.dtype
        if device.type == "meta":
            return torch.zeros(shape, dtype=dtype, device=device)
        key = _mix(_mix(_mix(self._seed) + self._update) + self._calls)
        # A generator's state is a number that the host knows, so that nothing is read from the device. Devices without
        # generators of their own get the CPU's numbers.
        home = device if device.type in ("cpu", "cuda", "mps", "xpu") else torch.device("cpu")
        generator = torch.Generator(home).manual_seed(key)
        assert callable(function)
        drawn: Tensor = function(shape, dtype=dtype, device=home, generator=generator)
        return drawn.to(device)


def _mix(number: int) -> int:
    """Return 64 bits that depend on all bits of ``number`` (SplitMix64: Steele, Lea and Flood, OOPSLA 2014)."""
    z = (number + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)
