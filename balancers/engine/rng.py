"""A balancer's own random numbers: seeded, drawn on its device, and saved with its state."""

import torch
from torch import Tensor


class Draws:
    """A random generator that is created on the device where it is first used.

    Args:
        seed: start of the sequence. Must be the same on all ranks of ``torch.distributed``, so that they agree.

    Raises:
        ValueError: ``seed`` is not an integer from 0 to 2^63 - 1.
    """

    def __init__(self, seed: int) -> None:
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            raise ValueError(f"seed is {seed!r}; expected an integer from 0 to 2^63 - 1")
        self._seed = seed
        self._generator: torch.Generator | None = None
        self._saved: Tensor | None = None

    def on(self, device: torch.device) -> torch.Generator:
        """Return the generator on ``device``. If this is not the device of the last call, the sequence starts again."""
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self._seed)
            if self._saved is not None:
                self._generator.set_state(self._saved)
                self._saved = None
        return self._generator

    def state(self) -> Tensor | None:
        """Return the generator's state for `restore`; None before the first draw."""
        return self._saved if self._generator is None else self._generator.get_state()

    def restore(self, state: Tensor | None) -> None:
        """Continue the sequence at a ``state`` that the method `state` returned; None starts it again."""
        self._generator, self._saved = None, state
