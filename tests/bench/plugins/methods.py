"""Define methods that a user might write; some of them go wrong."""

import os
import signal
import time

import torch
from torch import Tensor

from balancers import EqualWeighting, LossBalancer, Losses, register


@register
class AlsoEqual(EqualWeighting):
    name = "also-equal"
    summary = "Equal weighting under a second name."


@register
class Noisy(LossBalancer):
    name = "noisy"
    summary = "Equal weighting that draws random numbers."
    reads = "nothing"

    def __init__(self, tasks: int | tuple[str, ...]) -> None:
        super().__init__(tasks)
        self.numbers: list[float] = []

    def weigh(self, losses: Tensor) -> Tensor:
        self.numbers.append(float(torch.rand(())))
        return torch.ones_like(losses)


@register
class RandomWeights(LossBalancer):
    name = "random-weights"
    summary = "New random weights at each step."
    reads = "nothing"

    def weigh(self, losses: Tensor) -> Tensor:
        return torch.rand_like(losses) * 2


@register
class Worsening(LossBalancer):
    name = "worsening"
    summary = "Descends for some steps, and then climbs."
    reads = "nothing"

    def __init__(self, tasks: int | tuple[str, ...], after: int = 5) -> None:
        super().__init__(tasks)
        self.left = after

    def weigh(self, losses: Tensor) -> Tensor:
        self.left -= 1
        return torch.full_like(losses, 1.0 if self.left >= 0 else -1.0)


@register
class Diverging(EqualWeighting):
    name = "diverging"
    summary = "Returns a loss that stops being a number after some steps."

    def __init__(self, tasks: int | tuple[str, ...], after: int = 5) -> None:
        super().__init__(tasks)
        self.left = after

    def forward(self, losses: Losses) -> Tensor:
        self.left -= 1
        return super().forward(losses) * (float("nan") if self.left < 0 else 1.0)


@register
class Failing(LossBalancer):
    name = "failing"
    summary = "Raises after some steps."
    reads = "losses"

    def __init__(self, tasks: int | tuple[str, ...], after: int = 5, interrupt: bool = False) -> None:
        super().__init__(tasks)
        self.left = after
        self.interrupt = interrupt

    def weigh(self, losses: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt if self.interrupt else RuntimeError("this method gave up")
        return torch.ones_like(losses)


@register
class Killing(LossBalancer):
    name = "killing"
    summary = "Kills its process after some steps, as a system without free memory does."
    reads = "nothing"

    def __init__(self, tasks: int | tuple[str, ...], after: int = 0) -> None:
        super().__init__(tasks)
        self.after = after

    def weigh(self, losses: Tensor) -> Tensor:
        self.after -= 1
        if self.after < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.ones_like(losses)


@register
class Slow(LossBalancer):
    name = "slow"
    summary = "Equal weighting that takes its time."
    reads = "nothing"

    def __init__(self, tasks: int | tuple[str, ...], seconds: float = 0.003) -> None:
        super().__init__(tasks)
        self.seconds = seconds

    def weigh(self, losses: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return torch.ones_like(losses)


@register
class Hanging(LossBalancer):
    name = "hanging"
    summary = "Equal weighting that stops for good after some steps."
    reads = "nothing"

    def __init__(self, tasks: int | tuple[str, ...], after: int = 30) -> None:
        super().__init__(tasks)
        self.after = after

    def weigh(self, losses: Tensor) -> Tensor:
        self.after -= 1
        if self.after < 0:
            time.sleep(3600)
        return torch.ones_like(losses)


@register
class Hoarding(LossBalancer):
    name = "hoarding"
    summary = "Equal weighting that takes 64 MiB more at each step after some; it stops at ``most`` MiB, to be safe."
    reads = "nothing"

    def __init__(self, tasks: int | tuple[str, ...], after: int = 30, most: int = 3072) -> None:
        super().__init__(tasks)
        self.after, self.most = after, most
        self.hoard: list[Tensor] = []

    def weigh(self, losses: Tensor) -> Tensor:
        self.after -= 1
        if self.after < 0 and 64 * len(self.hoard) < self.most:
            self.hoard.append(torch.ones(2**24))
            time.sleep(0.02)
        return torch.ones_like(losses)
