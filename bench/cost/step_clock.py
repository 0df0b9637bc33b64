"""Take the time of steps: the parts of one step, and whole steps that take turns.

Calls that are compared take turns, so that whatever slows the machine for a while slows all of them.
"""

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom


class HostClock:
    """Measures the time between marks, on the host."""

    def start(self) -> None:
        self._marks = [time.perf_counter()]

    def lap(self) -> None:
        self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        return np.diff(self._marks).tolist()


class CudaClock:
    """Measures the time between marks in the device's stream. It starts on an idle device and waits only at the end."""

    def start(self) -> None:
        torch.cuda.synchronize()
        self._marks: list[torch.cuda.Event] = []
        self.lap()

    def lap(self) -> None:
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        self._marks.append(mark)

    def seconds(self) -> list[float]:
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(self._marks)]


def new_clock(device: torch.device) -> HostClock | CudaClock:
    """Return a clock for work on ``device``."""
    return CudaClock() if device.type == "cuda" else HostClock()


def interleave(calls: Sequence[Callable[[], object]], rounds: int) -> NDArray[np.float64]:
    """Time each call once a round, and return the seconds, ``(len(calls), rounds)``. They take turns in going first.

    A call that uses another device than the CPU has to wait for it. No garbage is collected meanwhile, because a
    collection would slow one call among many.
    """
    seconds = np.empty((len(calls), rounds))
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            for j in range(len(calls)):
                k = (i + j) % len(calls)
                start = time.perf_counter()
                calls[k]()
                seconds[k, i] = time.perf_counter() - start
    finally:
        gc.enable()
    return seconds


def median_interval(values: NDArray[np.float64], confidence: float = 0.95) -> tuple[float, float]:
    """Return a confidence interval for the median of the distribution that ``values`` are drawn from.

    The interval lies between two order statistics and holds for any distribution, because the number of values below
    the median is binomial with probability one half. It is nan for too few values.
    """
    rank = int(binom.ppf((1 - confidence) / 2, len(values), 0.5))
    ordered = np.sort(values)
    return (float(ordered[rank - 1]), float(ordered[-rank])) if rank > 0 else (math.nan, math.nan)


@contextmanager
def single_thread() -> Iterator[None]:
    """Use one CPU thread in the ``with`` block, and treat denormal numbers as zero.

    A unit that has died leaves denormal numbers in Adam's moments after 800 steps. There they slow each further step by
    some percent, and more so in the copy of the model that was trained for longer.
    """
    threads, flushes = torch.get_num_threads(), _flushes_denormals()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flushes)


def _flushes_denormals() -> bool:
    return bool(torch.tensor(1e-38) * 0.1 == 0)
