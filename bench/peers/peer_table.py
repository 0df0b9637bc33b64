"""Measure every peer, and collect the results in one table."""

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

PEERS: Sequence[type[Peer]] = (
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
"""Number of different batches: the checks make one step on each, and the timing goes through them again and again."""
SEED = 1
WARM_UP = 5
"""Rounds before the timing, which also show how long a round takes."""
FEWEST, MOST = 20, 500
"""Minimum and maximum number of rounds."""
COLUMNS = (
    *("num_tasks", "contender", "version", "wrt"),
    *("rounds", "median_ms", "equal_ms", "ratio", "ratio_low", "ratio_high", "extra_ms", "times_ours"),
    *("gradient_deviation", "weights_deviation", "missing", "differs"),
)

Row = dict[str, Any]


class Setup(NamedTuple):
    """A problem and some of its batches."""

    problem: Problem[Any]
    batches: Sequence[Any]

    @classmethod
    def regression(cls, num_tasks: int) -> "Setup":
        """Make the setup of the regression problem with separate heads, for 2, 10 or 40 tasks."""
        problem = tasks.create("regression", sigmas=f"T={num_tasks}", heads="separate")
        data = problem.data(generator(SEED, "data"), "cpu")
        batches = problem.batches(data, generator(SEED, "batches"), BATCH_SIZE)
        return cls(problem, list(itertools.islice(batches, BATCHES)))

    def make(self, cls: Callable[..., Peer], *setting: object) -> Peer:
        """Return a peer with a model of its own; all of them start from the same initial values."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(SEED, "initial values"))
            model = self.problem.model()
        return cls(self.problem, model.train(), *setting)


def measure(num_tasks: Iterable[int], seconds: float, peers: Sequence[type[Peer]] = PEERS) -> pd.DataFrame:
    """Measure all peers, and return a row for each number of tasks and each peer.

    Args:
        num_tasks: a selection of 2, 10 and 40.
        seconds: how long each peer is timed, but for at least `FEWEST` and at most `MOST` rounds.
        peers: the peers to measure; our GradNorm must be among them.

    Returns:
        `COLUMNS`, with nan where a peer could not be measured:

        - ``num_tasks``, ``contender`` (the peer's name), its package's ``version``, ``wrt``, number of ``rounds``;
        - ``median_ms`` and ``equal_ms``: median times of the peer's step and of equal weighting's, in milliseconds;
        - ``ratio``: median of the one over the other, with its 95 % interval, ``ratio_low`` to ``ratio_high``;
        - ``extra_ms``: median difference of the two, and ``times_ours``: this difference over that of our GradNorm;
        - ``gradient_deviation`` and ``weights_deviation``: see `Deviation`;
        - ``missing``: why the peer was not measured; ``differs``: how its step differs from ours.
    """
    with single_thread():
        table = pd.DataFrame([_row(setup, cls, seconds) for setup in map(Setup.regression, num_tasks) for cls in peers])
    ours = table[table["contender"] == Ours.name].set_index("num_tasks")["extra_ms"]
    table["times_ours"] = table["extra_ms"] / table["num_tasks"].map(ours)
    return table.reindex(columns=list(COLUMNS)).astype({"rounds": "Int64"})


def _row(setup: Setup, cls: type[Peer], seconds: float) -> Row:
    row: Row = {
        "num_tasks": len(setup.problem.tasks),
        "contender": cls.name,
        "version": "",
        "wrt": cls.usual_setting(setup.problem).wrt,
        "missing": "",
        "differs": cls.differs,
    }
    if cls.package is not None:
        if find_spec(cls.package) is None:
            return row | _unmeasured("not installed; pip install '.[peers]'")
        row["version"] = version(cls.name)
    try:
        return row | _measured(setup, cls, seconds)
    except ImportError as error:
        return row | _unmeasured(f"can't be imported: {error}")


def _unmeasured(reason: str) -> Row:
    return {"missing": reason, "extra_ms": math.nan, "rounds": None}


def _measured(setup: Setup, cls: type[Peer], seconds: float) -> Row:
    ours = setup.make(Ours, cls.usual_setting(setup.problem))
    deviation = compare(setup.make(cls), ours, setup.batches)
    times = _times(setup.make(cls), setup.make(Equal), setup.batches, seconds)
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


def _times(peer: Peer, equal: Peer, batches: Sequence[Any], seconds: float) -> NDArray[np.float64]:
    """Return the seconds of the peer's steps and of equal weighting's, which take turns: ``(2, rounds)``."""
    calls = [_stepper(peer, batches), _stepper(equal, batches)]
    interleave(calls, 1)  # not timed: the first steps check their input and allocate memory
    start = time.perf_counter()
    interleave(calls, WARM_UP)
    rounds = round(seconds * WARM_UP / (time.perf_counter() - start))
    return interleave(calls, min(max(rounds, FEWEST), MOST))


def _stepper(peer: Peer, batches: Sequence[Any]) -> Callable[[], None]:
    """Return a function that makes one step, on the next of ``batches`` at each call."""
    rest = itertools.cycle(batches)
    return lambda: peer.step(next(rest))
