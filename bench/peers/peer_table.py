"""Measures every contender, and collects what was measured in one table."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

import tasks
from bench.cost.step_clock import interleave, median_interval, single_thread
from bench.run.seeds import generator, stream_seed
from tasks import Problem

from .double_backward import DoubleBackward
from .equal_peer import Equal
from .gradient_check import compare
from .gradnorm_pytorch import GradNormPytorch
from .libmtl import LibMTL
from .our_gradnorm import Ours
from .peer import Peer
from .stacked import StackedDoubleBackward

CONTENDERS: Sequence[type[Peer]] = (
    Equal,
    Ours,
    DoubleBackward,
    StackedDoubleBackward,
    GradNormPytorch,
    LibMTL,
)
NUM_TASKS = (2, 10, 40)
BATCH_SIZE = 100
BATCHES = 10
"""Different ones: the checks make a step on each, the timing goes through them again and again."""
SEED = 1
WARM_UP = 5
FEWEST, MOST = 20, 500
"""Rounds."""
COLUMNS = (
    *("num_tasks", "contender", "version", "wrt"),
    *("rounds", "median_ms", "equal_ms", "ratio", "ratio_low", "ratio_high", "extra_ms", "times_ours"),
    *("gradient_deviation", "weights_deviation", "missing", "differs"),
)

Row = dict[str, Any]


class Setup(NamedTuple):
    """A problem, and batches of it."""

    problem: Problem[Any]
    batches: Sequence[Any]

    @classmethod
    def regression(cls, num_tasks: int) -> "Setup":
        """The regression problem with separate heads, for 2, 10 or 40 tasks."""
        problem = tasks.create("regression", sigmas=f"T={num_tasks}", heads="separate")
        data = problem.data(generator(SEED, "data"), "cpu")
        batches = problem.batches(data, generator(SEED, "batches"), BATCH_SIZE)
        return cls(problem, list(itertools.islice(batches, BATCHES)))

    def make(self, contender: Callable[..., Peer], *setting: object) -> Peer:
        """A contender with a model of its own, of the same initial values for all."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(SEED, "initial values"))
            model = self.problem.model()
        return contender(self.problem, model.train(), *setting)


def measure(num_tasks: Iterable[int], seconds: float, contenders: Sequence[type[Peer]] = CONTENDERS) -> pd.DataFrame:
    """A row for each number of tasks and each contender; figures are missing where it could not be measured.

    Args:
        num_tasks: some of 2, 10 and 40.
        seconds: to time each contender for, but in at least `FEWEST` and at most `MOST` rounds.
        contenders: with ours among them.

    Returns:
        `COLUMNS`: medians ``median_ms`` and ``equal_ms`` of the contender's step and of equal weighting's, in
        milliseconds; ``ratio``, the median of the one over the other, with its 95 % interval ``ratio_low`` to
        ``ratio_high``; ``extra_ms``, the median difference, and ``times_ours``, that over ours; ``gradient_deviation``
        and ``weights_deviation``, see `check.Deviation`; ``missing``, why the contender was not measured; ``differs``,
        how its step differs from ours.
    """
    with single_thread():
        table = pd.DataFrame(
            [_row(setup, each, seconds) for setup in map(Setup.regression, num_tasks) for each in contenders]
        )
    ours = table[table["contender"] == Ours.name].set_index("num_tasks")["extra_ms"]
    table["times_ours"] = table["extra_ms"] / table["num_tasks"].map(ours)
    return table.reindex(columns=list(COLUMNS)).astype({"rounds": "Int64"})


def _row(setup: Setup, contender: type[Peer], seconds: float) -> Row:
    row: Row = {
        "num_tasks": len(setup.problem.tasks),
        "contender": contender.name,
        "version": "",
        "wrt": contender.usual_setting(setup.problem).wrt,
        "missing": "",
        "differs": contender.differs,
    }
    if contender.package is not None:
        if find_spec(contender.package) is None:
            return row | _unmeasured("not installed; pip install '.[peers]'")
        row["version"] = version(contender.name)
    try:
        return row | _measured(setup, contender, seconds)
    except ImportError as error:
        return row | _unmeasured(f"can't be imported: {error}")


def _unmeasured(reason: str) -> Row:
    return {"missing": reason, "extra_ms": math.nan, "rounds": None}


def _measured(setup: Setup, contender: type[Peer], seconds: float) -> Row:
    ours = setup.make(Ours, contender.usual_setting(setup.problem))
    deviation = compare(setup.make(contender), ours, setup.batches)
    times = _times(setup.make(contender), setup.make(Equal), setup.batches, seconds)
    ratios = times[0] / times[1]
    low, high = median_interval(ratios)
    median, equal = np.median(times, axis=1) * 1000
    return {
        "rounds": len(ratios),
        "median_ms": median,
        "equal_ms": equal,
        "ratio": np.median(ratios),
        "ratio_low": low,
        "ratio_high": high,
        "extra_ms": np.median(times[0] - times[1]) * 1000,
        "gradient_deviation": deviation.gradient,
        "weights_deviation": deviation.weights,
    }


def _times(contender: Peer, equal: Peer, batches: Sequence[Any], seconds: float) -> NDArray[np.float64]:
    """``(2, rounds)``: the seconds of the two's steps, in turn."""
    calls = [_stepper(contender, batches), _stepper(equal, batches)]
    interleave(calls, 1)  # first steps check and allocate
    start = time.perf_counter()
    interleave(calls, WARM_UP)
    rounds = round(seconds * WARM_UP / (time.perf_counter() - start))
    return interleave(calls, min(max(rounds, FEWEST), MOST))


def _stepper(contender: Peer, batches: Sequence[Any]) -> Callable[[], None]:
    """A call that makes the next step."""
    rest = itertools.cycle(batches)
    return lambda: contender.step(next(rest))
