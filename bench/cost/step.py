"""The cost of a training step: its time next to a step of equal weighting, and what it does.

A balancer and equal weighting train a copy each of the same model, on the same batches, in turn: whatever slows the
machine for a while slows both. Nothing else should be running, and one CPU thread is used.
"""

import gc
import itertools
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom

import tasks
from balancers import EqualWeighting, LossBalancer
from bench import build, environment
from bench.seeds import generator, stream_seed
from bench.spec import RunSpec, digest
from tasks import Problem

from .count import count

PARTS = ("forward", "backward", "optimizer")
"""``backward`` is the balancer and the backward pass, ``optimizer`` its step and the clearing of gradients."""
WARM_UP = 20
"""Steps made before the first that counts: allocations, a balancer's first-step checks, lazy initialisations."""


def key(spec: RunSpec, rounds: int) -> str:
    """What a measurement is kept under: it is good for one kind of machine, and for the code that measured."""
    code = [Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("step.py", "count.py")]
    return digest([spec.key, rounds, environment.processor(), environment.gpu(), code])


def measure(spec: RunSpec, rounds: int) -> list[dict[str, Any]]:
    """Times ``rounds`` steps, each next to one of equal weighting, on ``spec.device``.

    Returns:
        A row for each of `PARTS` and for the whole ``"step"``: ``device``, ``threads``, ``part``; ``median_ms``,
        ``q25_ms`` and ``q75_ms`` of the times in milliseconds; ``ratio_to_equal``, the median over rounds of the time
        over that of equal weighting, with a 95 % interval from order statistics, ``ratio_low`` to ``ratio_high``, which
        is for the spread between rounds, not between machines; for the step what `count` counts, for the parts None.
    """
    with single_thread():
        problem, batches = problem_and_batches(spec)
        method, equal = Loop(spec, problem), Loop(spec, problem, EqualWeighting(problem.tasks))
        for _ in range(WARM_UP):
            batch = next(batches)
            method.step(batch)
            equal.step(batch)
        seconds = _alternate(method, equal, itertools.islice(batches, rounds))
        batch = next(batches)
        counts = vars(count(lambda: method.step(batch), method.device))
    seconds = np.concatenate([seconds, seconds.sum(axis=-1, keepdims=True)], axis=-1)
    rows = []
    for part, (own, others) in zip((*PARTS, "step"), np.moveaxis(seconds, -1, 0), strict=True):
        q25, median, q75 = (np.quantile(own, [0.25, 0.5, 0.75]) * 1000).tolist()
        low, high = median_interval(own / others)
        row: dict[str, Any] = {"device": spec.device, "threads": 1, "part": part}
        row |= {"median_ms": median, "q25_ms": q25, "q75_ms": q75}
        row |= {"ratio_to_equal": float(np.median(own / others)), "ratio_low": low, "ratio_high": high}
        rows.append(row | (counts if part == "step" else dict.fromkeys(counts)))
    return rows


def median_interval(values: NDArray[np.float64], confidence: float = 0.95) -> tuple[float, float]:
    """An interval for the median of what ``values`` are drawn from, whatever its shape; nan for too few values.

    Between two order statistics: the number of values below the median is binomial with probability one half.
    """
    rank = int(binom.ppf((1 - confidence) / 2, len(values), 0.5))
    ordered = np.sort(values)
    return (float(ordered[rank - 1]), float(ordered[-rank])) if rank > 0 else (math.nan, math.nan)


def _alternate(method: "Loop", equal: "Loop", batches: Iterable[Any]) -> NDArray[np.float64]:
    """``(2, rounds, parts)``: the seconds of ``method`` and of ``equal``, which take turns in going first."""
    seconds: list[list[list[float]]] = [[], []]
    gc.collect()
    gc.disable()  # a collection would fall on one step of many
    try:
        for i, batch in enumerate(batches):
            for j in (0, 1) if i % 2 else (1, 0):
                seconds[j].append((method, equal)[j].step(batch))
    finally:
        gc.enable()
    return np.array(seconds)


def problem_and_batches(spec: RunSpec) -> tuple[Problem[Any], Iterator[Any]]:
    """The problem of ``spec``, and its training batches on the device."""
    problem = tasks.create(spec.problem, **spec.problem_options)
    data = problem.data(generator(spec.seed, "data"), torch.device(spec.device))
    return problem, problem.batches(data, generator(spec.seed, "batches"), spec.recipe.batch_size)


class Loop:
    """Trains a problem's model, step by step, with ``balancer`` or, without one, that of ``spec``."""

    def __init__(self, spec: RunSpec, problem: Problem[Any], balancer: LossBalancer | None = None) -> None:
        self.device = torch.device(spec.device)
        self.problem = problem
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(spec.seed, "initial values"))
            self.model = problem.model().to(self.device).train()
        self.balancer = (balancer or build.balancer(spec.method, problem, self.model)).to(self.device).train()
        self.optimizer = build.optimizer(self.model, spec.recipe)
        self.clock = _CudaClock() if self.device.type == "cuda" else _Clock()

    def step(self, batch: Any) -> list[float]:
        """One training step: the seconds that each of `PARTS` took."""
        self.clock.start()
        losses = self.problem.losses(self.model, batch)
        self.clock.lap()
        loss = self.balancer(losses)
        loss.backward()
        self.clock.lap()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.clock.lap()
        return self.clock.seconds()


class _Clock:
    """Time between marks."""

    def start(self) -> None:
        self._marks = [time.perf_counter()]

    def lap(self) -> None:
        self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        return np.diff(self._marks).tolist()


class _CudaClock:
    """Time between marks in the device's own stream; it begins with an idle device, and waits only at the end."""

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


@contextmanager
def single_thread() -> Iterator[None]:
    """One CPU thread while in the ``with`` block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
