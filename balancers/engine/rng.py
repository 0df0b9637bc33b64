"""Random numbers of a balancer's own: seeded, on its device, and saved with its state."""

import torch
from torch import Tensor


class Draws:
    """A generator that is made on the device where it is first used.

    Args:
        seed: of the sequence; the same on all ranks of ``torch.distributed``, so that these agree.

    Raises:
        ValueError: ``seed`` is not an integer from 0 to 2^63 - 1.
    """

    def __init__(self, seed: int) -> None:
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            raise ValueError(f"seed is {seed!r}; expected an integer, 0 or more")
        self._seed = seed
        self._generator: torch.Generator | None = None
        self._saved: Tensor | None = None

    def on(self, device: torch.device) -> torch.Generator:
        """The generator, on ``device``; on another device than before, its sequence begins anew."""
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self._seed)
            if self._saved is not None:
                self._generator.set_state(self._saved)
                self._saved = None
        return self._generator

    def state(self) -> Tensor | None:
        """What `restore` takes; None before the first draw."""
        return self._saved if self._generator is None else self._generator.get_state()

    def restore(self, state: Tensor | None) -> None:
        """Goes on where the generator was that ``state`` is of."""
        self._generator, self._saved = None, state
